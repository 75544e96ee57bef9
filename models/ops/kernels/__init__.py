"""CPU kernels compiled by numba; only models/ops imports them."""
