"""Shared by all command-line scripts: one-line errors, exit codes, flags."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from utils.util import reuse_freed_memory

LONGEST_MESSAGE = 2000  # characters, a screen
EXIT_FAILED = 1  # some of the work could not be done
EXIT_USAGE = 2  # nothing was begun, because of a mistake in the options or files
EXIT_INTERRUPTED = 130  # shells use it for Ctrl-C
_told: set[str] = set()  # what told_if_slow has said


def underscored(argument: str) -> str:
    """An option with underscores where it has hyphens: --dry-run=x -> --dry_run=x; anything else as it is."""
    name, equals, value = argument.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if name.startswith("--") else argument


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, without the usage text; --an-option may be written for --an_option."""

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        given = list(sys.argv[1:] if args is None else args)
        end = given.index("--") if "--" in given else len(given)
        return super().parse_known_args([*map(self._own_name, given[:end]), *given[end:]], namespace)

    def _own_name(self, argument: str) -> str:
        """The argument as this parser calls it."""
        other, known = underscored(argument), self._option_string_actions
        begins = other.partition("=")[0]
        return other if argument.partition("=")[0] not in known and any(name.startswith(begins) for name in known) else argument

    def error(self, message: str) -> NoReturn:
        words = (word.partition("=")[0] for word in message.split()) if message.startswith("unrecognized") else ()
        unknown = [underscored(word) for word in words if word.startswith("--")]
        close = (difflib.get_close_matches(word, self._option_string_actions, 2) for word in unknown)
        near = dict.fromkeys(name for names in close for name in names)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        self.exit(EXIT_USAGE, f"{self.prog}: {message}{hint} (--help shows how)\n")


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


@contextlib.contextmanager
def told_if_slow(text: str, after_sec: float = 1.5) -> Iterator[None]:
    """Tell somebody who sits at a terminal, once in a process, why nothing happens, where the block takes longer than that."""
    def tell() -> None:
        if text not in _told:
            _told.add(text)
            print(text, file=sys.stderr, flush=True)

    if sys.stderr is None or not sys.stderr.isatty():
        yield
        return
    timer = threading.Timer(after_sec, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


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
