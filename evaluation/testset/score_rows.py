"""Scores a test set row by row in parallel processes. Finished rows are kept, so that a run can be stopped and continued."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from evaluation.testset.conditions import CONDITIONS, NONE, OTHER_FACE, DegradedCrops, degrade
from evaluation.testset.manifest import SAMPLE_RATE_HZ, Mixture, Sample, mix
from models.inference.enhancer import Enhancer
from models.inference.results import EnhanceResult
from models.timing import video_frame_index
from utils.console import one_line
from utils.media.sound import load_audio
from utils.scores.dnsmos import DNSMOS
from utils.scores.metrics import METRICS, TABLE, require_scorers, score_clip
from utils.util import append_whole, write_json
from utils.worker_pool import WHY_LOST, run_jobs

NOISY, AUDIO_ONLY, AUDIO_VISUAL = "noisy", "audio_only", "audio_visual"
COLUMNS = ("sample_id", "row", "clip", "speaker", "kind", "snr_db", "mixture", *METRICS, "mean_alpha", "note", "errors")


class Task(NamedTuple):
    """What one process does at a time: a sample, and a row: NOISY, AUDIO_ONLY, AUDIO_VISUAL, one of CONDITIONS or of others."""

    sample: Sample
    row: str


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a process needs before it can score."""

    checkpoint: str
    config: Mapping | None
    device: str
    threads: int
    max_sec: float
    dnsmos: tuple[str | None, str | None] = (None, None)  # models of P.835 and P.808, with which sounds are rated besides
    others: Mapping[str, str] = dataclasses.field(default_factory=dict)  # row: folder of what another program made


class Scorer:
    """Makes a sample's mixture, enhances it as the row says and scores the result.

    enhancer: None loads that of `setup` at the first task, so that each process loads its own.
    """

    def __init__(self, setup: Setup, enhancer: Enhancer | None = None) -> None:
        self._setup = setup
        if enhancer is not None:
            self._enhancer = enhancer
        self._mixtures: dict[Sample, Mixture] = {}
        self._loaded: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # crops and mask of the last few videos

    def __call__(self, task: Task) -> dict:
        """A row as it is stored. A sample that cannot be enhanced or scored has None for each metric, and the reason."""
        sample, row = task
        found = _about(task)
        try:
            mixture = self._mixture(sample)
            found["mixture"] = mixture.fingerprint
            estimate = mixture.noisy
            if row in self._setup.others:
                estimate = load_made(Path(self._setup.others[row]), sample.sample_id)
            elif row != NOISY:
                shown = self._shown(sample, row, len(mixture.noisy) / SAMPLE_RATE_HZ)
                crops, mask = (shown.crops, shown.mask) if shown else (None, None)
                result = self._enhancer.enhance(mixture.noisy, SAMPLE_RATE_HZ, crops, mask)
                estimate = result.wav
                found["note"] = "; ".join(result.notes)
                if shown is not None:
                    found |= self._alpha(result, shown)
            scores = score_clip(mixture.clean, estimate, SAMPLE_RATE_HZ, align=row in self._setup.others)
            found |= {} if self._dnsmos is None else self._dnsmos(estimate)
        except (ValueError, OSError) as error:
            return found | failed(one_line(error))
        return found | {m: None if math.isnan(scores[m]) else scores[m] for m in METRICS} | {"errors": scores["errors"]}

    @functools.cached_property
    def _enhancer(self) -> Enhancer:
        torch.set_num_threads(self._setup.threads)
        return Enhancer.from_checkpoint(self._setup.checkpoint, self._setup.device, self._setup.config)

    @functools.cached_property
    def _dnsmos(self) -> DNSMOS | None:
        return DNSMOS(*self._setup.dnsmos) if any(self._setup.dnsmos) else None

    def _mixture(self, sample: Sample) -> Mixture:
        if sample not in self._mixtures:
            self._mixtures = {sample: mix(sample, self._setup.max_sec)}  # the rows of a sample follow one another
        return self._mixtures[sample]

    def _crops(self, path: str, masked: Sequence[tuple[int, int]], duration_sec: float) -> tuple[np.ndarray, np.ndarray]:
        if path not in self._loaded:
            if len(self._loaded) > 3:
                self._loaded.clear()
            self._loaded[path] = load_crops(self._enhancer, path, masked, duration_sec)
        return self._loaded[path]

    def _shown(self, sample: Sample, row: str, duration_sec: float) -> DegradedCrops | None:
        """The crops that the model sees in this row; None where the video is withheld."""
        condition = sample.visual if row == AUDIO_VISUAL else row
        if condition in (AUDIO_ONLY, NONE):
            return None
        if sample.video is None:
            raise ValueError(f"{sample.clip} has no video")
        other = None
        if condition == OTHER_FACE and sample.other_video is not None:
            other = self._crops(sample.other_video, sample.other_masked, duration_sec)
        crops, mask = self._crops(sample.video, sample.masked, duration_sec)
        return degrade(condition, crops, mask, self._enhancer.video_fps, sample.seed, other)

    def _alpha(self, result: EnhanceResult, crops: DegradedCrops) -> dict:
        """The clip's mean alpha; for each video frame alpha, whether the crop is corrupt, and whether a face is seen."""
        count = len(crops.crops)
        frames = np.zeros(count)
        if result.alpha is not None:
            stft = self._enhancer.cfg["stft_cfg"]
            index = video_frame_index(len(result.alpha), stft["hop_size"], stft["sampling_rate"], self._enhancer.video_fps)
            index = index.numpy()
            shown = index < count
            sums = np.bincount(index[shown], result.alpha[shown], count)
            frames = sums / np.maximum(np.bincount(index[shown], minlength=count), 1)
        return {
            "mean_alpha": result.mean_alpha or 0.0, "alpha": [round(float(a), 5) for a in frames],
            "corrupt": crops.corruption.astype(int).tolist(), "seen": crops.mask.astype(int).tolist(),
        }  # fmt: skip


def load_crops(
    enhancer: Enhancer, path: str, masked: Sequence[tuple[int, int]], duration_sec: float
) -> tuple[np.ndarray, np.ndarray]:
    """Crops and mask of a test set's video, without a face in the [first, end) runs `masked`, too."""
    crops, mask = enhancer.load_video(path, duration_sec)
    for first, end in masked:
        mask[first:end] = False
    return crops, mask


def load_made(folder: Path, sample_id: str) -> np.ndarray:
    """What another program made of a mixture [L]: the folder's `sample_id`.wav or .flac, at any rate."""
    for suffix in (".wav", ".flac"):
        if (folder / f"{sample_id}{suffix}").is_file():
            return load_audio(folder / f"{sample_id}{suffix}", SAMPLE_RATE_HZ)
    raise FileNotFoundError(f"{folder} has no {sample_id}.wav or .flac")


def _about(task: Task) -> dict:
    """The fields of a row that are known before it is scored."""
    sample = task.sample
    return {
        "sample_id": sample.sample_id, "row": task.row, "clip": sample.clip, "speaker": sample.speaker, "kind": sample.kind,
        "snr_db": sample.snr_db, "mixture": "", "note": "",
    }  # fmt: skip


def failed(reason: str) -> dict:
    """The scores of a row that has none."""
    return {**dict.fromkeys(METRICS), "errors": dict.fromkeys(METRICS, reason)}


class RowStore:
    """The finished rows of a run, a line of JSON each in rows.jsonl. Half a line, which a crash can leave, is removed.

    A row in which every metric failed is not finished, since the next run may find what was missing. Where a row has two
    lines the later one counts.

    identity: all that the rows depend on. ValueError when the folder holds rows of another identity.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str]) -> None:
        self._path, described = folder / "rows.jsonl", folder / "run.json"
        if described.is_file():
            try:
                held = dict(json.loads(described.read_text(encoding="utf-8")))
            except (ValueError, TypeError):
                raise ValueError(f"{described} is damaged; choose another --output_dir or delete the folder") from None
            for key, value in identity.items():
                if held.get(key) != value:
                    raise ValueError(f"{folder} holds scores with another {key}; choose another --output_dir or delete it")
        else:
            write_json(described, dict(identity))
        content = self._path.read_bytes() if self._path.is_file() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with open(self._path, "r+b") as file:
                file.truncate(len(whole))
        rows = {}
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                row = json.loads(line)
                rows[row["sample_id"], row["row"]] = row, any(row[metric] is not None for metric in METRICS)
            except (ValueError, TypeError, KeyError):
                raise ValueError(f"line {number} of {self._path} is damaged; delete that line, its row is made again") from None
        self.rows = {key: row for key, (row, finished) in rows.items() if finished}

    def add(self, row: dict) -> None:
        """Append one row; it is on the disk when this returns."""
        line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
        append_whole(self._path, line.encode(), sync=True)
        self.rows[row["sample_id"], row["row"]] = row


def file_sha256(path: str | os.PathLike) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def check_rows(rows: Sequence[str], others: Mapping[str, str]) -> None:
    """ValueError for a row that cannot be made."""
    for row in rows:
        if row not in (NOISY, AUDIO_ONLY, AUDIO_VISUAL, *CONDITIONS, *others):
            raise ValueError(f"row {row!r} is not known; there are noisy, audio_only, audio_visual, {', '.join(CONDITIONS)}")


def score_rows(
    samples: Sequence[Sample], rows: Sequence[str], store: RowStore, setup: Setup, workers: int, enhancer: Enhancer
) -> list[dict]:
    """Every row of every sample, in this order, with NaN for a missing score. Rows that `store` has are not scored again.

    workers: processes, each with setup.threads threads. 1 works in this process, which ends if PESQ's C code crashes.
    """
    require_scorers()
    check_rows(rows, setup.others)
    wanted = [Task(sample, row) for sample in samples for row in rows]
    todo = [task for task in wanted if (task.sample.sample_id, task.row) not in store.rows]
    if len(todo) < len(wanted):
        print(f"{len(wanted) - len(todo)} of {len(wanted)} rows were finished before")
    workers = min(workers, len(todo))
    scorer = Scorer(setup, enhancer if workers < 2 else None)
    results = run_jobs(scorer, todo, workers, lost=lambda task: _about(task) | failed(WHY_LOST))
    with tqdm(total=len(wanted), initial=len(wanted) - len(todo), unit="row", disable=None) as bar:
        for row in results:
            store.add(row)
            bar.update(1)
    return [with_nan(store.rows[task.sample.sample_id, task.row]) for task in wanted]


def with_nan(row: Mapping) -> dict:
    return {**row, **{metric: math.nan if row[metric] is None else row[metric] for metric in METRICS}}


def metrics_of(rows: Sequence[Mapping]) -> tuple[str, ...]:
    """METRICS, and what else the rows were rated by."""
    return METRICS + tuple(metric for metric in TABLE if metric not in METRICS and any(metric in row for row in rows))


def report_failures(rows: Sequence[Mapping]) -> int:
    """Names on stderr every row that lacks a score; returns how many these are."""
    bad = [row for row in rows if row["errors"]]
    for row in bad:
        reasons = "; ".join(sorted({f"{metric}: {why}" for metric, why in row["errors"].items()}))
        if len(row["errors"]) == len(METRICS) and len(set(row["errors"].values())) == 1:
            reasons = next(iter(row["errors"].values()))
        print(f"not scored: {row['sample_id']}, {row['row']}: {reasons}", file=sys.stderr)
    return len(bad)
