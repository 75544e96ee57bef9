"""From a checkpoint to a report: what stands in it is what the scripts found, and every figure is there."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from evaluation import complexity_analysis, report, snr_breakdown
from evaluation.reporting.document import Document
from evaluation.testset import runs, score_rows
from helpers.corpus import make_corpus
from helpers.processes import InThisProcess
from utils.util import read_csv


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
        "## Scores by SNR: noise", "## Paired tests", "## Degraded video", "## Examples", "## Size and speed", "## Commands",
    ]  # fmt: skip
    images = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(images) == 3 and all((tmp_path / name).stat().st_size > 5_000 for name in images)
    with open(tmp_path / "snr" / "summary.csv", newline="") as file:
        cell = next(c for c in csv.DictReader(file) if (c["row"], c["snr_db"], c["metric"]) == ("audio_visual", "-5", "stoi"))
    row = next(line for line in text.split("STOI: 2 mixtures at each SNR")[1].splitlines() if line.startswith("| audio-visual"))
    assert f"{float(cell['mean']):.3f} [{float(cell['low']):.3f}, {float(cell['high']):.3f}]" in row.split("|")[2]
    assert "Is audio-visual with a bad video ever worse than audio-only?" in text
    assert "at 3 dB" in (tmp_path / "visual" / "report.txt").read_text()  # the SNR nearest to 0
    scripts = "report", "snr_breakdown", "visual_degradation", "statistical_test", "complexity_analysis"
    assert all(f"python -m evaluation.{module} " in text for module in scripts)
    ran = text.split("which ran")[1]
    assert str(tmp_path.parent) not in ran and f" {tmp_path.name}/visual" in ran
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and "<h2>Paired tests</h2>" in page
    assert page.index("<table>") < page.index("<img") < page.index("<h2>")  # it opens with a table and a figure
    # Noisy, enhanced and clean can be listened to: they are the same mixture, and the enhanced one is what the model makes.
    assert page.count("data:audio/flac;base64,") == 3
    sounds = {name: soundfile.read(tmp_path / "examples" / f"noise_{name}.flac")[0] for name in ("noisy", "enhanced", "clean")}
    assert len({len(wave) for wave in sounds.values()}) == 1 and np.abs(sounds["noisy"] - sounds["enhanced"]).max() > 1e-3
    for figure in ("snr/snr", "visual/visual", "examples/example"):
        assert (tmp_path / f"{figure}.pdf").read_bytes().startswith(b"%PDF") and f"({figure}.pdf)" in text, figure


def test_sounds_are_rated_where_dnsmos_is_given(arguments: list[str], tmp_path: Path, monkeypatch) -> None:
    class Rater:
        """In the place of Microsoft's models, which are not ours to keep here: the sound's level as its rating."""

        def __init__(self, p835, p808) -> None:
            assert (p835, p808) == (str(tmp_path / "sig.onnx"), None)

        def __call__(self, wav: np.ndarray) -> dict[str, float]:
            return {"dnsmos_ovr": float(np.sqrt(np.mean(wav**2)))}

    command = [*arguments[: arguments.index("--compare_with")], "--snr_db", "0", "--dnsmos_p835", str(tmp_path / "sig.onnx")]
    output = tmp_path / "out"
    command += ["--output_dir", str(output)]
    assert snr_breakdown.main(command) == 2 and not (output / "rows.jsonl").exists()  # said before anything is scored
    for module in (score_rows, runs):
        monkeypatch.setattr(module, "DNSMOS", Rater)
    (tmp_path / "sig.onnx").write_bytes(b"a model")
    assert snr_breakdown.main(command) == 0
    rows = read_csv(output / "scores.csv")
    means = {c["row"]: float(c["mean"]) for c in read_csv(output / "summary.csv") if c["metric"] == "dnsmos_ovr"}
    for name, mean in means.items():
        assert mean == pytest.approx(np.mean([float(row["dnsmos_ovr"]) for row in rows if row["row"] == name]), abs=1e-5)
    assert set(means) == {"noisy", "audio_only", "audio_visual"} and "DNSMOS OVR" in (output / "table.tex").read_text()
    (tmp_path / "sig.onnx").write_bytes(b"another model")
    assert snr_breakdown.main(command) == 2  # its ratings are others


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
