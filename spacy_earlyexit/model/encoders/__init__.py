"""One canonical encoder, filled from the Hugging Face families in a table."""

from .families import (
    FAMILIES,
    SUPPORTED,
    canonical_config,
    canonical_encoder,
    load_encoder,
    load_tokenizer,
    read_config,
)
from .int8 import quantize
from .layers import Encoder, EncoderConfig, EncoderLayer

__all__ = [
    "FAMILIES",
    "SUPPORTED",
    "Encoder",
    "EncoderConfig",
    "EncoderLayer",
    "canonical_config",
    "canonical_encoder",
    "load_encoder",
    "load_tokenizer",
    "quantize",
    "read_config",
]
