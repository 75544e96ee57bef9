"""Seeded damage for everything that is read: media files, shards, lists, recipes, checkpoints.

Run it from the repository: python tests/helpers/fuzz.py --count 5000 --seconds 3600. Input k of a seed is always the same one.
A child process reads the inputs, so that a crash or a hang ends nothing but the child; each finding is printed with its number.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import selectors
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LONGEST_SEC, MOST_GROWTH_MB = 20.0, 500
ALLOWED = (ValueError, OSError)  # MediaError is a ValueError


# The child: makes inputs and reads them -----------------------------------------------------------------------------


def seed_files(folder: Path) -> list[Path]:
    """Write small good files of every kind that is read."""
    import av
    import numpy as np
    import soundfile
    import yaml

    from helpers.grey_video import regular, write_video
    from helpers.tiny import save_tiny_checkpoint, tiny_config, voice
    from utils.media.clip_writer import write_clip
    from utils.media.shards import encode_clip, write_shard

    sound = voice(1.0)
    stereo = np.stack([sound, -sound], 1)
    low = sound[:8000]
    for name, data, subtype in (
        ("a.wav", sound, "PCM_16"), ("f.wav", stereo, "FLOAT"), ("ima.wav", sound, "IMA_ADPCM"), ("gsm.wav", low, "GSM610"),
        ("nms.wav", low, "NMS_ADPCM_32"), ("a.flac", stereo, "PCM_16"), ("a.aiff", sound, "PCM_24"), ("a.au", sound, "ULAW"),
        ("a.caf", sound, "ALAC_16"), ("a.w64", sound, "PCM_16"), ("a.ogg", sound, "VORBIS"), ("a.mp3", sound, None),
        ("dwvw.aiff", sound, "DWVW_16"), ("g721.au", sound, "G721_32"),
    ):  # fmt: skip
        soundfile.write(folder / name, data, 8000 if name in ("gsm.wav", "nms.wav") else 16000, subtype=subtype)
    for name, codec in (("a.opus", "libopus"), ("a.aac", "aac"), ("a.tta", "tta"), ("a.wv", "wavpack"), ("a.ac3", "ac3")):
        with av.open(str(folder / name), "w", format={"a.opus": "ogg", "a.aac": "adts"}.get(name)) as container:
            stream = container.add_stream(codec, rate=48000, layout="mono")
            frame = av.AudioFrame.from_ndarray(voice(1.0, 48000)[None], format="fltp", layout="mono")
            frame.sample_rate = 48000
            resampler = av.AudioResampler(stream.format, "mono", 48000, frame_size=stream.frame_size or 1024)
            for piece in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(stream.encode(piece))
            container.mux(stream.encode(None))
    for name, codec, coding in (
        ("v.mp4", "libx264", "flac"), ("v.mkv", "libx264", "flac"), ("v.mpg", "mpeg1video", "mp2"),
        ("v.avi", "mpeg1video", "pcm_s16le"), ("v.ts", "libx264", "mp2"), ("v.mov", "libx264", "pcm_s16le"),
    ):  # fmt: skip
        write_video(folder / name, regular(25, 25), (64, 64), codec, sound, sound_codec=coding)
    crops = np.random.default_rng(0).integers(0, 255, (10, 32, 32, 3)).astype(np.uint8)
    write_clip(folder / "crops.mp4", crops, sound)
    write_shard(folder / "s.tar", [("00", encode_clip(crops, sound[:6400], 16000, 25.0, {"mask": [[0, 2]]}))],
                {"face_size": 32, "fps": 25.0, "sample_rate": 16000})  # fmt: skip
    (folder / "list.json").write_text(json.dumps([{"video": "v.mp4", "mask": [[0, 3]]}, {"audio": "a.wav", "speaker": "s"}]))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tiny_config()))
    save_tiny_checkpoint(folder / "model.pth")
    return sorted(folder.iterdir())


def mutate(content: bytes, others: list[bytes], rng) -> bytes:
    """Damage bytes in one to four ways."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        n = len(data)
        if n < 8:
            return bytes(data)
        at, how = int(rng.integers(n)), int(rng.integers(9))
        head = int(rng.integers(min(n - 7, 256)))
        if how == 0:  # some bytes
            for place in rng.integers(n, size=int(rng.integers(1, 60))):
                data[place] = int(rng.integers(256))
        elif how == 1:  # the end is missing
            del data[at:]
        elif how == 2:  # a piece is missing
            del data[at : at + int(rng.integers(1, 2000))]
        elif how == 3:  # a piece is twice there
            data[at:at] = data[at : at + int(rng.integers(1, 2000))]
        elif how == 4:  # a number in the header is extreme
            extreme = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x10"]
            data[head : head + 4] = extreme[int(rng.integers(len(extreme)))]
        elif how == 5:  # some bits of the header
            for place in rng.integers(min(n, 256), size=int(rng.integers(1, 6))):
                data[place] ^= 1 << int(rng.integers(8))
        elif how == 6:  # a block is empty
            data[at : at + 512] = bytes(len(data[at : at + 512]))
        elif how == 7:  # another file goes on in the middle
            other = others[int(rng.integers(len(others)))]
            data[at:] = other[int(rng.integers(len(other))) :][:200_000]
        else:  # another file is appended
            data += others[int(rng.integers(len(others)))][:200_000]
    return bytes(data)


def readers(suffix: str) -> list[Callable[[Path], object]]:
    """What reads a file of this suffix in training, scoring, inference or the page."""
    from dataloaders.clip_sources import open_clips
    from helpers.tiny import tiny_config
    from models.pretrained import load_generator
    from utils.config import load_config
    from utils.faces.video_crops import load_video_frames
    from utils.media.decode import probe_media
    from utils.media.replace_sound import replace_sound
    from utils.media.sound import load_audio, media_duration_sec, sound_pieces

    if suffix == ".yaml":
        return [load_config]
    if suffix == ".pth":
        return [load_generator]
    if suffix in (".json", ".tar"):
        cfg = tiny_config(visual_cfg={"face_size": 32})

        def read_all(path: Path) -> None:
            clips = open_clips(path, "data_cfg.train_data_json", cfg)
            for number in range(min(3, len(clips))):
                clips[number].duration_sec()
                clips[number].sound(0.0, 0.5)
                if clips[number].has_video:
                    clips[number].frames(0, 10)

        return [read_all]
    return [
        load_audio, lambda path: load_audio(path, 16000, 0.3, 0.4), lambda path: load_audio(path, 16000, 11.0, 0.5),
        lambda path: sum(map(len, sound_pieces(path))), media_duration_sec, probe_media,
        lambda path: load_video_frames(path, face_size=32, face_crop="none"),
        lambda path: load_video_frames(path, 0.4, 1.0, face_size=32, face_crop="none"),
        lambda path: replace_sound(path, load_audio(path), 16000, path.with_name("out.mkv")),
    ]  # fmt: skip


def child(seed: int, first: int, count: int) -> None:
    """Read inputs first .. first + count - 1; a line of JSON before each and for each finding."""
    import logging

    import av
    import numpy as np

    logging.disable(logging.CRITICAL)
    av.logging.set_level(None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "good").mkdir()
        good = seed_files(folder / "good")
        contents = [path.read_bytes() for path in good]
        media = [data for path, data in zip(good, contents, strict=True) if path.suffix not in (".pth", ".json", ".yaml")]
        for path in good:  # what is imported and compiled on first use is no growth
            for read in readers(path.suffix):
                with contextlib.suppress(*ALLOWED):
                    read(path)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(first, first + count):
            rng = np.random.default_rng([seed, number])
            source = good[number % len(good)]
            work = folder / f"work{number}"
            work.mkdir()
            partner = source.with_suffix({".tar": ".json", ".json": ".tar"}.get(source.suffix, ".none"))
            if partner.is_file():
                (work / partner.name).write_bytes(partner.read_bytes())
            path = work / source.name
            path.write_bytes(mutate(contents[number % len(good)], media, rng))
            print(json.dumps({"at": number, "file": source.name}), flush=True)
            for read in readers(".tar" if source.name == "s.json" else source.suffix):
                try:
                    read(path.with_suffix(".tar") if source.name == "s.json" else path)
                except ALLOWED as error:
                    if len(str(error)) > 4000:
                        print(json.dumps({"found": number, "why": f"message of {len(str(error))} letters"}), flush=True)
                except BaseException:
                    print(json.dumps({"found": number, "why": traceback.format_exc()[-1500:]}), flush=True)
            for left in work.iterdir():
                left.unlink()
            work.rmdir()
            grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            if grown_mb > MOST_GROWTH_MB:
                print(json.dumps({"found": number, "why": f"grew by {grown_mb:.0f} MB"}), flush=True)
                return


# The parent: watches the child ----------------------------------------------------------------------------------------


def watch(seed: int, first: int, count: int, seconds: float) -> tuple[int, list[dict]]:
    """Read inputs until all are done or the time is over -> (how many were read, findings)."""
    end, number, found = time.monotonic() + seconds, first, []
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    while number < first + count and time.monotonic() < end:
        command = [sys.executable, __file__, "--child", "--seed", str(seed), "--first", str(number),
                   "--count", str(first + count - number)]  # fmt: skip
        begun = False
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=ROOT) as process:
            selector = selectors.DefaultSelector()
            selector.register(process.stdout, selectors.EVENT_READ)
            while time.monotonic() < end:
                if not selector.select(LONGEST_SEC if begun else 300.0):
                    found.append({"found": number, "why": f"no end within {LONGEST_SEC:g} s"})
                    break
                line = process.stdout.readline()
                if not line:
                    break
                said = json.loads(line)
                if "found" in said:
                    found.append(said)
                else:
                    begun, number = True, said["at"]
            over = time.monotonic() >= end
            if process.poll() is None and (over or (found and found[-1]["why"].startswith("no end"))):
                process.kill()
            errors = process.stderr.read()
            code = process.wait()
        if code not in (0, -9) or (code == -9 and not over and not (found and found[-1]["found"] == number)):
            found.append({"found": number, "why": f"ended with {code}: {errors.decode(errors='replace')[-1500:]}"})
        if not begun:
            break
        number += 1
    return number - first, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.seed, args.first, args.count)
        return 0
    n_read, found = watch(args.seed, args.first, args.count, args.seconds)
    for finding in found:
        print(f"input {finding['found']}: {finding['why']}")
    print(f"{n_read} inputs were read, {len(found)} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
