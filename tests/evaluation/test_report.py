"""From a checkpoint to a report: what stands in it is what the scripts found, and every figure is there."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from evaluation import complexity_analysis, report
from evaluation.reporting.document import Document
from helpers.corpus import make_corpus
from helpers.processes import InThisProcess


@pytest.fixture(scope="module")
def arguments(causal_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    clips, noises = make_corpus(tmp_path_factory.mktemp("corpus"))
    return ["--test_json", str(clips), "--noise_json", str(noises), "--kinds", "noise", "--clips", "2", "--checkpoint_file",
            str(causal_checkpoint), "--device", "cpu", "--workers", "1", "--compare_with", "--n_runs", "1", "--duration_sec",
            "0.5"]  # fmt: skip


def test_a_report_holds_what_was_found(
    arguments: list[str], tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(complexity_analysis, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.chdir(tmp_path.parent)
    command = [*arguments, "--snr_db", "-5", "3", "--conditions", "clean", "black", "--output_dir", str(tmp_path)]
    assert report.main(command) == 0
    text = (tmp_path / "report.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Scores by SNR, all kinds of noise", "## Paired tests", "## Degraded video", "## An example", "## Size and speed",
        "## Commands",
    ]  # fmt: skip
    images = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(images) == 3 and all((tmp_path / name).stat().st_size > 5_000 for name in images)
    with open(tmp_path / "snr" / "summary.csv", newline="") as file:
        cell = next(c for c in csv.DictReader(file) if (c["row"], c["snr_db"], c["metric"]) == ("audio_visual", "-5", "stoi"))
    row = next(line for line in text.split("| STOI")[1].splitlines() if line.startswith("| audio-visual"))
    assert f"{float(cell['mean']):.3f} [{float(cell['low']):.3f}, {float(cell['high']):.3f}]" in row.split("|")[2]
    assert "Is audio-visual with a bad video ever worse than audio-only?" in text
    assert "at 3 dB" in (tmp_path / "visual" / "report.txt").read_text()  # the SNR nearest to 0
    scripts = "report", "snr_breakdown", "visual_degradation", "statistical_test", "spectrogram_viz", "complexity_analysis"
    assert all(f"python -m evaluation.{module} " in text for module in scripts)
    ran = text.split("which ran")[1]
    assert str(tmp_path.parent) not in ran and f" {tmp_path.name}/example.png" in ran
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and "<h2>Paired tests</h2>" in page


def test_a_step_that_cannot_begin_stops_the_report(arguments: list[str], tmp_path: Path, capsys) -> None:
    assert report.main([*arguments, "--output_dir", str(tmp_path), "--noise_json", "absent.json"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert "absent.json" in said[0] and "goes on from there" in said[-1]
    assert not (tmp_path / "report.md").exists()


def test_a_condition_that_is_not_known_is_told_before_the_work(arguments: list[str], tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        report.main([*arguments, "--output_dir", str(tmp_path / "out"), "--conditions", "shift_200"])
    assert "shift_200" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_document_is_the_same_in_both_forms(tmp_path: Path) -> None:
    document = Document("a < b")
    document.heading("One & two")
    document.table(["row", "x"], [["a_b", "1 [0, 2]"]])
    document.listing("if a < b:\n    pass\n")
    document.write(tmp_path, "page")
    assert (tmp_path / "page.md").read_text() == (
        "# a < b\n\n## One & two\n\n| row | x |\n| --- | ---: |\n| a_b | 1 [0, 2] |\n\n```\nif a < b:\n    pass\n```\n"
    )
    page = (tmp_path / "page.html").read_text()
    assert "<h2>One &amp; two</h2>" in page and "<td>1 [0, 2]</td>" in page and "a &lt; b:\n    pass</pre>" in page
