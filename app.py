"""The web page: enhance recordings and hear what it did, or stream microphone and camera live.

    python app.py --checkpoint_file ckpts/LiteAVSE_small.pth --port 7860

It is served to this machine alone; --host 0.0.0.0 lets others in.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shutil
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from models.inference.enhancer import Enhancer
from utils import console
from utils.config import load_config
from utils.faces.detectors import settle_method

ROOT = Path(__file__).resolve().parent


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = console.Parser("app.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint_file", type=Path, default=ROOT / "ckpts" / "LiteAVSE_small.pth",
                        help="default: ckpts/LiteAVSE_small.pth")
    parser.add_argument("--config", type=Path, help="only for checkpoints that carry no configuration")
    # A Hugging Face Space says in these variables where it wants the page.
    parser.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), help="default: 127.0.0.1")
    parser.add_argument("--port", type=int, default=os.environ.get("GRADIO_SERVER_PORT", "7860"), help="default: 7860")
    parser.add_argument("--longest_sec", type=float, default=120.0, help="of a recording (default: 120)")
    parser.add_argument("--largest_mb", type=int, default=200, help="of a file (default: 200)")
    parser.add_argument("--live_visitors", type=int, default=2, help="streaming at the same time (default: 2)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of each enhancement (default: 1)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    args = parser.parse_args(argv)
    for name in ("longest_sec", "largest_mb", "live_visitors", "threads"):
        if getattr(args, name) <= 0:
            parser.error(f"--{name} is {getattr(args, name):g}, it should be more than 0")
    if not 0 < args.port < 65536:
        parser.error(f"--port is {args.port}, it should be between 1 and 65535")
    return args


def serve(args: argparse.Namespace) -> int:
    for package in ("gradio", "websockets"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"the page needs the {package} package: pip install -r requirements-app.txt")
    # One thread each: a recording and a live stream at the same time do not fight for the cores.
    torch.set_num_threads(args.threads)
    enhancer = Enhancer.from_checkpoint(args.checkpoint_file, args.device, load_config(args.config) if args.config else None)
    print(enhancer.describe(), flush=True)
    detector = settle_method("auto")  # now, for its model may have to be fetched
    print(f"faces: {detector.fallback or detector.method}", flush=True)
    enhancer.warm_up()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # however it is ended, what visitors left is removed
    with tempfile.TemporaryDirectory(prefix="liteavse_app_") as folder:
        # All that visitors give and get lies in here, and goes when the server does. Gradio reads this as it is imported.
        cache, samples = Path(folder, "cache"), Path(folder, "samples")
        os.environ |= {"GRADIO_TEMP_DIR": str(cache), "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
        from evaluation.web.page import Page, serve_page
        from evaluation.web.recording import Limits

        if (ROOT / "samples").is_dir():
            shutil.copytree(ROOT / "samples", samples)  # gradio shows no file that lies just anywhere
        page = Page(enhancer, Limits(args.longest_sec, args.largest_mb), samples, args.live_visitors, Path(folder))
        try:
            with contextlib.suppress(KeyboardInterrupt):  # how a server ends; gradio only takes it in the last of its steps
                serve_page(page, args.host, args.port)
        finally:
            page.pool.close()
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    return console.run("app.py", lambda: serve(args))


if __name__ == "__main__":
    raise SystemExit(main())
