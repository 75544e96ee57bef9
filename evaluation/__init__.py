"""Scripts that score checkpoints and draw what they do."""
