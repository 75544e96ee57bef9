"""Scores by SNR: the same rows however often it is interrupted, failures named and never averaged."""

from __future__ import annotations

import csv
import json
import math
import multiprocessing
import os
import shlex
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile

from evaluation import make_testset, snr_breakdown
from evaluation.reporting.tables import Grid, latex_table, summarize_rows, text_table
from evaluation.testset import score_rows as scoring
from evaluation.testset.manifest import mix, read_manifest, write_sounds
from evaluation.testset.runs import command_line
from evaluation.testset.score_rows import AUDIO_ONLY, AUDIO_VISUAL, NOISY, RowStore, Scorer, Setup
from helpers.corpus import make_corpus
from helpers.tiny import only_line, save_tiny_checkpoint
from models.inference.enhancer import Enhancer
from utils.scores.metrics import METRICS, score_clip
from utils.worker_pool import WorkerPool, run_jobs

FILES = {"scores.csv", "summary.csv", "table.tex", "snr.png", "snr.pdf", "manifest.json", "run.json", "rows.jsonl"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder)
    return folder


def arguments(corpus: Path, checkpoint: Path, output: Path, *more: str) -> list[str]:
    return ["--test_json", str(corpus / "clips.json"), "--noise_json", str(corpus / "noise.json"), "--checkpoint_file",
            str(checkpoint), "--output_dir", str(output), "--kinds", "noise", "--snr_db", "0", "10", "--device", "cpu",
            "--workers", "1", *more]  # fmt: skip


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(corpus: Path, causal_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("results") / "whole"
    assert snr_breakdown.main(arguments(corpus, causal_checkpoint, output)) == 0
    return output


def test_rows_are_what_the_enhancer_makes_of_the_manifests_mixtures(finished: Path, causal_checkpoint: Path) -> None:
    assert {path.name for path in finished.iterdir()} == FILES
    rows = {(row["sample_id"], row["row"]): row for row in table(finished / "scores.csv")}
    testset = read_manifest(finished / "manifest.json")
    assert set(rows) == {(s.sample_id, row) for s in testset.samples for row in (NOISY, AUDIO_ONLY, AUDIO_VISUAL)}
    enhancer, sample = Enhancer.from_checkpoint(causal_checkpoint, "cpu"), testset.samples[0]
    made = mix(sample, testset.max_sec)
    video, mask = enhancer.load_video(sample.video, 1.0)
    wanted = {
        NOISY: made.noisy, AUDIO_ONLY: enhancer.enhance(made.noisy, 16000).wav,
        AUDIO_VISUAL: enhancer.enhance(made.noisy, 16000, video, mask).wav,
    }  # fmt: skip
    for row, wav in wanted.items():
        scores, found = score_clip(made.clean, wav), rows[sample.sample_id, row]
        assert [float(found[metric]) for metric in METRICS] == pytest.approx([scores[metric] for metric in METRICS], abs=1e-5)
        assert found["mixture"] == made.fingerprint and found["speaker"] == sample.speaker
    assert 0 < float(rows[sample.sample_id, AUDIO_VISUAL]["mean_alpha"]) < 1


def test_means_and_gains_are_those_of_the_rows(finished: Path) -> None:
    rows = table(finished / "scores.csv")
    cell = next(
        c for c in table(finished / "summary.csv")
        if (c["row"], c["snr_db"], c["metric"]) == (AUDIO_VISUAL, "10", "si_sdr")
    )  # fmt: skip
    before, after = (
        np.mean([float(r["si_sdr"]) for r in rows if r["row"] == row and r["snr_db"] == "10"]) for row in (NOISY, AUDIO_VISUAL)
    )
    assert float(cell["mean"]) == pytest.approx(after, abs=2e-6)
    assert float(cell["gain"]) == pytest.approx(after - before, abs=4e-6)
    assert float(cell["low"]) <= float(cell["mean"]) <= float(cell["high"])
    assert (cell["n"], cell["n_failed"]) == ("4", "0")


def test_interrupted_it_goes_on_to_the_same_table(
    finished: Path, corpus: Path, causal_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    add, made = RowStore.add, []

    def add_and_stop(self: RowStore, row: dict) -> None:
        add(self, row)
        if len(self.rows) == 10:
            raise KeyboardInterrupt

    command = arguments(corpus, causal_checkpoint, tmp_path / "out")
    monkeypatch.setattr(RowStore, "add", add_and_stop)
    assert snr_breakdown.main(command) == 130
    assert not (tmp_path / "out" / "scores.csv").exists()
    monkeypatch.setattr(RowStore, "add", add)
    with open(tmp_path / "out" / "rows.jsonl", "a") as file:
        file.write('{"sample_id": "half a li')  # as a power cut leaves it
    call = Scorer.__call__
    monkeypatch.setattr(Scorer, "__call__", lambda self, task: made.append(task) or call(self, task))
    assert snr_breakdown.main(command) == 0
    assert len(made) == 24 - 10
    assert "10 of 24 rows were finished before" in capsys.readouterr().out
    for name in ("scores.csv", "summary.csv", "table.tex"):
        assert (tmp_path / "out" / name).read_bytes() == (finished / name).read_bytes(), name


def test_another_models_rows_are_not_mixed_in(finished: Path, corpus: Path, tmp_path: Path, capsys) -> None:
    other = save_tiny_checkpoint(tmp_path / "other.pth", seed=1, model_cfg={"causal": True})
    before = (finished / "rows.jsonl").read_bytes()
    assert snr_breakdown.main(arguments(corpus, other, finished)) == 2
    assert "another checkpoint" in only_line(capsys.readouterr().err)
    assert (finished / "rows.jsonl").read_bytes() == before
    assert snr_breakdown.main(arguments(corpus, other, tmp_path / "out", "--seed", "5", "--snr_db", "0")) == 0
    assert snr_breakdown.main(arguments(corpus, other, tmp_path / "out", "--seed", "6", "--snr_db", "0")) == 2
    assert "another test set" in capsys.readouterr().err


def test_rows_of_other_lists_or_another_recipe_are_not_mixed_in(
    corpus: Path, semamba_checkpoint: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    noises = [str(corpus / name) for name in json.loads((corpus / "noise.json").read_text())]
    listed = tmp_path / "noise.json"
    listed.write_text(json.dumps(noises))
    more = ["--noise_json", str(listed), "--snr_db", "0", "--clips", "1"]
    command = arguments(corpus, semamba_checkpoint, tmp_path / "out", *more)
    assert snr_breakdown.main(command) == 0
    listed.write_text(json.dumps(noises[:1]))  # under the same name
    capsys.readouterr()
    assert snr_breakdown.main(command) == 2
    assert "another test set" in only_line(capsys.readouterr().err)
    listed.write_text(json.dumps(noises, indent=4))  # the same list
    assert snr_breakdown.main(command) == 0
    load = Enhancer.from_checkpoint

    def with_another_recipe(*given) -> Enhancer:
        enhancer = load(*given)
        enhancer.cfg = enhancer.cfg | {"stft_cfg": enhancer.cfg["stft_cfg"] | {"compress_factor": 1.0}}
        return enhancer

    monkeypatch.setattr(Enhancer, "from_checkpoint", with_another_recipe)
    capsys.readouterr()
    assert snr_breakdown.main(command) == 2
    assert "another config" in only_line(capsys.readouterr().err)


def test_a_row_that_failed_altogether_is_tried_again(corpus: Path, causal_checkpoint: Path, tmp_path: Path, capsys) -> None:
    lists = arguments(corpus, causal_checkpoint, tmp_path / "out")
    made = ["--kinds", "noise", "--snr_db", "0", "--clips", "1", "--output", str(tmp_path / "set.json")]
    assert make_testset.main([*lists[:4], *made]) == 0
    held = json.loads((tmp_path / "set.json").read_text())
    video = (tmp_path / held["samples"][0]["video"]).resolve()
    held["samples"][0]["video"] = "late.mp4"
    (tmp_path / "set.json").write_text(json.dumps(held))
    command = [*lists, "--manifest", str(tmp_path / "set.json")]
    assert snr_breakdown.main(command) == 1
    (tmp_path / "late.mp4").symlink_to(video)
    capsys.readouterr()
    assert snr_breakdown.main(command) == 0
    assert "2 of 3 rows were finished before" in capsys.readouterr().out
    rows = table(tmp_path / "out" / "scores.csv")
    assert [row["row"] for row in rows] == [NOISY, AUDIO_ONLY, AUDIO_VISUAL] and not any(row["errors"] for row in rows)
    assert snr_breakdown.main(command) == 0  # and what was made then is kept
    assert "3 of 3 rows were finished before" in capsys.readouterr().out


def test_a_command_is_written_as_a_shell_takes_it() -> None:
    argv = ["--test_json", "my clips.json", "--config", "it's.yaml"]
    assert shlex.split(command_line("evaluation.snr_breakdown", argv)) == ["python", "-m", "evaluation.snr_breakdown", *argv]


def test_damaged_files_of_a_run_are_named(tmp_path: Path) -> None:
    row = {"sample_id": "a", "row": NOISY} | dict.fromkeys(METRICS, 1.0)
    store = RowStore(tmp_path, {"checkpoint": "x"})
    store.add(row)
    with open(tmp_path / "rows.jsonl", "a") as file:
        file.write('{"sample_id": "b"}\n' + json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=r"line 2 of .*rows\.jsonl is damaged"):
        RowStore(tmp_path, {"checkpoint": "x"})
    for content in ("", "[1]", "{"):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(ValueError, match=r"run\.json is damaged"):
            RowStore(tmp_path, {"checkpoint": "x"})


def test_a_sound_only_model_has_two_rows_on_the_same_mixtures(
    finished: Path, semamba_checkpoint: Path, tmp_path: Path, capsys
) -> None:
    command = ["--checkpoint_file", str(semamba_checkpoint), "--manifest", str(finished / "manifest.json"), "--output_dir",
               str(tmp_path / "out"), "--device", "cpu", "--workers", "1"]  # fmt: skip
    assert snr_breakdown.main(command) == 0
    assert "uses no video" in capsys.readouterr().out
    ours, theirs = table(finished / "scores.csv"), table(tmp_path / "out" / "scores.csv")
    assert {row["row"] for row in theirs} == {NOISY, AUDIO_ONLY}
    assert [row for row in ours if row["row"] == NOISY] == [row for row in theirs if row["row"] == NOISY]


def test_failures_are_named_counted_and_left_out_of_every_row(
    corpus: Path, causal_checkpoint: Path, tmp_path: Path, capsys
) -> None:
    command = arguments(corpus, causal_checkpoint, tmp_path / "out")
    lists = command[:4]
    assert make_testset.main([*lists, "--kinds", "noise", "--snr_db", "0", "--output", str(tmp_path / "set.json")]) == 0
    held = json.loads((tmp_path / "set.json").read_text())
    held["samples"][1]["video"] = "gone.mp4"
    (tmp_path / "set.json").write_text(json.dumps(held))
    assert snr_breakdown.main([*command, "--manifest", str(tmp_path / "set.json")]) == 1
    said = capsys.readouterr()
    assert "not scored: bob_take0_noise_+0dB, audio_visual" in said.err and "gone.mp4" in only_line(said.err)
    assert "1 of 12 rows not scored" in said.out
    rows = table(tmp_path / "out" / "scores.csv")
    bad = next(row for row in rows if row["errors"])
    assert bad["pesq"] == "" and "gone.mp4" in bad["errors"]
    for cell in table(tmp_path / "out" / "summary.csv"):
        assert (cell["n"], cell["n_failed"]) == ("3", "1")
        kept = [float(r[cell["metric"]]) for r in rows if r["row"] == cell["row"] and not r["sample_id"].startswith("bob")]
        assert float(cell["mean"]) == pytest.approx(np.mean(kept), abs=2e-6)


def test_a_table_in_which_all_failed_holds_dashes() -> None:
    row = {"sample_id": "a", "clip": "a", "kind": "noise", "snr_db": 0.0, "errors": {}} | dict.fromkeys(METRICS, math.nan)
    summary = summarize_rows([row | {"row": name} for name in (NOISY, AUDIO_ONLY)])
    assert {(cell["n"], cell["n_failed"]) for cell in summary} == {(0, 1)}
    text = latex_table(summary, "noise", "one mixture")
    assert "nan" not in text.lower() and "textbf" not in text


def test_one_snr_stands_there_once() -> None:
    row = {"clip": "a", "errors": {}} | dict.fromkeys(METRICS, 1.0)
    for snrs, wanted in (([0.0], [0.0]), ([0.0, 5.0], [0.0, 5.0, "all"])):
        rows = [row | {"sample_id": f"{snr}{kind}", "row": name, "kind": kind, "snr_db": snr}
                for snr in snrs for kind in ("noise", "one_speaker") for name in (NOISY, AUDIO_ONLY)]  # fmt: skip
        summary = summarize_rows(rows)
        assert Grid(summary).snrs == wanted and Grid(summary).kinds == ["all", "noise", "one_speaker"]
        assert f"noise: {len(snrs)} mixtures" in text_table(summary, "noise")


def test_the_latex_table_is_one(finished: Path) -> None:
    text = (finished / "table.tex").read_text()
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    body = [line for line in text.splitlines() if "&" in line]
    assert {line.count("&") for line in body} == {3}  # row, 0 dB, 10 dB, all
    assert all(line.endswith((r"\\", r"\\[-2pt]")) for line in body)
    assert text.count(r"\textbf{") >= 12


def _setup(finished: Path, checkpoint: Path) -> tuple[list[scoring.Task], Setup]:
    testset = read_manifest(finished / "manifest.json")
    tasks = [scoring.Task(sample, row) for sample in testset.samples[:2] for row in (NOISY, AUDIO_VISUAL)]
    return tasks, Setup(str(checkpoint), None, "cpu", 1, testset.max_sec)


def test_another_process_gives_the_same_rows(finished: Path, causal_checkpoint: Path) -> None:
    tasks, setup = _setup(finished, causal_checkpoint)
    with WorkerPool(Scorer(setup), 1, lost=lambda task: {}) as pool:
        rows = list(pool.map(tasks))
    alone = {(row["sample_id"], row["row"]): row for row in table(finished / "scores.csv")}
    assert {(row["sample_id"], row["row"]) for row in rows} == {(task.sample.sample_id, task.row) for task in tasks}
    for row in rows:
        same = alone[row["sample_id"], row["row"]]
        assert [row[metric] for metric in METRICS] == pytest.approx([float(same[metric]) for metric in METRICS], abs=1e-5)


@pytest.mark.slow
def test_a_process_that_dies_costs_no_row(finished: Path, causal_checkpoint: Path, tmp_path: Path) -> None:
    tasks, setup = _setup(finished, causal_checkpoint)
    found = []
    for row in run_jobs(Scorer(setup), tasks, 2, lost=lambda task: {}):
        if not found:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        found.append(row)
    assert sorted((row["sample_id"], row["row"]) for row in found) == sorted((t.sample.sample_id, t.row) for t in tasks)
    assert not any(row["errors"] for row in found)


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--checkpoint_file", "absent.pth"], "absent.pth"),
        (["--manifest", "absent.json"], "absent.json"),
        (["--workers", "0"], "--workers"),
        (["--test_json", "absent.json"], "absent.json"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_scores(
    corpus: Path, causal_checkpoint: Path, tmp_path: Path, more: list[str], word: str, capsys
) -> None:
    assert snr_breakdown.main(arguments(corpus, causal_checkpoint, tmp_path / "out", *more)) == 2
    assert word in only_line(capsys.readouterr().err)
    assert not (tmp_path / "out" / "scores.csv").exists()


@pytest.fixture
def made_elsewhere(finished: Path, tmp_path: Path) -> Path:
    """What "another program" made of the mixtures of `finished`: the clean sound itself."""
    folder = tmp_path / "elsewhere"
    testset = read_manifest(finished / "manifest.json")
    write_sounds(testset, folder)
    for sample in testset.samples:
        noisy, rate = soundfile.read(folder / "noisy" / f"{sample.sample_id}.wav", dtype="float32")
        made = mix(sample, testset.max_sec)
        assert rate == 16000
        np.testing.assert_array_equal(noisy, made.noisy)
        clean, _ = soundfile.read(folder / "clean" / f"{sample.sample_id}.wav", dtype="float32")
        np.testing.assert_array_equal(clean, made.clean)
    return folder


def test_sounds_of_another_program_are_a_row_beside_ours(
    finished: Path, made_elsewhere: Path, corpus: Path, causal_checkpoint: Path, tmp_path: Path, capsys
) -> None:
    shutil.copytree(finished, tmp_path / "out")
    clean, noisy = made_elsewhere / "clean", made_elsewhere / "noisy"
    command = arguments(corpus, causal_checkpoint, tmp_path / "out", "--others", f"Oracle={clean}", f"Nothing={noisy}")
    assert snr_breakdown.main(command) == 0
    out = capsys.readouterr().out
    assert "24 of 24 rows were finished before" in out and "Oracle" in out
    rows = table(tmp_path / "out" / "scores.csv")
    assert [row for row in rows if row["row"] not in ("Oracle", "Nothing")] == table(finished / "scores.csv")
    scores = {(row["sample_id"], row["row"]): row for row in rows}
    for sample, row in scores:
        if row == NOISY:
            assert [scores[sample, "Nothing"][m] for m in METRICS] == [scores[sample, NOISY][m] for m in METRICS]
            assert float(scores[sample, "Oracle"]["stoi"]) == pytest.approx(1, abs=1e-6)
    summary = Grid(table(tmp_path / "out" / "summary.csv"))
    assert summary.rows == [NOISY, AUDIO_ONLY, AUDIO_VISUAL, "Oracle", "Nothing"]
    assert "Oracle & " in (tmp_path / "out" / "table.tex").read_text()
    # The same sounds are not scored again; others under the same name are refused.
    assert snr_breakdown.main(command) == 0
    assert capsys.readouterr().out.count("rows were finished before") == 3
    assert snr_breakdown.main([*command[:-2], f"Oracle={noisy}"]) == 2
    assert "another sounds" in only_line(capsys.readouterr().err)


def test_sounds_that_are_not_there_are_named(
    finished: Path, made_elsewhere: Path, corpus: Path, causal_checkpoint: Path, tmp_path: Path, capsys
) -> None:
    shutil.copytree(finished, tmp_path / "out")
    gone = sorted((made_elsewhere / "clean").iterdir())[0]
    gone.unlink()
    command = arguments(corpus, causal_checkpoint, tmp_path / "out", "--others")
    assert snr_breakdown.main([*command, f"Oracle={made_elsewhere / 'clean'}"]) == 1
    assert f"{gone.stem}, Oracle: {made_elsewhere / 'clean'} has no {gone.stem}.wav or .flac" in capsys.readouterr().err
    there = made_elsewhere
    for bad in ("Oracle", f"Oracle={tmp_path / 'none'}", f"{NOISY}={there}", f"a/b={there}", f"={there}"):
        assert snr_breakdown.main([*command, bad]) == 2
        assert f"--others {bad}" in only_line(capsys.readouterr().err)
