"""Metrics of enhanced speech, and statistics over them."""
