"""An encoder whose products are in int8: quantised once, nothing retrained; for prediction.

Weights have one scale per output column, activations one per row, taken from the row itself
(dynamic quantisation). So a row's result does not depend on what else is in the batch. Sums are
exact in int32; norms, softmax and off-ramps stay in float32.

Rows go through in chunks of a few hundred: what stands between two products then stays in the
processor's cache, and the products come in few different shapes, whose kernels are kept.
"""

import copy
from typing import cast

import torch
from torch import Tensor, nn

from .layers import Encoder, EncoderLayer

CHUNK = 512  # rows
_MOST = 127.0  # largest value; -128 is left out, so that the range is symmetric


class Int8Linear(nn.Module):
    """A linear layer with int8 weights. Takes and gives float32.

    weight (Tensor): int8, shape (n_in, n_out), each column divided by its scale.
    scale (Tensor): Of each column, shape (n_out,).
    bias (Tensor): shape (n_out,).
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, linear: nn.Linear):
        super().__init__()
        with torch.no_grad():
            scale = linear.weight.abs().amax(1).clamp(min=1e-12) / _MOST
            weight = (linear.weight / scale[:, None]).round().to(torch.int8)
            bias = torch.zeros_like(scale) if linear.bias is None else linear.bias.detach().clone()
        self.register_buffer("weight", weight.T.contiguous())
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    def forward(self, rows: Tensor) -> Tensor:
        """rows (Tensor): shape (n, n_in). RETURNS (Tensor): shape (n, n_out)."""
        result = rows.new_empty(len(rows), len(self.bias))
        for own, out in zip(rows.split(CHUNK), result.split(CHUNK), strict=True):
            scale = own.abs().amax(1, keepdim=True).clamp_(min=1e-12).div_(_MOST)
            # In place, and converted before the scales: mixed types take torch many times longer.
            sums = torch._int_mm(own.div(scale).round_().to(torch.int8), self.weight)
            torch.addcmul(self.bias, sums.to(torch.float32).mul_(scale), self.scale, out=out)
        return result


class Int8Layer(EncoderLayer):
    """A layer with the same norms, and int8 weights."""

    def __init__(self, layer: EncoderLayer):
        nn.Module.__init__(self)
        self.__dict__.update({k: v for k, v in layer.__dict__.items() if k[:1] != "_"})
        for name, part in layer.named_children():
            setattr(self, name, Int8Linear(part) if isinstance(part, nn.Linear) else part)
        self.eval()

    def _feed_forward(self, rows: Tensor) -> Tensor:
        forward = super()._feed_forward
        chunks = [forward(chunk) for chunk in rows.split(CHUNK)]
        return torch.cat(chunks) if len(chunks) != 1 else chunks[0]


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
