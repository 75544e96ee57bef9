"""Training and validation data: windows of sound and picture, mixing, rooms, picture degradation."""
