"""Runs compiled kernels (models/ops/kernels/simd.py) on torch's own threads.

Numba's own threads are not used. Beside torch's they would be a second pool, and the idle threads of each would spin on the
cores that the other one needs: a matrix product followed by a kernel then takes several times as long. On Linux a kernel
is given to the OpenMP runtime that torch itself uses (`GOMP_parallel`, which GNU's, Intel's and LLVM's runtimes have);
elsewhere it is given to Python threads, which sleep while they wait. The number of threads is that of
torch.set_num_threads(). A forked process lacks the runtime's threads, for which it would wait for ever. It therefore uses
one thread, for torch, too (as every DataLoader worker does).
"""

from __future__ import annotations

import ctypes
import os
import sys
from array import array
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch

# With fewer multiply-adds, threads cost more time to wake (7 us) than they save.
SERIAL_WORK = 200_000

_CALL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _torch_openmp():
    """GOMP_parallel(function, data, threads, flags) of the OpenMP runtime of torch; None if it is not clear which that is."""
    if not sys.platform.startswith("linux"):
        return None
    with open("/proc/self/maps") as maps:
        mapped = {line.split()[-1] for line in maps if ".so" in line}
    names = ("libgomp", "libiomp5", "libomp")
    runtimes = sorted(path for path in mapped if os.path.basename(path).startswith(names))
    home = os.path.dirname(os.path.dirname(torch.__file__))
    of_torch = [path for path in runtimes if path.startswith(os.path.join(home, "torch"))]
    candidates = of_torch or runtimes
    if len(candidates) != 1:
        return None
    function = getattr(ctypes.CDLL(candidates[0]), "GOMP_parallel", None)
    if function is not None:
        function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        function.restype = None
    return function


class _Threads:
    def __init__(self) -> None:
        self.forked = False
        self.openmp = _torch_openmp()
        self.pool: ThreadPoolExecutor | None = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        self.forked, self.pool = True, None

    def run(self, address: int, block: int, n_threads: int) -> None:
        if n_threads == 1:
            _CALL(address)(block)
        elif self.openmp is not None:
            self.openmp(address, block, n_threads, 0)
        else:
            self.pool = self.pool or ThreadPoolExecutor(os.cpu_count())
            for done in [self.pool.submit(_CALL(address), block) for _ in range(n_threads)]:
                done.result()

    def settle(self) -> None:
        """Call it before an operator touches tensors: in a forked process torch's own copying would wait for ever, too."""
        if self.forked and torch.get_num_threads() > 1:
            torch.set_num_threads(1)


threads = _Threads()


def launch(
    kernel, names: tuple[str, ...], fields: Mapping[str, int], tasks: int, scratch_floats: int, multiply_adds: int
) -> None:
    """Runs the kernel's tasks.

    fields: values of the kernel's parameters by name; the others are 0. The tensors that they point to must outlive the call.
    """
    parallel = tasks > 1 and multiply_adds >= SERIAL_WORK
    # All of torch's threads or one: for any other number the runtime would end threads and start them again later.
    n_threads = torch.get_num_threads() if parallel else 1
    scratch = torch.empty(n_threads * scratch_floats)
    counters = array("q", (0, 0))
    counter = counters.buffer_info()[0]
    fields = {
        **fields, "tasks": tasks, "counter": counter, "worker": counter + counters.itemsize,
        "work": scratch.data_ptr(), "work_size": 4 * scratch_floats,
    }  # fmt: skip
    block = array("q", [fields.get(name, 0) for name in names])
    threads.run(kernel.address, block.buffer_info()[0], n_threads)
