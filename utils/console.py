"""Shared by all command-line scripts: one-line errors, exit codes, flags."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from utils.util import reuse_freed_memory

LONGEST_MESSAGE = 2000  # characters, a screen
EXIT_FAILED = 1  # some of the work could not be done
EXIT_USAGE = 2  # nothing was begun, because of a mistake in the options or files
EXIT_INTERRUPTED = 130  # shells use it for Ctrl-C


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message} (--help shows how)\n")


def flag(text: str) -> bool:
    """Value of a flag that may be written out, as in SEMamba's scripts: --post_processing_PCS True."""
    if text.lower() in ("true", "yes", "on", "1"):
        return True
    if text.lower() in ("false", "no", "off", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} should be True or False")


def one_line(error: BaseException) -> str:
    """The error's message, or its kind where it has none, without line breaks."""
    text, kind = str(error), type(error).__name__
    if text.startswith(f"Caught {kind} in DataLoader worker"):
        text = text.rpartition(f"{kind}: ")[2]  # torch puts the worker's whole traceback before what was said
    text = " ".join(text.split()) or kind
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]} ..."


def first_line(error: BaseException) -> str:
    """The first line of the error's message, at most 160 characters: a compiled package may say pages when it does not load."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def run(program: str, body: Callable[[], int]) -> int:
    """The exit code of `body()`. A user's mistake (ValueError, OSError) becomes one line on stderr and EXIT_USAGE."""
    reuse_freed_memory()
    for stream in (sys.stdout, sys.stderr):  # a name may hold bytes that are no text
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        return body()
    except (ValueError, OSError) as error:
        print(f"{program}: {one_line(error)}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print(f"{program}: stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
