"""evaluation.paper: placeholders become the numbers of the result files, or one clear line of error."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from evaluation import paper
from helpers.tiny import only_line

CSV = "row,snr_db,metric,n,mean\nnoisy,0,stoi,5,0.12345\nnoisy,5,stoi,5,0.5\nnoisy,0,si_sdr,5,-1.005\n"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.csv").write_text(CSV)
    (tmp_path / "run" / "scores.csv").write_text("model,pesq,note\nours,1.239,fast\n")
    return tmp_path


@pytest.mark.parametrize(("placeholder", "value"), [
    ("run/summary.csv snr_db=0 metric=stoi : mean", "0.123"),
    ("run/summary.csv snr_db=0\nmetric=stoi\n: mean", "0.123"),
    ("run/summary.csv snr_db=0 metric=si_sdr : mean :+.1f", "-1.0"),
    ("run/summary.csv snr_db=0 metric=stoi : n :.0f", "5"),
    ("run/scores.csv model=ours : pesq", "1.24"),
    ("run/scores.csv model=ours : note", "fast"),
])  # fmt: skip
def test_a_placeholder_becomes_its_value(results: Path, placeholder: str, value: str) -> None:
    assert paper.rendered(f"is {{{{{placeholder}}}}}.", results) == f"is {value}."


def test_what_the_face_gains_is_computed_from_the_scores(results: Path) -> None:
    placeholder = "{{face_gains corpus=GRID kind=all snr_db=all metric=stoi : n :.0f}}"
    assert paper.rendered(placeholder) == "224"
    with pytest.raises(ValueError, match="there is no file"):
        paper.rendered(placeholder, results)


@pytest.mark.parametrize(("placeholder", "said"), [
    ("run/nothing.csv a=1 : mean", "there is no file"),
    ("run/summary.csv snr_db=0 : mean", "2 rows of summary.csv fit"),
    ("run/summary.csv snr_db=20 : mean", "0 rows"),
    ("run/summary.csv speaker=s1 : mean", "no column speaker; summary.csv has row"),
    ("run/summary.csv snr_db=0 metric=stoi : median", "no column median"),
    ("run/summary.csv snr_db=0 metric=stoi", "should be FILE"),
    ("run/summary.csv noisy : mean", "should be FILE"),
    ("run/scores.csv model=ours : note :.2f", "could not convert"),
    ("table of_contents", "no such table"),
])  # fmt: skip
def test_what_cannot_be_rendered_is_said_in_one_line(results: Path, placeholder: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as raised:
        paper.rendered(f"{{{{{placeholder}}}}}", results)
    assert "\n" not in str(raised.value)


def test_whole_tables_are_of_the_variants_that_are_there(results: Path) -> None:
    assert "not tested" in paper.rendered("{{table claims}}", results)
    assert "| full |" not in paper.rendered("{{table ablations}}", results)
    assert "| full |" in paper.rendered("{{table ablations}}")


def test_the_paper_is_what_its_text_and_the_results_make_it() -> None:
    assert (paper.PAPER / "paper.md").read_text(encoding="utf-8") == paper.made()


def test_the_command_writes_the_paper(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placeholder = "{{LiteAVSE_small/snr/summary.csv kind=all snr_db=0 row=noisy metric=stoi : n :.0f}}"
    (results / "paper.in.md").write_text(placeholder, "utf-8")
    monkeypatch.setattr(paper, "PAPER", results)
    assert paper.main([]) == 0
    assert float((results / "paper.md").read_text("utf-8")) > 1
    (results / "paper.in.md").write_text("{{absent.csv : mean}}", "utf-8")
    assert paper.main([]) != 0


def test_printing_without_pandoc_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "pypandoc", None)
    monkeypatch.setattr(paper, "write", lambda: 0)
    assert paper.main(["--print"]) == 2
    assert "pip install pypandoc_binary typst" in only_line(capsys.readouterr().err)
