"""What `evaluation/teach_encoder.py` is made of: faces made to vary, and what features say of the sound."""
