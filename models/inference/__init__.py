"""A trained model applied: `Enhancer` for whole recordings, `StreamingEnhancer` for sound as it comes."""

from models.inference.enhancer import Enhancer
from models.inference.streaming import StreamingEnhancer

__all__ = ["Enhancer", "StreamingEnhancer"]
