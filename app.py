"""The web page: enhance recordings and compare before and after, or stream microphone and camera live.

    python app.py --checkpoint_file ckpts/LiteAVSE_small.pth --port 7860

The page is served to this machine alone; --host 0.0.0.0 lets others in.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib.util
import os
import shutil
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

import torch

from evaluation.web.folders import visitors_folder
from models.inference.enhancer import Enhancer
from utils import console
from utils.config import load_config
from utils.faces.detectors import settle_method

ROOT = Path(__file__).resolve().parent


def parse(argv: Sequence[str] | None, program: str = "app.py") -> argparse.Namespace:
    parser = console.Parser(program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint_file", type=Path, default=ROOT / "ckpts" / "LiteAVSE_small.pth",
                        help="default: ckpts/LiteAVSE_small.pth")
    parser.add_argument("--config", type=Path, help="only for checkpoints that carry no configuration")
    # A Hugging Face Space says in these variables where it wants the page.
    parser.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), help="default: 127.0.0.1")
    parser.add_argument("--port", type=int, default=os.environ.get("GRADIO_SERVER_PORT", "7860"), help="default: 7860")
    parser.add_argument("--allowed_hosts", nargs="+", metavar="NAME", default=os.environ.get("SPACE_HOST", "").split(),
                        help="further names under which the page is visited, e.g. a proxy's")
    parser.add_argument("--longest_sec", type=float, default=120.0, help="the longest recording that is taken (default: 120)")
    parser.add_argument("--largest_mb", type=int, default=200, help="the largest file that is taken (default: 200)")
    parser.add_argument("--live_visitors", type=int, default=2, help="how many may stream at the same time (default: 2)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads for each recording (default: 1)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    args = parser.parse_args(argv)
    for name in ("longest_sec", "largest_mb", "live_visitors", "threads"):
        if getattr(args, name) <= 0:
            parser.error(f"--{name} is {getattr(args, name):g}, it should be more than 0")
    if not 0 < args.port < 65536:
        parser.error(f"--port is {args.port}, it should be between 1 and 65535")
    return args


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket bound to the address; ValueError where that cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ValueError(f"--host {host} is no address of this machine: {error.strerror}") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"--port {port} is in use already: choose another one, or end what listens there") from None
        raise ValueError(f"--host {host}, --port {port} cannot be listened on: {error.strerror}") from None
    return listener


def serve(args: argparse.Namespace, program: str) -> int:
    for package in ("gradio", "websockets"):
        if importlib.util.find_spec(package) is None:
            remedy = "-r requirements-app.txt" if program == "app.py" else '"liteavsemamba[app]"'
            raise ValueError(f"the page needs the {package} package: pip install {remedy}")
    with listening_socket(args.host, args.port) as listener:
        # One thread each: a recording and a live stream at the same time do not fight for the cores.
        torch.set_num_threads(args.threads)
        cfg = load_config(args.config) if args.config else None
        enhancer = Enhancer.from_checkpoint(args.checkpoint_file, args.device, cfg)
        print(enhancer.describe(), flush=True)
        detector = settle_method("auto")  # now, for its model may have to be fetched
        print(detector.fallback or f"faces: {detector.method}", flush=True)
        enhancer.warm_up()
        # However the page is ended, what visitors left is removed; nohup's wish to outlive a terminal is kept.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
        with contextlib.suppress(KeyboardInterrupt):
            folder = visitors_folder()
            # Gradio reads these as it is imported.
            os.environ |= {"GRADIO_TEMP_DIR": str(folder / "cache"), "GRADIO_ANALYTICS_ENABLED": "False",
                           "HF_HUB_DISABLE_TELEMETRY": "1"}  # fmt: skip
            from evaluation.web.gate import Names
            from evaluation.web.page import Page, serve_page
            from evaluation.web.recording import Limits

            if (ROOT / "samples").is_dir():
                shutil.copytree(ROOT / "samples", folder / "samples")  # Gradio shows no file that lies just anywhere
            page = Page(enhancer, Limits(args.longest_sec, args.largest_mb), folder / "samples", folder,
                        args.live_visitors, args.threads)  # fmt: skip
            names = Names(args.host, tuple(name.lower() for name in args.allowed_hosts))
            # On a Hugging Face Space the page is shown in a frame of theirs.
            frames = "'self' https://huggingface.co" if "SPACE_HOST" in os.environ else "'self'"
            print(f"the page is at http://{args.host}:{args.port}", flush=True)
            serve_page(page, listener, names, frames)
    return 0


def main(argv: Sequence[str] | None = None, program: str = "app.py") -> int:
    """Command line; returns the exit code. `program` is what messages call it."""
    args = parse(argv, program)
    return console.run(program, lambda: serve(args, program))


if __name__ == "__main__":
    raise SystemExit(main())
