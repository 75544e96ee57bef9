"""Synthetic voices, faces and noises."""
