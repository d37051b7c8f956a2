"""Early-exit transformers for spaCy. See README.md for how to use them."""

from .about import __version__
from .extensions import install_extensions

__all__ = ["__version__", "install_extensions"]
