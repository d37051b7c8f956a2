"""One canonical encoder, filled from the Hugging Face families in a table."""

from .families import FAMILIES, SUPPORTED, load_encoder, read_config
from .layers import Encoder, EncoderConfig, EncoderLayer

__all__ = [
    "FAMILIES",
    "SUPPORTED",
    "Encoder",
    "EncoderConfig",
    "EncoderLayer",
    "load_encoder",
    "read_config",
]
