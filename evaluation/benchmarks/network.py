"""The measurements behind `python -m evaluation.benchmark`: each gives the rows of one table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from models.generator import SEMamba
from models.inference.enhancer import Enhancer
from models.loss import Signal, generator_losses
from models.mamba_block import CausalTFMambaBlock, TFMambaBlock
from models.ops.backend import available_backends
from models.ops.scan import selective_scan
from models.pretrained import ARCHITECTURES
from models.stfts import mag_phase_istft
from utils.config import complete_config, load_config
from utils.training.precision import autocast, choose_precision, matrix_products

ROOT = Path(__file__).resolve().parents[2]
SCAN_SHAPES = {  # sequences, length, channels, state: the scans of one second of sound
    "full size, along time [100, 161, 256] N=16": (100, 161, 256, 16),
    "full size, along frequency [161, 100, 256] N=16": (161, 100, 256, 16),
    "small recipe, along time [100, 161, 64] N=8": (100, 161, 64, 8),
}
DURATIONS_SEC = (1, 4, 30)
Row = dict[str, str | float]


def medians(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each function, called in turn `repeats` times after one call that does not count."""
    cuda = torch.cuda.is_available()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_number in range(repeats + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if cuda:
                torch.cuda.synchronize()
            if round_number:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def scan_inputs(shape: Sequence[int], device: torch.device, grad: bool) -> dict[str, torch.Tensor]:
    b, l, d, n = shape
    rng = torch.Generator().manual_seed(0)
    sizes = {"u": (b, l, d), "delta": (b, l, d), "B": (b, l, n), "C": (b, l, n), "D": (d,), "z": (b, l, d), "delta_bias": (d,)}
    inputs = {name: torch.randn(size, generator=rng).to(device) for name, size in sizes.items()}
    inputs["delta_bias"] -= 4.0
    inputs["A"] = -torch.arange(1.0, n + 1, device=device).repeat(d, 1)
    return {name: value.requires_grad_(grad) for name, value in inputs.items()}


def scan_call(inputs: dict[str, torch.Tensor], backend: str, backward: bool) -> Callable[[], object]:
    def call() -> None:
        with torch.set_grad_enabled(backward):
            y, _ = selective_scan(**inputs, backend=backend)
            if backward:
                torch.autograd.backward(y, torch.ones_like(y), inputs=list(inputs.values()))
                for value in inputs.values():
                    value.grad = None

    return call


def bench_scan(device: torch.device, repeats: int) -> list[Row]:
    """Forward and forward + backward of every backend; the ratio is against the plain torch reference."""
    rows: list[Row] = []
    for label, shape in SCAN_SHAPES.items():
        for backward in (False, True):
            inputs = scan_inputs(shape, device, backward)
            seconds = medians({name: scan_call(inputs, name, backward) for name in backends(device)}, repeats)
            for name, value in seconds.items():
                rows.append({
                    "shape": label, "pass": "forward + backward" if backward else "forward", "backend": name,
                    "ms": 1e3 * value, "times reference": seconds["reference"] / value,
                    "G state updates/s": np.prod(shape) / value / 1e9,
                })  # fmt: skip
    return rows


def backends(device: torch.device) -> list[str]:
    """The backends of the device. The reference comes last, since it heats the machine, which would slow the others."""
    names = [name for name in available_backends() if name != "reference"]
    return [name for name in names if (name == "numba") == (device.type == "cpu")] + ["reference"]


def bench_limits(scan_rows: list[Row]) -> list[Row]:
    """How far the compiled forward scan is from what the multiply-add units and the memory of this machine could do."""
    a = torch.randn(1024, 1024)
    big = torch.randn(16 * 1024 * 1024)
    other = torch.empty_like(big)
    seconds = medians({"mm": lambda: a @ a, "copy": lambda: other.copy_(big)}, 9)
    multiply_adds, copied = 1024**3 / seconds["mm"], 2 * big.nbytes / seconds["copy"]
    rows: list[Row] = [
        {"quantity": "multiply-adds of torch.mm", "value": multiply_adds / 1e9, "unit": "G/s"},
        {"quantity": "copy, bytes read + written", "value": copied / 1e9, "unit": "GB/s"},
    ]
    label, (b, l, d, n) = next(iter(SCAN_SHAPES.items()))
    for row in scan_rows:
        if row["shape"] != label or row["backend"] == "reference" or row["pass"] != "forward":
            continue
        # Per state update: delta * A, seven for exp2, h * decay + du * B, the sum with C: about 11 multiply-adds.
        operations, moved = 11 * b * l * d * n, 4 * (4 * b * l * d + 2 * b * l * n)
        share = operations / multiply_adds / (float(row["ms"]) / 1e3), moved / copied / (float(row["ms"]) / 1e3)
        rows.append({"quantity": f"{row['backend']} forward, share of the multiply-add rate", "value": share[0], "unit": ""})
        rows.append({"quantity": f"{row['backend']} forward, share of the copy rate", "value": share[1], "unit": ""})
    return rows


def bench_block(device: torch.device, repeats: int) -> list[Row]:
    """One time-frequency block at full size over one second, forward and with gradients."""
    cfg = complete_config({})
    x = torch.randn(1, 64, 161, 100, device=device).contiguous(memory_format=torch.channels_last)
    rows: list[Row] = []
    for block_class in (TFMambaBlock, CausalTFMambaBlock):
        block = block_class(cfg).to(device)

        def forward(block: torch.nn.Module = block) -> None:
            with torch.no_grad():
                block(x)

        def both(block: torch.nn.Module = block) -> None:
            block(x).sum().backward()
            block.zero_grad()

        seconds = medians({"forward": forward, "both": both}, repeats)
        rows.append({
            "block": block_class.__name__, "forward ms": 1e3 * seconds["forward"],
            "forward + backward ms": 1e3 * seconds["both"], "RTF of four": 4 * seconds["forward"],
        })  # fmt: skip
    return rows


def recipes() -> dict[str, tuple[str, dict]]:
    """{name: (architecture, config)} of every recipe; the ImageNet backbone is replaced by random weights."""
    found = {}
    for path in sorted((ROOT / "recipes").rglob("*.yaml")):
        architecture = "SEMamba" if path.stem.startswith("SEMamba") else "LiteAVSEMamba"
        if path.stem.endswith("_smoke") or path.stem in ("SEMamba_advanced_PCS", "SEMamba_advanced_pretrainedD"):
            continue  # the same model as another recipe's, or one for tests only
        found[path.stem] = (architecture, load_config(path, ["visual_cfg.backbone_weights=none"]))
    return found


def fresh_enhancer(architecture: str, cfg: dict, device: torch.device) -> Enhancer:
    torch.manual_seed(0)
    return Enhancer(ARCHITECTURES[architecture](cfg).to(device).eval(), cfg, device)


def bench_models(device: torch.device, repeats: int, longest_sec: int) -> list[Row]:
    """Real-time factor of the whole pipeline, by length, without the face and, where the model uses one, with it."""
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for name, (architecture, cfg) in recipes().items():
        enhancer = fresh_enhancer(architecture, cfg, device)
        visual = architecture == "LiteAVSEMamba" and cfg["visual_cfg"]["use_visual"]
        for face in (False, True) if visual else (False,):
            row: Row = {"recipe": name, "input": "sound and face" if face else "sound"}
            for seconds in (s for s in DURATIONS_SEC if s <= longest_sec):
                wav = 0.1 * rng.standard_normal(16000 * seconds).astype(np.float32)
                video = rng.integers(0, 255, (25 * seconds, 96, 96, 3), dtype=np.uint8) if face else None

                def enhance(wav: np.ndarray = wav, video: np.ndarray | None = video, to: Enhancer = enhancer) -> None:
                    to.enhance(wav, 16000, video=video)

                spent = medians({"enhance": enhance}, repeats if seconds < 30 else 1)["enhance"]
                row[f"RTF {seconds} s"] = spent / seconds
            rows.append(row)
    return rows


def bench_training(device: torch.device, repeats: int) -> list[Row]:
    """Steps per second of forward, losses, backward and update; batch and segment as the recipe says."""
    rows: list[Row] = []
    for name in ("LiteAVSE_small", "LiteAVSE"):
        architecture, cfg = recipes()[name]
        model = ARCHITECTURES[architecture](cfg).to(device)
        step = training_step(model, cfg, device)
        seconds = medians({"step": step}, max(2, repeats // 2))["step"]
        audio_sec = cfg["training_cfg"]["batch_size"] * cfg["training_cfg"]["segment_size"] / 16000
        rows.append({
            "recipe": name, "batch": cfg["training_cfg"]["batch_size"], "steps/s": 1 / seconds,
            "seconds of sound/s": audio_sec / seconds,
        })  # fmt: skip
    return rows


def training_step(model: SEMamba, cfg: dict, device: torch.device) -> Callable[[], None]:
    b, samples = cfg["training_cfg"]["batch_size"], cfg["training_cfg"]["segment_size"]
    frames = samples // 100 + 1
    mag, pha = torch.rand(b, 201, frames, device=device), 6 * torch.rand(b, 201, frames, device=device) - 3
    com, wave = torch.randn(b, 201, frames, 2, device=device), torch.randn(b, samples, device=device)
    video = torch.rand(b, 3, -(-samples // 640), 96, 96, device=device)
    stft = {key: cfg["stft_cfg"][key] for key in ("n_fft", "hop_size", "win_size")}
    stft["compress_factor"] = cfg["model_cfg"]["compress_factor"]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    precision = choose_precision(cfg["training_cfg"]["precision"], device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with matrix_products(precision):
            with autocast(precision, device):
                out = model.forward_with_gates(mag, pha, video)
            audio = mag_phase_istft(out.mag, out.pha, **stft, length=samples)
            estimate = Signal(out.mag, out.pha, out.com, audio)
            total, _ = generator_losses(cfg["training_cfg"]["loss"], estimate, Signal(mag, pha, com, wave), stft)
            total.backward()
        optimizer.step()

    return step


def bench_scaling(device: torch.device, repeats: int) -> list[Row]:
    """Cost against length and batch for the small recipe's sound path: linear means a constant last column."""
    architecture, cfg = recipes()["LiteAVSE_small"]
    model = fresh_enhancer(architecture, cfg, device).model
    rows: list[Row] = []
    for batch, frames in ((1, 161), (1, 641), (1, 2561), (2, 641), (4, 641), (8, 641)):
        mag = torch.rand(batch, 201, frames, device=device)

        def forward(mag: torch.Tensor = mag) -> None:
            with torch.inference_mode():
                model(mag, mag)

        seconds = medians({"forward": forward}, repeats)["forward"]
        rows.append({"batch": batch, "frames": frames, "ms": 1e3 * seconds, "us per frame": 1e6 * seconds / (batch * frames)})
    return rows
