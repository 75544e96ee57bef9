"""Sound and video from files and into files."""
