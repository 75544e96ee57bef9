"""Writes a manifest of test mixtures, so that every model is scored on the same inputs.

    python -m evaluation.make_testset --test_json clips.json --noise_json noise.json --output results/testset.json

Each clip is mixed with each kind of noise at each SNR. The recording and the place in it are drawn once for each clip and
kind, so that all SNRs have the same noise. `noise` is a recording of the noise list; `one_speaker` and `three_speakers`
are clips of one or three other people of the list (or of --masker_json); `noise_in_room` is `noise` with the speaker in a
room of --rir_json. The same seed gives the same manifest.
--sound_dir writes the mixtures as sound, too, for other programs; `evaluation.snr_breakdown --others` scores what they make.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from evaluation.testset.draw import add_mixture_options, check_mixture_options, make_testset
from evaluation.testset.manifest import read_manifest, write_sounds
from utils.console import EXIT_FAILED, Parser, run


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("make_testset.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_mixture_options(parser)
    parser.add_argument("--output", type=Path, default=Path("results/testset.json"))
    parser.add_argument("--sound_dir", type=Path, help="folder that receives noisy/ and clean/, a wav per mixture")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)

    def work() -> int:
        check_mixture_options(args)
        n_left_out = make_testset(args, args.output)
        if args.sound_dir:
            write_sounds(read_manifest(args.output), args.sound_dir)
            print(f"sounds written to {args.sound_dir}: noisy, clean")
        return EXIT_FAILED if n_left_out else 0

    return run("make_testset.py", work)


if __name__ == "__main__":
    raise SystemExit(main())
