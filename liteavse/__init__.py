"""LiteAVSEMamba as a package: `from liteavse import Enhancer, StreamingEnhancer`; `liteavse --help` is the command line."""

from models.inference import Enhancer, StreamingEnhancer

__all__ = ["Enhancer", "StreamingEnhancer"]
