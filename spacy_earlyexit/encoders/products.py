"""float32 products of rows with weights, in prediction by the faster of torch's two libraries.

torch multiplies float32 matrices by MKL, which runs at about half of the speed of oneDNN on some
processors (AMD's), and not on others. So which one is tried out, once per process.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .trials import gain

_GAIN = 1.2  # oneDNN has to be so many times as fast, so that chance never decides
_LEAST = 2**20  # multiply-adds; calls of oneDNN take longer, so smaller products are MKL's


class Linear(nn.Linear):
    """torch's linear layer, with `linear` as its product."""

    def forward(self, rows: Tensor) -> Tensor:
        """rows (Tensor): shape (n, n_in). RETURNS (Tensor): shape (n, n_out)."""
        return linear(rows, self.weight, self.bias)


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows · weight' + bias, as torch's F.linear has it. With gradients, and everywhere but in
    float32 on a CPU, it is F.linear.

    rows (Tensor): shape (n, n_in).
    weight (Tensor): shape (n_out, n_in).
    bias (Optional[Tensor]): shape (n_out,).
    RETURNS (Tensor): shape (n, n_out).
    """
    if (
        torch.is_grad_enabled()
        or rows.dtype != torch.float32
        or rows.device.type != "cpu"
        or torch.is_autocast_enabled("cpu")
        or rows.numel() * len(weight) < _LEAST
        or not onednn_is_faster()
    ):
        return F.linear(rows, weight, bias)
    n = len(rows)
    if rounded(n) != n:
        padded = rows.new_empty(rounded(n), rows.shape[1])
        padded[:n], padded[n:] = rows, 0.0
        rows = padded
    return by_onednn(rows, weight, bias)[:n]


def rounded(n: int) -> int:
    """How many rows n rows are multiplied as. oneDNN makes a kernel for each shape, which takes as
    long as a small product, and keeps it; so there are few shapes.

    n (int): At least 0.
    RETURNS (int): n or more, at most 3 more or a sixteenth.
    """
    step = max(4, 2 ** n.bit_length() // 32)
    return -(-n // step) * step


def by_columns(layer: nn.Linear) -> nn.Linear:
    """Store a weight of shape (n_out, n_in) column by column, in place. The values stay the same;
    with few rows, where reading the weight takes most of the time, a product is faster.
    """
    layer.weight.data = layer.weight.data.T.contiguous().T
    return layer


@cache
def onednn_is_faster() -> bool:
    """RETURNS (bool): Whether float32 products are clearly faster by oneDNN than by MKL, tried out
    in a few milliseconds.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    rows, layer = torch.zeros(64, 512), by_columns(nn.Linear(512, 512))
    return gain(by_onednn, F.linear, rows, layer.weight, layer.bias) > _GAIN


def by_onednn(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`linear` by oneDNN: float32, on a CPU, without gradients; the weight stored by rows or by
    columns (others take a hundred times as long).

    rows, weight, bias: See `linear`.
    RETURNS (Tensor): shape (n, n_out).
    """
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
