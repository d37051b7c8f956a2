"""One canonical encoder, filled from the Hugging Face families in a table."""

from .families import SUPPORTED, load_encoder
from .layers import Encoder, EncoderConfig, EncoderLayer

__all__ = ["SUPPORTED", "Encoder", "EncoderConfig", "EncoderLayer", "load_encoder"]
