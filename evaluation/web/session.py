"""One visitor's live stream: blocks of sound and camera frames in, enhanced sound out, whatever the browser's rates."""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import soxr
from PIL import Image, UnidentifiedImageError

from dataloaders.augment_video import VisualDegradation
from evaluation.web.recording import AS_IT_IS, OFF, Complaint
from models.inference.enhancer import Enhancer
from models.inference.streaming import StreamingEnhancer
from utils.faces.live_cropper import LiveCropper
from utils.media.sound import to_pcm16

SOUND, FRAME = 0, 1  # kinds of messages
LIVE_CORRUPTIONS = ("blur", "noise", "black", "dim", "patch")
RATES_HZ = range(8000, 192001)
LARGEST_SIDE = 1280  # pixels of a camera frame
HOLD_SEC = 0.2  # a frame counts for so long when the next one is late, as those of browsers' cameras are
GAP_SEC = 0.01  # where sound is missing for longer than this, the stream begins anew
SHOW_CROP_SEC = 0.2  # between two crops that are sent back
LOAD_SEC = 3.0  # of sound, over which the load is measured


@dataclass(frozen=True)
class Message:
    """Sound (int16 at the visitor's rate) or a frame (JPEG). at_sec is when it began, on the clock of the visitor's sound."""

    kind: int
    at_sec: float
    content: bytes


def decode_frame(jpeg: bytes) -> np.ndarray:
    """JPEG -> uint8 [H, W, 3]; Complaint for anything else, before anything large is unpacked."""
    try:
        with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
            if max(image.size) > LARGEST_SIDE:
                raise Complaint(f"the camera's frames have {image.size[0]} x {image.size[1]} pixels; "
                                f"up to {LARGEST_SIDE} a side are taken.")  # fmt: skip
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise Complaint("a frame arrived that is no JPEG.") from error


class LiveSession:
    """A stream with what a browser needs around it: it converts rates without seams, crops the face and bridges gaps.

    rate_hz is the rate of the visitor's sound; what comes back is at the model's rate. Complaint for a rate that no browser
    has and for a checkpoint that cannot stream.
    """

    def __init__(self, enhancer: Enhancer, rate_hz: int) -> None:
        if rate_hz not in RATES_HZ:
            raise Complaint(f"sound at {rate_hz} Hz cannot be streamed; 8 to 192 kHz can.")
        if not enhancer.model.causal:
            raise Complaint("this model is not causal: it needs whole recordings and cannot run live.")
        self._model_rate, self._rate = enhancer.sample_rate, rate_hz
        self._sees = enhancer.uses_video
        self._stream = StreamingEnhancer(enhancer, hold_sec=HOLD_SEC)
        self._down = soxr.ResampleStream(rate_hz, self._model_rate, 1, dtype="float32", quality="HQ")  # 37 ms late
        self._cropper = LiveCropper(enhancer.face_size)
        self._degrade, self._rng = VisualDegradation(), np.random.default_rng()
        self.video_mode = AS_IT_IS
        self._began_sec = 0.0  # where the stream's own time begins on the visitor's clock
        self._heard_sec = 0.0  # until where the visitor's sound was heard
        self._frame_sec = -np.inf
        self._face = False
        self._crop: np.ndarray | None = None
        self._crop_sent_sec = -np.inf
        self._listened_sec = self._skipped_sec = 0.0
        self._loads: deque[tuple[float, float]] = deque()  # (seconds of work, seconds of sound), the newest last

    def work(self, messages: Sequence[Message]) -> list[tuple[int, float, bytes]]:
        """Take what has come, in order -> what to send back: (SOUND, until where it is enhanced, int16), (FRAME, time, JPEG).

        Frames go first, for those that came with a block belong to its time. Complaint for what is neither.
        """
        started, listened_sec = time.perf_counter(), self._listened_sec
        for message in messages:
            if message.kind == FRAME and self._sees and self.video_mode != OFF:
                self._look(message)
        replies = []
        sound = [message for message in messages if message.kind == SOUND]
        if sound:
            replies.append(self._listen(sound))
        if self._crop is not None and self._frame_sec - self._crop_sent_sec >= SHOW_CROP_SEC:
            shown = io.BytesIO()
            Image.fromarray(self._crop).save(shown, "JPEG", quality=80)
            replies.append((FRAME, self._frame_sec, shown.getvalue()))
            self._crop_sent_sec, self._crop = self._frame_sec, None
        self._loads.append((time.perf_counter() - started, self._listened_sec - listened_sec))
        while sum(sound for _, sound in self._loads) - self._loads[0][1] > LOAD_SEC:
            self._loads.popleft()
        return replies

    def _listen(self, sound: Sequence[Message]) -> tuple[int, float, bytes]:
        out, waiting = [], []
        for message in sound:
            missing_sec = message.at_sec - self._heard_sec
            if not np.isfinite(message.at_sec) or missing_sec < -GAP_SEC:
                raise Complaint("sound arrived that is older than what was heard.")
            if missing_sec > GAP_SEC:
                out.append(self._enhanced(waiting))
                waiting = []
                self._skip(message.at_sec, missing_sec)
            waiting.append(np.frombuffer(message.content[: len(message.content) // 2 * 2], "<i2"))
            self._heard_sec = message.at_sec + len(waiting[-1]) / self._rate
        out.append(self._enhanced(waiting))
        pcm = to_pcm16(np.concatenate(out)).astype("<i2", copy=False)
        readout = self._stream.readout()
        behind = (readout.backlog_samples + self._down.delay()) / self._model_rate
        return SOUND, self._heard_sec - behind, pcm.tobytes()

    def _enhanced(self, blocks: Sequence[np.ndarray]) -> np.ndarray:
        """Enhance blocks int16 [n] that follow each other. Together they take less time, so a late stream catches up."""
        if not blocks:
            return np.zeros(0, np.float32)
        samples = np.concatenate(blocks)
        self._listened_sec += len(samples) / self._rate
        return self._stream.feed(self._down.resample_chunk(samples.astype(np.float32) / 32768))

    def _skip(self, at_sec: float, missing_sec: float) -> None:
        """Begin anew, because sound was left out: what comes next does not follow what the stream remembers."""
        self._stream.reset()
        self._began_sec = at_sec - self._down.delay() / self._model_rate
        self._skipped_sec += missing_sec

    def _look(self, message: Message) -> None:
        if not self._frame_sec <= message.at_sec <= self._heard_sec + 5:
            return  # out of order, or of another time
        self._frame_sec = message.at_sec
        crop, self._face = self._cropper(decode_frame(message.content), message.at_sec)
        if self.video_mode in LIVE_CORRUPTIONS:
            # A hand before the mouth stays where it is; noise is new in every frame.
            rng = np.random.default_rng(1) if self.video_mode in ("patch", "dim") else self._rng
            crop = self._degrade.apply(self.video_mode, crop[None], rng, whole_clip=True)[0][0]
        self._crop = crop
        at_sec = message.at_sec - self._began_sec
        if at_sec >= 0:
            self._stream.feed_video(crop[None], np.array([at_sec]), np.array([self._face]))

    def readout(self) -> dict[str, float | bool]:
        """How the stream is doing, for the page."""
        readout = self._stream.readout()
        listened_sec = sum(sound for _, sound in self._loads)
        return {
            "alpha": round(readout.alpha, 3),
            "rtf": round(sum(work for work, _ in self._loads) / listened_sec, 3) if listened_sec else 0.0,
            "heard_sec": round(self._listened_sec, 2),
            "skipped_sec": round(self._skipped_sec, 2),
            "face": self._face and self._frame_sec > self._heard_sec - 1,
            "faces": self._cropper.n_faces,
        }
