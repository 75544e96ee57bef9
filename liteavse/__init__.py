"""LiteAVSEMamba as a package: `from liteavse import Enhancer, StreamingEnhancer`; `liteavse --help` is the command line."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version

from models.inference import Enhancer, StreamingEnhancer

try:
    __version__ = _version("liteavsemamba")
except PackageNotFoundError:  # a clone into which nothing was installed
    __version__ = "(not installed)"

__all__ = ["Enhancer", "StreamingEnhancer", "__version__"]
