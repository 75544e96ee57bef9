"""The order of an epoch's items. It depends on the seed and the epoch alone, so that a resumed run sees the same items."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

GROUP_RUNS = 4  # runs that are shuffled with each other, and that a reader keeps in memory at once


def epoch_order(n_items: int, per_epoch: int | None, seed: int, epoch: int, group: int = 1) -> list[int]:
    """The order of items in an epoch, the same for the same seed and epoch.

    `group`: so many neighbours (items 2k and 2k + 1 for 2) stay side by side; their number is a multiple of it.
    """
    if group > 1:
        wanted = None if per_epoch is None else -(-per_epoch // group)
        return [k * group + part for k in epoch_order(n_items // group, wanted, seed, epoch) for part in range(group)]
    order = np.random.default_rng([seed, epoch]).permutation(n_items)
    wanted = per_epoch or n_items
    repeats = -(-wanted // n_items)
    return [int(i) for i in np.tile(order, repeats)[:wanted]]


def run_order(
    runs: Sequence[range], per_epoch: int | None, seed: int, epoch: int, batch_size: int, n_processes: int, n_workers: int
) -> list[int]:
    """The order of items that lie in `runs`. A run is read at once, and each reader has runs of its own.

    The runs are shuffled and dealt to the readers, worker w of process r making batches w, w + n_workers, ... of the
    share that process r has of every batch; a reader's items are shuffled over GROUP_RUNS of its runs. So it reads each
    run once, and never needs more than GROUP_RUNS of them, two readers sharing one where they meet. The same arguments
    give the same order; it holds as many whole batches as `per_epoch` items make, by default all of them.
    """
    rng = np.random.default_rng([seed, epoch])
    n_items, n_workers = sum(map(len, runs)), max(1, n_workers)
    n_batches = (per_epoch or n_items) // batch_size
    wanted, share = n_batches * batch_size, batch_size // n_processes
    items, run_numbers, n_drawn = [], [], 0
    while n_drawn < wanted:
        for index in rng.permutation(len(runs)):
            items.append(np.arange(runs[index].start, runs[index].stop))
            run_numbers.append(np.full(len(runs[index]), len(run_numbers)))
            n_drawn += len(runs[index])
    if not wanted:
        return []
    sequence, run_number = np.concatenate(items)[:wanted], np.concatenate(run_numbers)[:wanted]
    order, first = np.empty((n_batches, n_processes, share), np.int64), 0
    for process in range(n_processes):
        for worker in range(min(n_workers, n_batches)):
            batches = order[worker::n_workers, process]
            piece = slice(first, first + batches.size)
            group = (run_number[piece] - run_number[first]) // GROUP_RUNS
            shuffled = np.lexsort((rng.random(batches.size), group))
            order[worker::n_workers, process] = sequence[piece][shuffled].reshape(batches.shape)
            first += batches.size
    return order.ravel().tolist()
