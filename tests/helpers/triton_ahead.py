"""Compiles the Triton kernels for GPUs that need not be there and prints what each takes: python -m helpers.triton_ahead

A line of JSON: for each kernel, type and target, its registers a thread and the bytes of stack that spilled registers take.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from models.ops.kernels import triton_conv, triton_scan
from models.ops.scan_triton import BLOCK, CHANNELS, TIME, settings

HALVES = {"u", "delta", "z", "b", "c", "y", "gy", "gu", "gdelta", "gz", "x", "gx"}  # pointers to sequences of the input's type
SIZES = {"L", "D", "ROWS", "GROUPS"}
SCAN = {"N": 16, "BLOCK": BLOCK, "SOFTPLUS": True, "REVERSE": False, "HAS_Z": True, "HAS_SKIP": True, "HAS_BIAS": True}
CONV = {"WIDTH": 4, "TIME": TIME, "BLOCK": CHANNELS, "REVERSE": False}
KERNELS = {
    "scan forward": (triton_scan.scan_forward_kernel, SCAN | {"HAS_H0": False, "KEEP": True}),
    "scan backward": (triton_scan.scan_backward_kernel, SCAN | {"HAS_GLAST": False}),
    "conv forward": (triton_conv.conv_forward_kernel, CONV | {"HAS_BIAS": True, "HAS_S0": False, "GRADIENT": False}),
    "conv inputs": (triton_conv.conv_input_gradient_kernel, CONV | {"HAS_GLAST": False}),
    "conv weights": (triton_conv.conv_weight_gradient_kernel, CONV | {"HAS_S0": False}),
}
BUILDS = [
    *((name, "fp32", target) for name in ("scan forward", "scan backward") for target in (80, 90)),
    ("scan forward", "bf16", 90), ("scan backward", "bf16", 90), ("conv forward", "fp32", 80), ("conv inputs", "bf16", 90),
    ("conv weights", "bf16", 90),
]  # fmt: skip


def build(name: str, kind: str, target: int):
    """The kernel as Triton would compile it for tensors whose addresses, strides and channels are multiples of 16."""
    function, constants = KERNELS[name]
    options = {"num_warps": 4}
    if name.startswith("scan"):
        chosen = settings(16)
        options["num_warps"] = chosen.pop("num_warps")
        constants = constants | chosen
    signature, attributes = {}, {}
    for i, argument in enumerate(function.arg_names):
        if argument in constants:
            signature[argument] = "constexpr"
            continue
        if argument in SIZES or argument.endswith(("_b", "_t")):
            signature[argument] = "i32"
        else:
            signature[argument] = f"*{kind if argument in HALVES else 'fp32'}"
        if argument not in SIZES - {"D"}:
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)


def usage(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    return {key: int(value) for key, value in re.findall(r"(REG|STACK):(\d+)", done.stdout)}


if __name__ == "__main__":
    cubins = {f"{name} {kind} sm_{target}": build(name, kind, target).asm["cubin"] for name, kind, target in BUILDS}
    print(json.dumps({key: usage(cubin) for key, cubin in cubins.items()}))
