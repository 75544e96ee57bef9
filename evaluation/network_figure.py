"""Draws the network with its shapes: the figure of README.md and docs/architecture.md.

    python -m evaluation.network_figure --output docs/network.svg

The sizes are those of a recipe; --config takes another one.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from evaluation.reporting.figures import drawing, require_matplotlib
from utils.config import load_config
from utils.console import Parser, run

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = (".svg", ".png", ".pdf")
SOUND, FACE, FUSED, OUT = "#dbe9f6", "#fde7cf", "#e3f1dc", "#eeeeee"  # colours of the parts


class Box(NamedTuple):
    """One part of the network: the position of its centre, its size in units of the axes, its text."""

    x: float
    y: float
    width: float
    height: float
    text: str
    colour: str

    def side(self, name: str) -> tuple[float, float]:
        """The centre of a side: "left", "right", "top" or "bottom"."""
        dx, dy = {"left": (-1, 0), "right": (1, 0), "top": (0, 1), "bottom": (0, -1)}[name]
        return self.x + dx * self.width / 2, self.y + dy * self.height / 2


def boxes(cfg: Mapping) -> dict[str, Box]:
    """The parts, with the sizes that the recipe gives them."""
    model, visual, lite, stft = cfg["model_cfg"], cfg["visual_cfg"], cfg["lite_cfg"], cfg["stft_cfg"]
    n_freq, side, width = stft["n_fft"] // 2 + 1, visual["face_size"], model["hid_feature"]
    shape = f"[B, {width}, T, {lite['n_freq_enc']}]"
    forward = "forward in time" if model["causal"] else "both ways in time"
    return {
        "sound": Box(1.0, 4.0, 1.7, 0.9, "noisy sound\n[B, L]", OUT),
        "stft": Box(3.1, 4.0, 1.9, 0.9, f"STFT\nmag, phase [B, {n_freq}, T]", SOUND),
        "encoder": Box(5.4, 4.0, 2.1, 0.9, f"encoder\n{shape}", SOUND),
        "crops": Box(1.0, 1.0, 1.7, 0.9, f"face crops\n[B, 3, V, {side}, {side}]", OUT),
        "visual": Box(3.1, 1.0, 1.9, 0.9, f"visual encoder\n[B, {visual['visual_dim']}, V]", FACE),
        "hold": Box(5.4, 1.0, 2.1, 0.9, f"held per STFT frame\n[B, T, {visual['visual_dim']}]", FACE),
        "alpha": Box(5.4, 2.5, 2.1, 0.8, "alpha: trust in the face\n[B, T, 1]", FACE),
        "project": Box(8.0, 1.0, 2.1, 0.9, f"visual projection\n{shape}", FACE),
        "gate": Box(8.0, 2.5, 2.1, 0.8, f"gate over frequencies\n[B, 1, T, {lite['n_freq_enc']}]", FUSED),
        "fuse": Box(8.0, 4.0, 2.3, 0.9, f"audio + alpha · gate · visual\n{shape}", FUSED),
        "mamba": Box(10.7, 4.0, 2.3, 0.9, f"{model['num_tfmamba']} Mamba blocks, {forward}\nand in frequency {shape}", FUSED),
        "mask": Box(13.2, 4.8, 1.9, 0.8, f"mask decoder\n[B, {n_freq}, T]", FUSED),
        "phase": Box(13.2, 3.2, 1.9, 0.8, f"phase decoder\n[B, {n_freq}, T]", FUSED),
        "out": Box(15.4, 4.0, 1.7, 0.9, "inverse STFT\nenhanced [B, L]", OUT),
    }


# (from, its side, to, its side)
ARROWS = (
    ("sound", "right", "stft", "left"), ("stft", "right", "encoder", "left"), ("encoder", "right", "fuse", "left"),
    ("fuse", "right", "mamba", "left"), ("mamba", "right", "mask", "left"), ("mamba", "right", "phase", "left"),
    ("mask", "right", "out", "left"), ("phase", "right", "out", "left"), ("crops", "right", "visual", "left"),
    ("visual", "right", "hold", "left"), ("hold", "right", "project", "left"), ("hold", "top", "alpha", "bottom"),
    ("alpha", "right", "fuse", "left"), ("project", "top", "gate", "bottom"), ("gate", "top", "fuse", "bottom"),
    ("encoder", "right", "gate", "left"),
)  # fmt: skip


def draw(cfg: Mapping, path: Path) -> None:
    """Write the figure to `path`, in the format of its suffix; `cfg` is a complete recipe."""
    from matplotlib.patches import FancyBboxPatch

    parts = boxes(cfg)
    with drawing(path, 13, 3.8) as figure:
        axis = figure.subplots()
        axis.set(xlim=(0, 16.4), ylim=(0.4, 5.4))
        axis.set_axis_off()
        for box in parts.values():
            x, y = box.x - box.width / 2, box.y - box.height / 2
            style = {"boxstyle": "round,pad=0,rounding_size=0.1", "facecolor": box.colour, "edgecolor": "#555555"}
            axis.add_patch(FancyBboxPatch((x, y), box.width, box.height, **style))
            axis.text(box.x, box.y, box.text, ha="center", va="center", fontsize=7.5)
        for start, leaves, end, enters in ARROWS:
            axis.annotate("", parts[end].side(enters), parts[start].side(leaves), arrowprops={"arrowstyle": "->", "lw": 1.1})


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = Parser("network_figure", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "recipes" / "LiteAVSE" / "LiteAVSE.yaml",
                        help="a recipe with a face (default: LiteAVSE.yaml)")
    parser.add_argument("--output", type=Path, default=Path("results/network.svg"), help=".svg, .png or .pdf")
    args = parser.parse_args(argv)

    def work() -> int:
        require_matplotlib()
        if args.output.suffix.lower() not in SUFFIXES:
            raise ValueError(f"--output {args.output} should end in one of {', '.join(SUFFIXES)}")
        draw(load_config(args.config), args.output)
        print(args.output)
        return 0

    return run("network_figure", work)


if __name__ == "__main__":
    raise SystemExit(main())
