"""Faces in videos: found, followed, cropped, and compared with the sound."""
