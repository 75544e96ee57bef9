"""The command `liteavse`: the repository's scripts under one name.

    liteavse enhance street.mp4      what inference_av.py does
    liteavse stream --input_device pulse --output_device pulse     from a microphone to any output, live
    liteavse stream street.mp4       the same, chunk by chunk, as live
    liteavse train --config recipes/LiteAVSE/LiteAVSE_small.yaml --exp_name small
    liteavse evaluate report --help                any command of evaluation/; without a name: which there are
    liteavse app                                   the web page
    liteavse --version

`liteavse COMMAND --help` has a command's options. A path in recipes/, ckpts/ or samples/ that does not exist here is looked
for in the package.
"""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import evaluation as evaluation_package
from utils.console import EXIT_USAGE, underscored

HOME = Path(__file__).resolve().parent  # in an installed package everything lies here; in a clone one folder up
SHIPPED = ("recipes", "ckpts", "samples")
DEFAULT_RECIPE = "recipes/LiteAVSE/LiteAVSE.yaml"
COMMANDS = ("enhance", "stream", "train", "evaluate", "app")
# What a command needs beyond enhancing, by the extra that installs it.
EXTRA_OF = {
    "tensorboard": "train", "webdataset": "train", "matplotlib": "train", "pystoi": "train", "pesq": "train",
    "gradio": "app", "websockets": "app", "PIL": "app", "sounddevice": "live",
}  # fmt: skip


def shipped(argument: str) -> str:
    """The argument, or where the package keeps what it names when that does not exist here; a line says so."""
    if argument.split("/")[0] not in SHIPPED or Path(argument).exists():
        return argument
    for home in (HOME, HOME.parent):
        if (home / argument).exists():
            print(f"{argument} is the one of the package: {home / argument}", flush=True)
            return str(home / argument)
    return argument


def evaluations() -> list[str]:
    """The names of the commands in evaluation/."""
    folder = Path(evaluation_package.__file__).parent
    return sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


def enhance(arguments: Sequence[str]) -> int:
    from inference_av import main

    return main(arguments, "liteavse enhance")


def stream(arguments: Sequence[str]) -> int:
    from liteavse import live

    if not arguments:
        print("liteavse stream: give files, or devices by --input_device and --output_device (--list_devices names them; "
              "--help shows how)", file=sys.stderr)
        return EXIT_USAGE
    if {"-h", "--help"} & set(arguments):
        live.build_parser().print_help()
        print("\nWith files instead of devices, as live, chunk by chunk:\n", flush=True)
    elif any(underscored(argument).split("=")[0] in live.OPTIONS for argument in arguments):
        named = any(argument.split("=")[0] == "--checkpoint_file" for argument in arguments)
        return live.main(arguments if named else ["--checkpoint_file", shipped(str(live.CHECKPOINT)), *arguments])
    from inference_av import main

    return main(["--stream", *arguments], "liteavse stream")


def train(arguments: Sequence[str]) -> int:
    from train_lite import main

    named = any(argument.split("=")[0] == "--config" for argument in arguments)
    return main(arguments if named else ["--config", shipped(DEFAULT_RECIPE), *arguments])


def evaluate(arguments: Sequence[str]) -> int:
    names = evaluations()
    if arguments and arguments[0] in names:
        return importlib.import_module(f"{evaluation_package.__name__}.{arguments[0]}").main(arguments[1:])
    if arguments and not arguments[0].startswith("-"):
        print(f"liteavse evaluate: {arguments[0]!r} is not known; choose from {', '.join(names)}", file=sys.stderr)
        return EXIT_USAGE
    print(f"liteavse evaluate NAME ..., NAME being one of {', '.join(names)}; liteavse evaluate NAME --help says what it does")
    return 0


def app(arguments: Sequence[str]) -> int:
    from app import main

    return main(arguments, "liteavse app")


def version() -> str:
    """What a report of a fault should name: this version, torch's and Python's."""
    import torch

    from liteavse import __version__

    return f"liteavsemamba {__version__}, torch {torch.__version__}, Python {platform.python_version()}"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else EXIT_USAGE
    if arguments[0] in ("-V", "--version"):
        print(version())
        return 0
    if arguments[0] not in COMMANDS:
        print(f"liteavse: {arguments[0]!r} is not known; choose from {', '.join(COMMANDS)}", file=sys.stderr)
        return EXIT_USAGE
    run: Callable[[Sequence[str]], int] = globals()[arguments[0]]
    try:
        return run([shipped(argument) for argument in arguments[1:]])
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in EXTRA_OF:
            raise
        extra = EXTRA_OF[package]
        print(f'liteavse {arguments[0]} needs {package}: pip install "liteavsemamba[{extra}]"', file=sys.stderr)
        return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
