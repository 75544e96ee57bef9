"""Tables of the ablations in docs/results/ablations: what each variant reaches, and which claims of the design held."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from evaluation.reporting.tables import gain_interval, gain_number
from utils.scores.metrics import number
from utils.scores.stats import holm, mean_interval
from utils.util import read_csv

SIGNIFICANT = 0.05
HARMLESS_STOI = -0.005  # a loss that counts as none
BOTH = ("noise", "one_speaker")
SEED2 = "_seed2"  # ends the name of the same variant, trained from another seed
SOUND, RIGHT, OTHER, LATE = "audio_only", "clean", "other_face", "shift_+400ms"  # rows of scores.csv


class Side(NamedTuple):
    """What is compared: a row of a variant's scores."""

    variant: str
    row: str


class Claim(NamedTuple):
    """A claim of the design, and the comparison by which it is decided."""

    says: str
    ours: Side
    baseline: Side
    kinds: Sequence[str] = BOTH
    harmless: bool = False  # holds where ours is not worse, rather than better


CLAIMS = (
    Claim("The right face helps people whom training never saw.", Side("full", RIGHT), Side("full", SOUND)),
    Claim("It helps more than training on sound alone.", Side("full", RIGHT), Side("sound_only", SOUND)),
    Claim("Another person's face does no harm.", Side("full", OTHER), Side("full", SOUND), harmless=True),
    Claim("A face that is 400 ms late does no harm.", Side("full", LATE), Side("full", SOUND), harmless=True),
    Claim("Alpha lets the right face help.", Side("full", RIGHT), Side("no_vce", RIGHT)),
    Claim("An alpha that hears resists another's face better than one that only sees.", Side("full", OTHER),
          Side("plain_vce", OTHER)),
    Claim("The gate helps.", Side("full", RIGHT), Side("no_fsvg", RIGHT)),
    Claim("The gate's prior of speech bands helps.", Side("full", RIGHT), Side("plain_fsvg", RIGHT)),
    Claim("Made faces help the faces of strangers.", Side("full", RIGHT), Side("no_dubbing", RIGHT)),
    Claim("The taught encoder beats a frozen MobileNetV3-Small.", Side("no_dubbing", RIGHT), Side("mobilenet", RIGHT)),
    Claim("Mamba-1 beats Mamba-2 at equal updates.", Side("causal", SOUND), Side("mamba2", SOUND), ("noise",)),
    Claim("Causality costs quality.", Side("offline", SOUND), Side("causal", SOUND), ("noise",)),
)  # fmt: skip


class Difference(NamedTuple):
    """Ours minus the baseline, paired by speaker and kind: the mean over mixtures, its 95 % interval over speakers, and p."""

    mean: float
    low: float
    high: float
    p: float


class Results(NamedTuple):
    """What one variant's folder holds."""

    about: Mapping
    scores: Sequence[Mapping[str, str]]

    def mean(self, row: str, kind: str, metric: str) -> float:
        """The mean over all mixtures of a kind; NaN where the row is not there."""
        found = [(int(s["n"]), float(s[metric])) for s in self.scores if (s["row"], s["kind"]) == (row, kind)]
        return sum(n * value for n, value in found) / sum(n for n, _ in found) if found else math.nan

    def by_speaker(self, row: str, kinds: Sequence[str], metric: str) -> dict[tuple[str, str], tuple[int, float]]:
        """{(speaker, kind): (number of mixtures, mean score)}."""
        chosen = (s for s in self.scores if s["row"] == row and s["kind"] in kinds)
        return {(s["speaker"], s["kind"]): (int(s["n"]), float(s[metric])) for s in chosen}


def read_results(folder: Path) -> dict[str, Results]:
    """All variants in a folder, by name."""
    return {
        path.parent.name: Results(json.loads(path.read_text(encoding="utf-8")), read_csv(path.parent / "scores.csv"))
        for path in sorted(folder.glob("*/about.json"))
    }


def difference(results: Mapping[str, Results], claim: Claim, metric: str) -> Difference | None:
    """The comparison of a claim; None where a variant is missing. ValueError where both sides are of other mixtures.

    The interval is Student's t over speakers (`mean_interval`); p is that of the same t.
    """
    if claim.ours.variant not in results or claim.baseline.variant not in results:
        return None
    ours, baseline = (results[side.variant].by_speaker(side.row, claim.kinds, metric) for side in (claim.ours, claim.baseline))
    if {key: n for key, (n, _) in ours.items()} != {key: n for key, (n, _) in baseline.items()} or not ours:
        raise ValueError(f"{claim.ours.variant} and {claim.baseline.variant} were not scored on the same mixtures")
    values, speakers = [], []
    for (speaker, kind), (n, value) in ours.items():
        values += [value - baseline[speaker, kind][1]] * n
        speakers += [speaker] * n
    low, high = mean_interval(values, groups=speakers)
    mean = sum(values) / len(values)
    return Difference(mean, low, high, _p_of(mean, low, high, len(set(speakers))))


def _p_of(mean: float, low: float, high: float, groups: int) -> float:
    """The two-sided p of the t whose 95 % interval is low..high."""
    from scipy import stats

    error = (high - low) / 2 / stats.t.ppf(0.975, groups - 1)
    return float(2 * stats.t.sf(abs(mean) / error, groups - 1)) if error > 0 else 1.0 if mean == 0 else 0.0


def decide(claim: Claim, stoi: Difference, p_holm: float) -> str:
    """Held, did not hold, or undecided, by STOI: after Holm's correction over the claims, or by the interval where harmless."""
    if claim.harmless:
        return "held" if stoi.low > HARMLESS_STOI else "did not hold" if stoi.high < HARMLESS_STOI else "undecided"
    if not p_holm < SIGNIFICANT:
        return "undecided"
    return "held" if stoi.mean > 0 else "did not hold"


def claims_table(results: Mapping[str, Results], claims: Sequence[Claim] = CLAIMS) -> str:
    """Markdown: each claim, what is compared, the differences, p after Holm, whether it held, and the means of another seed."""
    found = {claim.says: (claim, difference(results, claim, "stoi"), difference(results, claim, "si_sdr")) for claim in claims}
    corrected = holm({says: stoi.p for says, (claim, stoi, _) in found.items() if stoi and not claim.harmless})
    head = "| claim | compared | STOI [95 %] | SI-SDR in dB [95 %] | p (Holm) | | another seed |"
    lines = [head, "|" + "|".join("-" * width for width in (30, 26, 24, 24, 8, 14, 14)) + "|"]
    for says, (claim, stoi, si_sdr) in found.items():
        compared = " − ".join(f"{side.variant}: {side.row}" for side in (claim.ours, claim.baseline))
        if stoi is None or si_sdr is None:
            lines.append(f"| {says} | {compared} | | | | not tested | |")
            continue
        p = corrected.get(says, math.nan)
        shown = "" if math.isnan(p) else f"{p:.2g}"
        verdict = f"**{decide(claim, stoi, p)}**"
        gains = " | ".join(gain_interval(*gain[:3], metric) for gain, metric in ((stoi, "stoi"), (si_sdr, "si_sdr")))
        lines.append(f"| {says} | {compared} | {gains} | {shown} | {verdict} | {_of_another_seed(results, claim)} |")
    return "\n".join(lines) + "\n"


def _of_another_seed(results: Mapping[str, Results], claim: Claim) -> str:
    """The mean differences in STOI and SI-SDR where both variants were trained from another seed, too."""
    ours, baseline = (Side(side.variant + SEED2, side.row) for side in (claim.ours, claim.baseline))
    again = claim._replace(ours=ours, baseline=baseline)
    found = {metric: difference(results, again, metric) for metric in ("stoi", "si_sdr")}
    return ", ".join(gain_number(gain.mean, metric) for metric, gain in found.items() if gain)


def _place(named: tuple[str, Results]) -> tuple[str, bool, str]:
    """Where a variant stands: with those of the same recipe, `full`, which the others change, before them."""
    name, held = named
    return held.about.get("base", ""), name != "full", name


def variants_table(results: Mapping[str, Results]) -> str:
    """Markdown: each variant, its cost, and its STOI and SI-SDR in dB with the right face and without; AUC of alpha."""
    head = "| variant | | CPU min | trained k | noise | noise, sound alone | one talker | one talker, sound alone | AUC |"
    lines = [head, "|" + "|".join("-" * width for width in (16, 30, 6, 7, 14, 14, 14, 14, 6)) + "|"]
    for name, held in sorted(results.items(), key=_place):
        sees = any(score["row"] == RIGHT for score in held.scores)
        cells = []
        for kind in BOTH:
            for row in (RIGHT if sees else None, SOUND):
                pair = [number(held.mean(row, kind, metric), metric) for metric in ("stoi", "si_sdr")] if row else []
                cells.append(", ".join(pair))
        auc = held.about["alpha_auc"].get(OTHER)
        told = "" if auc is None else f"{auc:.2f}"
        cost = f"{held.about['cpu_sec'] / 60:.1f} | {1000 * held.about['trained_m']:.0f}"
        lines.append(f"| {name} | {held.about['says']} | {cost} | {' | '.join(cells)} | {told} |")
    return "\n".join(lines) + "\n"
