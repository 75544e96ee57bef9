"""Two CSVs of scores in, an honest comparison out: same samples only, clusters respected, p values corrected."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats

from evaluation import statistical_test
from helpers.tiny import only_line
from utils.scores.stats import mean_interval


def write(path: Path, rows: list[dict]) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def scores(count: int, gain: float, seed: int = 0) -> list[dict]:
    """The plan's own columns; pesq rises by about `gain`, stoi not at all."""
    rng, own = np.random.default_rng(0), np.random.default_rng(seed)
    return [
        {"sample_id": f"clip{n:02}", "pesq": round(2 + rng.random() + gain + 0.1 * own.standard_normal(), 6),
         "stoi": round(0.8 + 0.1 * rng.random() + 0.01 * own.standard_normal(), 6), "si_sdr": round(10 * rng.random(), 6)}
        for n in range(count)
    ]  # fmt: skip


def run(ours: Path, baseline: Path, *more: str) -> int:
    return statistical_test.main(["--ours_csv", str(ours), "--baseline_csv", str(baseline), *more])


def test_blanks_around_cells_do_not_count(tmp_path: Path, capsys) -> None:
    """The plan's own header is "sample_id, pesq, stoi, si_sdr"."""
    plain = write(tmp_path / "a.csv", scores(6, 0.2, seed=1)), write(tmp_path / "b.csv", scores(6, 0.0, seed=2))
    assert run(*plain) == 0
    expected = capsys.readouterr().out.splitlines()[1:]
    for path in plain:
        path.write_text(path.read_text().replace(",", " , "))
    assert run(*plain) == 0 and capsys.readouterr().out.splitlines()[1:] == expected


def test_numbers_are_scipys_and_corrected(tmp_path: Path, capsys) -> None:
    one, other = scores(30, 0.2, seed=1), scores(30, 0.0, seed=2)
    files = write(tmp_path / "a.csv", one), write(tmp_path / "b.csv", list(reversed(other)))
    assert run(*files, "--output_csv", str(tmp_path / "out.csv")) == 0
    with open(tmp_path / "out.csv", newline="") as file:
        found = {row["metric"]: row for row in csv.DictReader(file)}
    assert set(found) == {"pesq", "stoi", "si_sdr"}
    p_values = {}
    for metric in ("pesq", "stoi"):
        x, y = (np.array([row[metric] for row in rows]) for rows in (one, other))
        t, w = scipy_stats.ttest_rel(x, y), scipy_stats.wilcoxon(x, y)
        assert float(found[metric]["p_t"]) == pytest.approx(t.pvalue, rel=1e-4)
        assert float(found[metric]["p_wilcoxon"]) == pytest.approx(w.pvalue, rel=1e-4)
        assert float(found[metric]["cohens_d"]) == pytest.approx(np.mean(x - y) / np.std(x - y, ddof=1), abs=2e-6)
        assert [float(found[metric][key]) for key in ("low", "high")] == pytest.approx(mean_interval(x - y), abs=1e-6)
        p_values[metric] = t.pvalue
    assert float(found["pesq"]["p_t_holm"]) == pytest.approx(3 * p_values["pesq"], rel=1e-4)
    assert (float(found["si_sdr"]["p_t"]), float(found["si_sdr"]["mean"])) == (1, 0)
    verdicts = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if re.match("PESQ-WB|STOI|SI-SDR", line)}
    assert verdicts["PESQ-WB"].endswith("better") and verdicts["STOI"].endswith("no difference shown")


def mixtures(gain: dict[str, float], clips: int, seed: int) -> list[dict]:
    """Several mixtures of each clip, speakers whose gains differ."""
    rng = np.random.default_rng(seed)
    return [
        {"sample_id": f"{speaker}{n}@{snr}", "clip": f"{speaker}{n}", "speaker": speaker, "row": "ours",
         "mixture": f"{n}{snr}", "pesq": 2 + 0.05 * snr + more + 0.02 * rng.standard_normal()}
        for speaker, more in gain.items() for n in range(clips) for snr in (0, 5, 10)
    ]  # fmt: skip


def test_mixtures_of_a_clip_and_clips_of_a_speaker_are_no_independent_samples(tmp_path: Path, capsys) -> None:
    gains = {"a": 0.3, "b": 0.05, "c": 0.3, "d": 0.02, "e": 0.25, "f": 0.04}
    one, other = mixtures(gains, 4, 1), mixtures(dict.fromkeys(gains, 0.0), 4, 2)
    files = write(tmp_path / "a.csv", one), write(tmp_path / "b.csv", other)
    assert run(*files, "--output_csv", str(tmp_path / "out.csv")) == 0
    said = capsys.readouterr().out
    assert "24 clips are compared" in said and "clips share speakers (6 for 24)" in said
    assert "Student's t over 6 speakers" in said
    with open(tmp_path / "out.csv", newline="") as file:
        (found,) = csv.DictReader(file)
    assert found["n"] == "24"
    difference = np.array([a["pesq"] - b["pesq"] for a, b in zip(one, other, strict=True)]).reshape(24, 3).mean(1)
    wanted = mean_interval(difference, groups=np.repeat(list(gains), 4))
    assert [float(found["low"]), float(found["high"])] == pytest.approx(wanted, abs=1e-6)
    alone = mean_interval(difference)
    assert wanted[1] - wanted[0] > 1.5 * (alone[1] - alone[0])


def test_one_speaker_says_nothing_about_others(tmp_path: Path, capsys) -> None:
    files = [write(tmp_path / f"{n}.csv", mixtures({"a": n * 0.1}, 5, n)) for n in (1, 0)]
    assert run(*files) == 0
    assert "ONE speaker" in capsys.readouterr().out


def test_missing_scores_are_counted_and_the_rest_goes_on(tmp_path: Path, capsys) -> None:
    one, other = scores(12, 0.2, seed=1), scores(12, 0.0, seed=2)
    one[3]["pesq"], other[4]["pesq"], other[5]["pesq"] = "", "nan", "inf"
    assert run(write(tmp_path / "a.csv", one), write(tmp_path / "b.csv", other)) == 1
    said = capsys.readouterr().out
    assert "pesq: 3 of 12 samples have no score" in said and "stoi:" not in said
    line = next(line for line in said.splitlines() if line.startswith("PESQ-WB "))
    assert line.split()[-4:-2] == ["9", "3"] or " 9         3 " in line


def refused(tmp_path: Path, one: list[dict], other: list[dict], capsys, *more: str) -> str:
    assert run(write(tmp_path / "a.csv", one), write(tmp_path / "b.csv", other), *more) == 2
    return only_line(capsys.readouterr().err)


def test_csvs_of_other_samples_are_refused(tmp_path: Path, capsys) -> None:
    one, other = scores(6, 0.1), scores(6, 0.0)
    assert "1 only in" in refused(tmp_path, one, other[:-1], capsys)
    one, other = mixtures({"a": 0.1}, 2, 1), mixtures({"a": 0.1}, 2, 1)
    other[2]["mixture"] = "another"
    assert "a0@10" in refused(tmp_path, one, other, capsys)


def test_unusable_csvs_are_refused(tmp_path: Path, capsys) -> None:
    good = scores(4, 0.0)
    assert "sample_id" in refused(tmp_path, [{"name": "x", "pesq": 1}], good, capsys)
    assert "has no row 'noisy'" in refused(tmp_path, good, good, capsys, "--ours_row", "noisy")
    assert "clip00 more than once" in refused(tmp_path, good + good, good, capsys)
    assert "pesq of clip01" in refused(tmp_path, [good[0], good[1] | {"pesq": "high"}, *good[2:]], good, capsys)
    rows = [row | {"row": name} for name in ("noisy", "ours") for row in good]
    assert "--ours_row: noisy, ours" in refused(tmp_path, rows, good, capsys)
    assert "no metric in common" in refused(tmp_path, [{"sample_id": "x", "pesq": 1}], [{"sample_id": "x", "stoi": 1}], capsys)
    assert run(tmp_path / "absent.csv", tmp_path / "b.csv") == 2
    assert "absent.csv does not exist" in only_line(capsys.readouterr().err)


def test_csvs_that_a_spreadsheet_or_a_hand_has_been_at(tmp_path: Path, capsys) -> None:
    good = write(tmp_path / "good.csv", scores(8, 0.0))
    marked = tmp_path / "marked.csv"
    marked.write_text(good.read_text(), encoding="utf-8-sig")
    assert run(marked, good) == 0
    capsys.readouterr()
    lines = good.read_text().splitlines()
    for line in ("clip03,2.0", lines[4] + ",1"):
        (tmp_path / "bad.csv").write_text("\n".join([*lines[:4], line, *lines[5:]]))
        assert run(tmp_path / "bad.csv", good) == 2
        assert "line 5 of" in only_line(capsys.readouterr().err)
    assert run(good, good, "--ours_row", "") == 2
    assert "has no row ''" in only_line(capsys.readouterr().err)


def test_a_row_is_chosen_from_each_csv(tmp_path: Path, capsys) -> None:
    rows = [row | {"row": "noisy"} for row in scores(8, 0.0)] + [row | {"row": "ours"} for row in scores(8, 0.5)]
    path = write(tmp_path / "a.csv", rows)
    assert run(path, path, "--ours_row", "ours", "--baseline_row", "noisy") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("PESQ-WB "))
    assert "+0.5000" in line
