"""A vector of LANES float32 channels as a value in numba code, and kernels as C functions of a parameter block.

Numba leaves it to LLVM to find vectors in loops. LLVM gives up, or compares dozens of pointers at run time, whenever it
cannot prove that arrays do not overlap. A `Lanes` value is an LLVM vector from the start: + - * / take two of them, or one
and a float32, `load` and `store` take addresses, and the values of a loop stay in registers.
"""

from __future__ import annotations

import hashlib
import operator
import warnings
from pathlib import Path

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, from_dtype, njit, types
from numba.core import cgutils
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from utils.console import told_if_slow

LANES = 64  # four AVX-512 or eight AVX2 vectors, whose independent work hides the latency of a multiply-add
ROW = 4 * LANES  # bytes
f32 = np.float32
LOG2E = f32(1.4426950408889634)
# No nnan or ninf: NaN must come out as NaN. No reassoc: it would undo the rounding trick of exp2.
_FLAGS = ("contract", "nsz", "arcp")
_ROUND = f32(1.5 * 2**23 + 127)  # x + _ROUND rounds x to an integer i and leaves i + 127 in the lowest bits
_LOWEST, _HIGHEST = -126.0, 128.0  # exponents of the smallest normal number and of infinity

_float, _i8p, _i32, _i64 = ir.FloatType(), ir.IntType(8).as_pointer(), ir.IntType(32), ir.IntType(64)
_vector, _bits = ir.VectorType(_float, LANES), ir.VectorType(_i32, LANES)
_undefined = ir.Constant(_vector, ir.Undefined)

inlined = njit(forceinline=True)


class _LanesType(types.Type):
    def __init__(self) -> None:
        super().__init__(name=f"Lanes{LANES}")


Lanes = _LanesType()


@register_model(_LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, frontend_type) -> None:
        super().__init__(manager, frontend_type, _vector)


def _constant(x: float) -> ir.Constant:
    return ir.Constant(_vector, [float(x)] * LANES)


def _splat(builder, x):
    if x.type == _vector:
        return x
    first = builder.insert_element(_undefined, x, _i32(0))
    return builder.shuffle_vector(first, _undefined, ir.Constant(_bits, [0] * LANES))


def _define_operator(function, instruction: str) -> None:
    def lower(context, builder, sig, args):
        return getattr(builder, instruction)(*(_splat(builder, x) for x in args), flags=_FLAGS)

    cases = [(Lanes, Lanes), (Lanes, types.float32), (types.float32, Lanes)]
    template = {"cases": [signature(Lanes, *case) for case in cases]}
    infer_global(function)(type(f"Lanes_{instruction}", (ConcreteTemplate,), template))
    for case in cases:
        lower_builtin(function, *case)(lower)


_define_operator(operator.add, "fadd")
_define_operator(operator.sub, "fsub")
_define_operator(operator.mul, "fmul")
_define_operator(operator.truediv, "fdiv")


def _emits(result, *arguments):
    """A decorator: it makes a numba intrinsic of these types from `build(builder, *args)`."""

    def wrap(build):
        def lower(context, builder, sig, args):
            return build(builder, *args)

        one = {1: lambda typing, a: (result(a), lower), 2: lambda typing, a, b: (result(a, b), lower)}
        function = one[len(arguments)]
        function.__name__, function.__doc__ = build.__name__, build.__doc__
        return intrinsic(function)

    return wrap


def _at(builder, address, kind):
    return builder.inttoptr(address, kind.as_pointer())


@_emits(Lanes, "address")
def load_full(builder, address):
    return builder.load(_at(builder, address, _vector), align=4)


@_emits(types.int64, "address", "value")
def store_full(builder, address, value):
    builder.store(value, _at(builder, address, _vector), align=4)
    return address


@_emits(types.float32, "address")
def peek(builder, address):
    """The float at the address."""
    return builder.load(_at(builder, address, _float), align=4)


@_emits(types.int64, "address", "value")
def poke(builder, address, value):
    builder.store(value, _at(builder, address, _float), align=4)
    return address


@_emits(types.int64, "address")
def peek_int(builder, address):
    """The int64 at the address."""
    return builder.load(_at(builder, address, _i64))


@_emits(types.int64, "to", "address")
def copy_piece(builder, to, address):
    """Copies 16 floats from one address to another."""
    kind = ir.VectorType(_float, 16)
    builder.store(builder.load(_at(builder, address, kind), align=4), _at(builder, to, kind), align=4)
    return to


@_emits(types.int64, "to")
def zero_piece(builder, to):
    """Writes 16 zeros to an address."""
    kind = ir.VectorType(_float, 16)
    builder.store(ir.Constant(kind, [0.0] * 16), _at(builder, to, kind), align=4)
    return to


@_emits(types.int64, "address")
def take(builder, address):
    """The int64 at the address, to which the same atomic step adds one."""
    return builder.atomic_rmw("add", _at(builder, address, _i64), _i64(1), "monotonic")


@_emits(types.int64, "address")
def _prefetch_line(builder, address):
    kind = ir.FunctionType(ir.VoidType(), (_i8p, _i32, _i32, _i32))
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, (builder.inttoptr(address, _i8p), _i32(0), _i32(3), _i32(1)))  # read, keep, data
    return address


@_emits(Lanes, "x")
def broadcast(builder, x):
    return _splat(builder, x)


@_emits(types.float32, "x")
def total(builder, x):
    """The sum of the lanes, which are added pair by pair."""
    kind = ir.FunctionType(_float, (_float, _vector))
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{LANES}f32")
    return builder.call(function, (_float(-0.0), x), fastmath=("reassoc", "nsz"))


def _between(builder, x, low, high):
    """x limited to low ... high. NaN stays NaN, because it fails both comparisons."""
    x = builder.select(builder.fcmp_ordered("<", x, _constant(low)), _constant(low), x)
    return builder.select(builder.fcmp_ordered(">", x, _constant(high)), _constant(high), x)


@_emits(Lanes, "x")
def _clamped(builder, x):
    """x limited to the exponents of float32, that of infinity included."""
    return _between(builder, x, _LOWEST, _HIGHEST)


@_emits(Lanes, "x")
def _clamped_finite(builder, x):
    """x limited to the exponents of normal numbers whose inverse is normal, too."""
    return _between(builder, x, _LOWEST, -_LOWEST)


@_emits(Lanes, "x")
def positive(builder, x):
    zero = _constant(0.0)
    return builder.select(builder.fcmp_ordered(">", x, zero), x, zero)


@_emits(types.float32, "x")
def root(builder, x):
    """The square root of one float."""
    kind = ir.FunctionType(_float, (_float,))
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.sqrt.f32"), (x,))


@_emits(Lanes, "x")
def _absolute(builder, x):
    magnitude = ir.Constant(_bits, [0x7FFFFFFF] * LANES)
    return builder.bitcast(builder.and_(builder.bitcast(x, _bits), magnitude), _vector)


@_emits(Lanes, "x")
def _inverse_estimate(builder, x):
    """1 / x with an error of 12 % at most, for normal x > 0: the exponent is negated, the mantissa follows a straight line."""
    magic = ir.Constant(_bits, [0x7EF311C3] * LANES)
    return builder.bitcast(builder.sub(magic, builder.bitcast(x, _bits)), _vector)


@_emits(Lanes, "shifted")
def _power(builder, shifted):
    """2^i, where the integers i are the lowest bits of `shifted` = i + _ROUND."""
    return builder.bitcast(builder.shl(builder.bitcast(shifted, _bits), ir.Constant(_bits, [23] * LANES)), _vector)


@inlined
def exp2(x):
    """2^x with a relative error of 2e-7. The smallest result is 2^-126, the largest infinity."""
    return _exp2(_clamped(x))


@inlined
def _exp2(x):
    shifted = x + _ROUND
    r = x - (shifted - _ROUND)
    # It has the least relative error on [-1/2, 1/2] with p(0) = 1 exactly: a scan step of length zero keeps the state.
    p = r * f32(1.3264727e-3) + f32(9.6715130e-3)
    p = p * r + f32(5.5507336e-2)
    p = p * r + f32(2.4022242e-1)
    p = p * r + f32(6.9314700e-1)
    p = p * r + f32(1)
    return p * _power(shifted)


@inlined
def _inverse(x):
    """1 / x with an error of 1e-7 for x in [1, 2^126]. Newton's iteration takes a third of a division's time."""
    r = _inverse_estimate(x)
    r = r * (f32(2) - x * r)
    r = r * (f32(2) - x * r)
    return r + r * (f32(1) - x * r)


@inlined
def sigmoid(x):
    """1 / (1 + e^-x) with an error of 2e-7. The result is at least 2^-126, since `_inverse` takes no more than 2^126."""
    return _inverse(_exp2(_clamped_finite(x * -LOG2E)) + f32(1))


@inlined
def softplus(x):
    """log(1 + e^x) = max(x, 0) + log1p(e) to 3e-7, e = e^-|x|; log1p(e) = 2 atanh(s), s = e / (2 + e), a series in s^2."""
    e = exp2(_absolute(x) * -LOG2E)
    s = e * _inverse(e + f32(2))
    q = s * s
    p = q * f32(0.28178346) + f32(0.27960601)
    p = p * q + f32(0.40024909)
    p = p * q + f32(0.66666317)
    p = p * q + f32(2)
    return s * p + positive(x)


@inlined
def load(address, width, spare):
    """`width` floats from the address and zeros after them; only zeros if the address is 0. `spare`: a row of scratch."""
    if address != 0 and width == LANES:
        return load_full(address)
    store_full(spare, broadcast(f32(0)))
    if address != 0:
        for d in range(width):
            poke(spare + 4 * d, peek(address + 4 * d))
    return load_full(spare)


@inlined
def store(address, width, x, spare):
    if width == LANES:
        store_full(address, x)
    else:
        store_full(spare, x)
        for d in range(width):
            poke(address + 4 * d, peek(spare + 4 * d))


@inlined
def prefetch(address):
    for line in range(0, ROW, 64):
        _prefetch_line(address + line)


@njit(inline="always")  # numba copies it into each kernel; forceinline looked slower in two noisy runs, which prove little
def run_tasks(task, params):
    """Calls `task(p, index, work)` for each index below p.tasks that no other thread has taken; every kernel is this loop.
    Any number of threads may run it at once; each has scratch `work` of its own."""
    p = carray(params, 1)[0]
    work = p.work + take(p.worker) * p.work_size
    while True:
        index = take(p.counter)
        if index >= p.tasks:
            break
        task(p, index, work)


@njit(forceinline=True, error_model="numpy")  # numba need not check for a division by 0, which cannot happen here
def block_of(p, task):
    """The sequence (or group of sequences) and the first channel of a task, which computes LANES channels."""
    blocks = (p.D + LANES - 1) // LANES
    return task // blocks, task % blocks * LANES


def parameter_block(*names: str) -> np.dtype:
    """Layout of a kernel's parameters, all int64. Numba's cache on disk looks only at the kernel's own file and at this type;
    the name of the last field changes when this file does, so that the kernels are compiled again."""
    source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    return np.dtype([(name, np.int64) for name in (*names, f"lanes_{source}")])


def compiled(function, layout: np.dtype):
    """`function(params)` as a C function of a pointer to the parameters (at `.address`). The compiled code is kept on disk."""
    kind = types.void(types.CPointer(from_dtype(layout)))
    try:
        with told_if_slow("compiling kernels for this CPU; they are kept for the next time"):
            return cfunc(kind, cache=True, error_model="numpy")(function)
    except RuntimeError as error:
        if "cannot cache function" not in str(error):
            raise
        warnings.warn(f"compiled kernels are not kept ({error}); set NUMBA_CACHE_DIR to a writable folder", stacklevel=2)
        return cfunc(kind, error_model="numpy")(function)
