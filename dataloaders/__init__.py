"""Training and validation data: windows of sound and video, mixing, rooms, degraded crops."""
