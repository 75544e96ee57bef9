"""Test sets: fixed mixtures, video conditions, and the scores of each row."""
