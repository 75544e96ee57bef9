"""What all commands share: options with hyphens, and errors of one line that say what was meant."""

from __future__ import annotations

import io
import threading

import pytest

from utils.console import EXIT_USAGE, Parser, told_if_slow


@pytest.fixture
def parser() -> Parser:
    parser = Parser("it")
    parser.add_argument("files", nargs="*")
    parser.add_argument("--dry_run", action="store_true")
    parser.add_argument("--output_dir", default="-a-b")
    return parser


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_is_slow_is_told_once_and_only_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, wanted in ((io.StringIO(), ""), (Terminal(), "compiling\n")):
        monkeypatch.setattr("sys.stderr", stream)
        for _ in range(2):
            with told_if_slow("compiling", after_sec=0.0):
                for thread in threading.enumerate():
                    if isinstance(thread, threading.Timer):
                        thread.join()
        assert stream.getvalue() == wanted
    with told_if_slow("never", after_sec=3600.0):
        pass
    assert "never" not in stream.getvalue()


def test_hyphens_and_underscores_are_the_same_option(parser: Parser) -> None:
    for name in ("--dry_run", "--dry-run", "--dry-r"):
        assert parser.parse_args([name]).dry_run
    assert parser.parse_args(["--output-dir", "a-b"]).output_dir == "a-b"
    assert parser.parse_args(["--output-dir=a-b=c-d"]).output_dir == "a-b=c-d"
    assert parser.parse_args(["--", "--dry-run"]).files == ["--dry-run"]
    parser.add_argument("--no-video", action="store_true")
    assert parser.parse_args(["--no-video"]).no_video


def test_an_unknown_option_is_one_line_that_names_the_nearest(parser: Parser, capsys: pytest.CaptureFixture[str]) -> None:
    for given, meant in (("--output-folder", "did you mean --output_dir?"), ("--dryrun", "did you mean --dry_run?")):
        with pytest.raises(SystemExit) as stop:
            parser.parse_args([given, "x"])
        said = capsys.readouterr().err
        assert stop.value.code == EXIT_USAGE and said.count("\n") == 1 and given in said and meant in said
    with pytest.raises(SystemExit):
        parser.parse_args(["--zzz"])
    assert "did you mean" not in capsys.readouterr().err
