"""The training loop, its run folder, and how a training is launched."""
