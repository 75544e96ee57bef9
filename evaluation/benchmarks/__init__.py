"""The parts of `python -m evaluation.benchmark`."""
