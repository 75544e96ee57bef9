"""Scripts that make corpora and lists."""
