"""liteavse stream --input_device ... --output_device ...: from a microphone, and a camera, to any output, enhanced as it comes.

With a loopback device as the output it is a microphone for OBS, Zoom and others; docs/streaming.md says how on each system.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from models.inference.enhancer import Enhancer
from models.inference.files.run_jobs import limit_db
from models.inference.live import LiveSound, Watcher
from models.inference.streaming import StreamingEnhancer
from models.inference.upper_band import BANDS, FULL
from utils import console

PROGRAM = "liteavse stream"
OPTIONS = ("--input_device", "--output_device", "--list_devices")  # any of them means devices instead of files
CHECKPOINT = Path("ckpts") / "LiteAVSE_small.pth"
LINE_SEC = 2.0
CAMERA_HOLD_SEC = 0.2  # a camera's frame always comes later than its sound


def build_parser() -> console.Parser:
    parser = console.Parser(prog=PROGRAM, description=__doc__)
    parser.add_argument("--input_device", metavar="NAME|NUMBER", help="microphone (default: the system's)")
    parser.add_argument("--output_device", metavar="NAME|NUMBER", help="where the enhanced sound goes (default: the system's)")
    parser.add_argument("--list_devices", action="store_true", help="print the devices and end")
    parser.add_argument("--camera", type=int, metavar="NUMBER", help="camera that shows the speaker, e.g. 0 (default: none)")
    parser.add_argument("--rate", type=int, help="sampling rate in Hz of both devices (default: the input's own)")
    parser.add_argument("--block_ms", type=float, default=10.0, help="length of a block of sound (default: 10)")
    parser.add_argument("--band", choices=BANDS, default=FULL, help="full: the band above 8 kHz is kept and treated; 16k: it "
                        "is left out (default: full)")
    parser.add_argument("--attenuation_limit_db", type=limit_db, metavar="DB", help="turn noise down by this much at most")
    parser.add_argument("--checkpoint_file", type=Path, default=CHECKPOINT, help="default: ckpts/LiteAVSE_small.pth")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N, for the model")
    parser.add_argument("--seconds", type=float, help="end after this long (default: at Ctrl-C)")
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args(argv)
    if not 1 <= args.block_ms <= 1000:
        parser.error(f"--block_ms is {args.block_ms:g}, it should be some milliseconds, e.g. 10")
    for kind in ("input_device", "output_device"):
        name = getattr(args, kind)
        if name is not None and name.isdigit():
            setattr(args, kind, int(name))
    return args


def load_sounddevice() -> ModuleType:
    """Import sounddevice; ValueError in one line where PortAudio is missing."""
    try:
        import sounddevice
    except OSError as error:
        remedy = "install PortAudio, on Debian and Ubuntu: apt-get install libportaudio2"
        raise ValueError(f"{console.one_line(error)}; {remedy}") from None
    return sounddevice


def checked_device(sd: ModuleType, device: str | int | None, kind: str, rate: int | None) -> tuple[str | int | None, int]:
    """Return the device and the rate in Hz that it will have; ValueError in one line where it, or the rate, cannot be had."""
    try:
        facts = sd.query_devices(device, kind)
    except (ValueError, sd.PortAudioError) as error:
        wanted = f"{kind} device {device!r}" if device is not None else f"default {kind} device"
        reason = console.one_line(error)
        raise ValueError(f"the {wanted} cannot be used: {reason} (--list_devices shows what there is)") from None
    rate = rate or round(facts["default_samplerate"])
    check = sd.check_input_settings if kind == "input" else sd.check_output_settings
    try:
        check(device=device, channels=1, samplerate=rate, dtype="float32")
    except (ValueError, sd.PortAudioError) as error:
        own, reason = round(facts["default_samplerate"]), console.one_line(error)
        raise ValueError(
            f"the {kind} device {facts['name']!r} cannot be had at {rate} Hz: {reason} (its own rate: --rate {own})"
        ) from None
    return device, rate


def open_camera(number: int, enhancer: Enhancer, sound: LiveSound) -> Watcher:
    """Return a watcher of the camera; ValueError in one line where it cannot be opened or the model takes no video."""
    import cv2

    from utils.faces.live_cropper import LiveCropper

    if not enhancer.uses_video:
        raise ValueError(f"--camera: {enhancer.name} has no visual branch; leave --camera out")
    camera = cv2.VideoCapture(number)
    if not camera.isOpened():
        raise ValueError(f"camera {number} cannot be opened; is it there, and is no other program using it?")
    return Watcher(camera, LiveCropper(enhancer.face_size), sound)


def run(args: argparse.Namespace) -> int:
    sd = load_sounddevice()
    if args.list_devices:
        devices = sd.query_devices()
        print(devices if len(devices) else "no sound devices: PortAudio finds neither a microphone nor an output here")
        return 0
    source, rate = checked_device(sd, args.input_device, "input", args.rate)
    target, _ = checked_device(sd, args.output_device, "output", rate)
    enhancer = Enhancer.from_checkpoint(args.checkpoint_file, args.device)
    enhancer.warm_up()
    stream = StreamingEnhancer(
        enhancer, hold_sec=None if args.camera is None else CAMERA_HOLD_SEC, sample_rate=rate, band=args.band,
        attenuation_limit_db=args.attenuation_limit_db,
    )
    block = max(1, round(args.block_ms * rate / 1000))
    sound = LiveSound(stream, block)
    watcher = None if args.camera is None else open_camera(args.camera, enhancer, sound)
    print(enhancer.describe(), flush=True)
    common = {"samplerate": rate, "blocksize": block, "channels": 1, "dtype": "float32", "latency": "low"}

    def hear(data, frames, times, status) -> None:
        sound.hear(data[:, 0])

    def play(data, frames, times, status) -> None:
        data[:, 0] = sound.play(frames)

    try:
        with (
            sd.InputStream(device=source, callback=hear, **common) as heard,
            sd.OutputStream(device=target, callback=play, **common) as played,
        ):
            name = [sd.query_devices(device, kind)["name"] for device, kind in ((source, "input"), (target, "output"))]
            print(f"{name[0]} -> {name[1]} at {rate} Hz, blocks of {args.block_ms:g} ms; Ctrl-C ends it", flush=True)
            if watcher is not None:
                watcher.start()
            until_end(sound, watcher, heard.latency + played.latency, args.seconds)
    except sd.PortAudioError as error:
        raise ValueError(f"the devices cannot be opened together: {console.one_line(error)}") from None
    return 0


def until_end(sound: LiveSound, watcher: Watcher | None, devices_sec: float, seconds: float | None) -> None:
    """Enhance what comes, and print a line every LINE_SEC, until `seconds` are over or Ctrl-C."""
    began = said = time.monotonic()
    try:
        while seconds is None or time.monotonic() - began < seconds:
            if watcher is not None:
                watcher.feed()
            sound.work(wait_sec=0.1)
            if time.monotonic() - said >= LINE_SEC:
                said = time.monotonic()
                print(sound.line(devices_sec), flush=True)
    except KeyboardInterrupt:
        print("stopped", flush=True)
    finally:
        if watcher is not None:
            watcher.ended.set()
        print(f"at the end: {sound.line(devices_sec)}", flush=True)


def main(argv: Sequence[str]) -> int:
    """Command line of `liteavse stream` with devices; returns the exit code."""
    args = parse(argv)
    return console.run(PROGRAM, lambda: run(args))
