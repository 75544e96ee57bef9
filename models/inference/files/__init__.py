"""Recordings on disk: which files belong together, how each is enhanced, what is written where."""
