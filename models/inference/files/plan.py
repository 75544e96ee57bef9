"""What will be done, said before it is begun: names, lengths and sizes of the recordings, and where each output goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import av

from models.inference.files.jobs import Job, is_there
from models.inference.files.progress import Progress, minutes
from utils.distributed import Group
from utils.media.decode import MediaError, find_sound, open_media, video_stream

MOST_LISTED = 20  # recordings named one by one before a run; --dry_run names all


@dataclass(frozen=True)
class Facts:
    """What the headers of a recording's files say."""

    bytes: int
    duration_sec: float | None  # None: the header does not say
    sample_rate: int | None  # of the sound in Hz; None: the file cannot be read, or holds no sound
    size: tuple[int, int] | None  # width and height of the video in pixels
    channels: int = 1  # of the sound


def read_facts(job: Job) -> Facts:
    """Return what the headers of the job's files say; what cannot be read is None."""
    paths = {path.resolve(): path for path in (job.audio, job.video) if path is not None and path.is_file()}
    n_bytes = sum(path.stat().st_size for path in paths.values())
    duration, rate, size, channels = None, None, None, 1
    try:
        track = find_sound(job.audio)
        if track is not None:
            with open_media(job.audio) as container:
                duration = container.duration / av.time_base if container.duration else None
                rate, channels = container.streams[track.index].rate, container.streams[track.index].channels
    except (MediaError, OSError):
        pass
    if job.video is not None:
        try:
            with open_media(job.video) as container:
                video = video_stream(container)
                size = (video.width, video.height) if video is not None else None
        except (MediaError, OSError):
            pass
    return Facts(n_bytes, duration, rate, size, channels)


def _amount(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 50_000 else f"{n_bytes / 1e3:.1f} kB"


def _line(job: Job, facts: Facts, uses_video: bool, skip_existing: bool) -> str:
    about = ["length unknown" if facts.duration_sec is None else minutes(facts.duration_sec), _amount(facts.bytes)]
    about.append("no sound that can be read" if facts.sample_rate is None else f"{facts.sample_rate / 1000:g} kHz")
    if facts.channels > 1:
        about.append(f"{facts.channels} channels that become one")
    if facts.size is not None:
        about.append(f"video {facts.size[0]}x{facts.size[1]}")
    what = "sound and video" if uses_video and job.video is not None else "sound only"
    if skip_existing and is_there(job.output):
        what = "skipped, as its output exists"
    elif is_there(job.output):
        what += ", replaces its output"
    return f"  {job.label} ({', '.join(about)}): {what} -> {job.output}"


def plan_lines(
    jobs: Sequence[Job], facts: Sequence[Facts], uses_video: bool = True, skip_existing: bool = False,
    most: int | None = MOST_LISTED,
) -> list[str]:
    """Return a line for all recordings together and one for each, `most` of them at most (None: all)."""
    length = sum(fact.duration_sec or 0.0 for fact in facts)
    n_bytes = sum(fact.bytes for fact in facts)
    count = f"{len(jobs)} recordings" if len(jobs) > 1 else "1 recording"
    lines = [f"{count}, {minutes(length)} of sound, {_amount(n_bytes)}"]
    shown = len(jobs) if most is None else most
    lines += [_line(job, fact, uses_video, skip_existing) for job, fact in list(zip(jobs, facts, strict=True))[:shown]]
    if len(jobs) > shown:
        lines.append(f"  and {len(jobs) - shown} more (--dry_run names all)")
    return lines


def announce(jobs: Sequence[Job], group: Group, skip_existing: bool, use_video: bool, dry_run: bool) -> Progress:
    """Print what will be done, in the first process only, and return the progress of that process's own share."""
    if not group.is_main:
        return Progress({}, quiet=True)
    facts = [read_facts(job) for job in jobs]
    for line in plan_lines(jobs, facts, use_video, skip_existing, None if dry_run else MOST_LISTED):
        print(line, flush=True)
    if dry_run:
        print("dry run: nothing is enhanced and nothing is written", flush=True)
    share = list(zip(jobs, facts, strict=True))[:: group.size]
    return Progress({job: fact.duration_sec or 0.0 for job, fact in share if not (skip_existing and is_there(job.output))})
