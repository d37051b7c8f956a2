"""Linear layers whose products are in int8, by oneDNN.

Weights have one scale per output column, activations one per row, taken from the row itself
(dynamic quantisation). So a row's result does not depend on what else is in the batch. Sums are
exact.

Rows go through in chunks, so that products come in few different shapes, whose kernels are kept.
"""

from functools import cache

import torch
from torch import Tensor, nn

from ...errors import Errors
from .chunks import CHUNK
from .products import Linear

_MOST = 127.0  # largest activation; -128 is left out, so that the range is symmetric
_MIDDLE = 128  # activations are stored without a sign, which is what processors multiply


class Int8Product:
    """Products of rows with one int8 matrix, by oneDNN.

    weight (Tensor): int8, shape (n_out, n_in).
    scale (Tensor): Of each output column, shape (n_out,), float32.
    """

    def __init__(self, weight: Tensor, scale: Tensor):
        self.packed = torch.ops.onednn.qlinear_prepack(weight, None)
        self.scale = scale
        self.zero = torch.zeros(len(scale), dtype=torch.int32)

    def __call__(self, rows: Tensor) -> Tensor:
        """rows (Tensor): int8, shape (n, n_in). RETURNS (Tensor): float32, shape (n, n_out)."""
        unsigned = rows.view(torch.uint8).bitwise_xor(_MIDDLE)  # adds 128
        return torch.ops.onednn.qlinear_pointwise(
            unsigned, 1.0, _MIDDLE, self.packed, self.scale, self.zero, None,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip


@cache
def most_weight() -> float:
    """The largest weight whose products are exact. Processors without VNNI instructions add pairs
    of products in 16 bits, where two of 255·127 do not fit; with weights of 7 bits they do.

    RETURNS (float): 127 or 63.
    RAISES (ValueError): If this torch has no int8 products.
    """
    try:
        rows = torch.full((64, 128), 127, dtype=torch.int8)
        rows[::2] = -127
        for most in (127, 63):
            product = Int8Product(torch.full((64, 128), most, dtype=torch.int8), torch.ones(64))
            if (product(rows) == most * rows.sum(1, keepdim=True)).all():
                return float(most)
    except (AttributeError, RuntimeError) as error:
        raise ValueError(Errors.E047) from error
    raise ValueError(Errors.E047)


class Int8Linear(nn.Module):
    """A linear layer with int8 weights. Takes and gives float32.

    product (Int8Product): With weights of which each column was divided by its scale.
    bias (Tensor): shape (n_out,).
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        most = most_weight()
        with torch.no_grad():
            scale = linear.weight.abs().amax(1).clamp(min=1e-12) / most
            weight = (linear.weight / scale[:, None]).round().to(torch.int8).contiguous()
            bias = torch.zeros_like(scale) if linear.bias is None else linear.bias.detach().clone()
            self.product = Int8Product(weight, scale.detach())
        self.bias = bias
        self.gelu = isinstance(linear, Linear) and linear.gelu

    def forward(self, rows: Tensor) -> Tensor:
        """rows (Tensor): shape (n, n_in). RETURNS (Tensor): shape (n, n_out)."""
        result = rows.new_empty(len(rows), len(self.bias))
        for own, out in zip(rows.split(CHUNK), result.split(CHUNK), strict=True):
            if not len(own):
                break
            scale = own.abs().amax(1, keepdim=True).clamp_(min=1e-12).div_(_MOST)
            product = self.product(own.div(scale).round_().to(torch.int8))
            torch.addcmul(self.bias, product, scale, out=out)
            if self.gelu:
                torch.ops.aten.gelu_(out)
        return result
