"""An encoder whose products are in int8: quantised once, nothing retrained; for prediction. Norms,
softmax and off-ramps stay in float32.
"""

import copy
from typing import cast

from torch import nn

from ..kernels.int8 import Int8Linear
from .layers import Encoder, EncoderLayer


class Int8Layer(EncoderLayer):
    """A layer with the same norms, and int8 weights."""

    def __init__(self, layer: EncoderLayer):
        nn.Module.__init__(self)
        self.__dict__.update({k: v for k, v in layer.__dict__.items() if k[:1] != "_"})
        for name, part in layer.named_children():
            setattr(self, name, Int8Linear(part) if isinstance(part, nn.Linear) else part)
        self.eval()


def quantize(encoder: Encoder) -> Encoder:
    """An encoder with int8 layers that shares everything else with the given one.

    encoder (Encoder): On the CPU, in float32.
    RETURNS (Encoder): For prediction only. It does not follow later changes of the weights.
    """
    quantized = copy.copy(encoder)
    quantized._modules = dict(encoder._modules)
    quantized.layers = nn.ModuleList(
        Int8Layer(cast(EncoderLayer, layer)) for layer in encoder.layers
    )
    return quantized.eval()
