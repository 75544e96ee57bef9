"""Many recordings one after the other: a line for each and a table of all, shared among several processes."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from models.inference.enhancer import Enhancer
from models.inference.files.enhance_file import enhance_file
from models.inference.files.jobs import Job, is_there
from models.inference.files.progress import Progress
from models.inference.results import Outcome
from models.inference.upper_band import BANDS, FULL
from models.inference.waveform import noisy_share
from utils.console import EXIT_FAILED, one_line
from utils.distributed import Group
from utils.util import append_whole, atomic_write, clear_unfinished

TABLE = "enhanced.csv"  # in the output folder
AS_NAMES = {"encoding": "utf-8", "errors": "surrogateescape"}  # of a text file with names in it, whatever their bytes are
DONE, FAILED, SKIPPED = "done", "failed", "skipped"

# What the table says of a recording that was enhanced, by column.
OUTCOME_COLUMNS: dict[str, Callable[[Outcome], str]] = {
    "duration_sec": lambda outcome: f"{outcome.duration_sec:.4f}",
    "seconds": lambda outcome: f"{outcome.seconds:.3f}",
    "rtf": lambda outcome: f"{outcome.rtf:.4f}",
    "masked_share": lambda outcome: "" if outcome.alpha is None else f"{outcome.masked_share:.4f}",
    "mean_alpha": lambda outcome: "" if outcome.alpha is None else f"{outcome.mean_alpha:.4f}",
    "faces": lambda outcome: "" if outcome.faces is None else f"{outcome.faces.found}" if outcome.faces.looked else "",
    "detector": lambda outcome: "" if outcome.faces is None else outcome.faces.detector,
    "av_offset_ms": lambda outcome: "" if outcome.faces is None else f"{outcome.faces.offset_ms:.0f}",
    "notes": lambda outcome: "; ".join(outcome.notes),
}
COLUMNS = ("file", "video", "output", "status", "reason", *OUTCOME_COLUMNS)

Row = Mapping[str, str]


def add_file_options(parser: argparse.ArgumentParser) -> None:
    """Add what every script that enhances files can do with its outputs."""
    parser.add_argument("--band", choices=BANDS, default=FULL, help="full: sound above 16 kHz comes back at its own sampling "
                        "rate, and its band above 8 kHz follows the model's gain; 16k: at 16 kHz, without it (default: full)")
    parser.add_argument("--keep_sample_rate", action="store_true",
                        help="the output has the input's sampling rate; with --band 16k it is empty above 8 kHz")
    parser.add_argument("--attenuation_limit_db", type=limit_db, metavar="DB",
                        help="turn noise down by this much at most: some of the input is mixed back (0 gives the input)")
    parser.add_argument("--skip_existing", action="store_true", help="leave out recordings whose output already exists")


def limit_db(text: str) -> float:
    """Read the value of --attenuation_limit_db."""
    try:
        noisy_share(float(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(one_line(error)) from None
    return float(text)


def introduce(enhancer: Enhancer, keep_sample_rate: bool, band: str, group: Group) -> None:
    """Print the model, the number of processes, and what --keep_sample_rate with --band 16k does not do; once."""
    if not group.is_main:
        return
    print(enhancer.describe() + (f", one of {group.size} processes" if group.size > 1 else ""), flush=True)
    if keep_sample_rate and band != FULL:
        half_khz = enhancer.sample_rate / 2000
        print(f"outputs have their inputs' sampling rates, and are empty above {half_khz:g} kHz", flush=True)


def row_of(job: Job, status: str, outcome: Outcome | None = None, reason: str = "") -> Row:
    """Return the table's row for a recording."""
    row = {"file": str(job.audio), "video": str(job.video or ""), "output": str(job.output), "status": status, "reason": reason}
    return row | {name: "" if outcome is None else tell(outcome) for name, tell in OUTCOME_COLUMNS.items()}


class Table:
    """A CSV file of rows. Each row is added in one write as soon as it is known, so the file can be read at any moment."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.rows = path, []

    def write(self, rows: Sequence[Row]) -> None:
        """Replace the file by one with these rows; a failure leaves the old file."""
        self.rows = list(rows)
        if self.path is not None:
            with atomic_write(self.path) as temporary, open(temporary, "w", newline="", **AS_NAMES) as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(self.rows)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        if self.path is not None:
            line = io.StringIO(newline="")
            csv.DictWriter(line, COLUMNS).writerow(row)
            append_whole(self.path, line.getvalue().encode(**AS_NAMES))

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def read_rows(folder: Path) -> dict[str, Row]:
    """Return {output: row} of what earlier runs have left in `folder`; incomplete lines are ignored."""
    rows: dict[str, Row] = {}
    for path in [folder / TABLE, *sorted(folder.glob(_part_name("*")))]:
        if path.is_file():
            with open(path, newline="", **AS_NAMES) as file, contextlib.suppress(csv.Error):
                for row in csv.DictReader(file):
                    if set(row) == set(COLUMNS) and None not in row.values():
                        rows[row["output"]] = row
    return rows


def _part_name(rank: int | str) -> str:
    return f"{Path(TABLE).stem}.rank{rank}.csv"


def report_line(job: Job, result: Outcome) -> str:
    """Return one line that says what was done to a recording."""
    parts = [f"{result.duration_sec:.2f} s", f"{1 / max(result.rtf, 1e-6):.1f} x real time"]
    if result.alpha is not None:
        parts += [f"mean alpha {result.mean_alpha:.2f}", f"masked {100 * result.masked_share:.0f} %"]
    if result.faces is not None:
        parts.append(result.faces.summary())
    return f"{job.label}: {', '.join(parts)} -> {job.output}"


def run_jobs(
    enhancer: Enhancer, jobs: Sequence[Job], work: Callable[[Enhancer, Job], Outcome] = enhance_file,
    table_folder: Path | None = None, skip_existing: bool = False, group: Group | None = None,
    progress: Progress | None = None,
) -> int:
    """Do all jobs and print a line for each; a job that fails stops no other. Exit code: 0, or EXIT_FAILED if any failed.

    `work` does one job: `enhance_file`, `stream_file`, or either with arguments of its own bound to it. TABLE is written in
    `table_folder`. skip_existing leaves out jobs whose output exists. In a group of processes each does every size-th job;
    rows and failures are collected in the first process, and all return the same exit code. `progress` is told when a
    recording begins and ends; `work` itself calls its `reach`.
    """
    group, progress = group or Group(), progress or Progress({}, quiet=True)
    kept = _kept_rows(jobs, table_folder) if skip_existing and table_folder is not None else {}
    table = _begin_table(jobs, table_folder, kept, group)
    share = list(jobs)[group.rank :: group.size]
    enhancer.warm_up()
    said: set[str] = set()
    for job in share:
        if skip_existing and is_there(job.output):
            if str(job.output) not in kept:
                table.add(row_of(job, SKIPPED, reason="the output existed"))
            continue
        progress.begin(job)
        try:
            job.output.is_file()  # a name that the file system does not take fails before any work is done
            result = work(enhancer, job)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            table.add(row_of(job, FAILED, reason=one_line(error)))
            tqdm.write(f"failed: {job.label}: {one_line(error)}", file=sys.stderr)
            continue
        finally:
            progress.end()
        table.add(row_of(job, DONE, result))
        tqdm.write(report_line(job, result))
        if result.faces is not None and result.faces.fallback and result.faces.fallback not in said:
            tqdm.write(f"  note: {result.faces.fallback}")  # of the machine, not of the file: once
            said.add(result.faces.fallback)
        for note in result.notes:
            tqdm.write(f"  note: {note}")
    progress.close()
    return _finish(jobs, table, table_folder, kept, group)


def _kept_rows(jobs: Sequence[Job], folder: Path) -> dict[str, Row]:
    """Return the rows of an earlier run whose outputs still exist."""
    rows = read_rows(folder)
    there = (str(job.output) for job in jobs if is_there(job.output))
    return {name: rows[name] for name in there if name in rows and rows[name]["status"] != FAILED}


def _begin_table(jobs: Sequence[Job], folder: Path | None, kept: Mapping[str, Row], group: Group) -> Table:
    """The table that this process adds to: TABLE itself, or its part of it."""
    group.wait()  # all have read what there was
    if group.is_main:
        for place in {*(job.output.parent for job in jobs), *(job.crops.parent for job in jobs if job.crops is not None)}:
            clear_unfinished(place)
    group.wait()
    if folder is None:
        return Table(None)
    if group.is_main:
        Table(folder / TABLE).write(list(kept.values()))
        for stale in folder.glob(_part_name("*")):
            stale.unlink()
    group.wait()
    table = Table(folder / (TABLE if group.size == 1 else _part_name(group.rank)))
    if group.size > 1:
        table.write([])
    return table


def _finish(jobs: Sequence[Job], table: Table, folder: Path | None, kept: Mapping[str, Row], group: Group) -> int:
    """Collect the rows of all processes, say how many failed, and return the exit code."""
    rows = dict(kept) | {row["output"]: row for part in group.gather(table.rows) for row in part}
    n_failed = sum(rows[str(job.output)]["status"] == FAILED for job in jobs)
    if group.is_main:
        if folder is not None:
            Table(folder / TABLE).write([rows[str(job.output)] for job in jobs])
        skipped = len(kept.keys() | {name for name, row in rows.items() if row["status"] == SKIPPED})
        if skipped:
            print(f"{skipped} of {len(jobs)} recordings were skipped: their outputs existed", flush=True)
        if folder is not None:
            now = sum(row["status"] == DONE and name not in kept for name, row in rows.items())
            print(f"{now} of {len(jobs)} recordings enhanced; {folder / TABLE} says of each what was done", flush=True)
        if n_failed and len(jobs) > 1:
            table_name = f"; {folder / TABLE} says why" if folder is not None else ""
            print(f"{n_failed} of {len(jobs)} recordings failed{table_name}", file=sys.stderr)
    group.wait()
    if group.size > 1:
        table.remove()
        group.wait()  # a launcher ends the others as soon as one has left with an exit code
    return EXIT_FAILED if n_failed else 0
