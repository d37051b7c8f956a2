"""float32 products of rows with weights, in prediction by the faster of torch's two libraries.

torch multiplies float32 matrices by MKL, which runs at about half of the speed of oneDNN on some
processors (AMD's), and not on others. So which one is tried out, once per process.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .choice import takes_other_way
from .trials import gain

_GAIN = 1.2  # oneDNN has to be so many times as fast, so that chance never decides
_LEAST = 2**20  # multiply-adds; calls of oneDNN take longer, so smaller products are MKL's


class Linear(nn.Linear):
    """torch's linear layer, with `linear` as its product.

    gelu (bool): Whether GELU is applied to what it gives.
    """

    def __init__(self, n_in: int, n_out: int, bias: bool = True, gelu: bool = False):
        super().__init__(n_in, n_out, bias=bias)
        self.gelu = gelu

    def forward(self, rows: Tensor) -> Tensor:
        """rows (Tensor): shape (n, n_in). RETURNS (Tensor): shape (n, n_out)."""
        return linear(rows, self.weight, self.bias, self.gelu)


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """rows · weight' + bias, as torch's F.linear has it. With gradients, and everywhere but in
    float32 on a CPU, it is F.linear.

    rows (Tensor): shape (n, n_in).
    weight (Tensor): shape (n_out, n_in).
    bias (Optional[Tensor]): shape (n_out,).
    gelu (bool): Apply GELU, the exact one; by oneDNN while the product is still in the cache.
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
        result = F.linear(rows, weight, bias)
        return F.gelu(result) if gelu else result
    return by_onednn(_padded(rows), weight, bias, gelu)[: len(rows)]


def take(rows: Tensor, index: Tensor) -> Tensor:
    """Some rows; in prediction with room behind them (see `padded_empty`).

    rows (Tensor): shape (n, …).
    index (Tensor): shape (n_taken,).
    RETURNS (Tensor): shape (n_taken, …).
    """
    if torch.is_grad_enabled():
        return rows.index_select(0, index)
    return torch.index_select(rows, 0, index, out=padded_empty(rows, len(index)))


def padded_empty(rows: Tensor, n: int) -> Tensor:
    """Memory for n rows; in prediction with room behind, so that `linear` need not copy them where
    it fills them up.

    rows (Tensor): What they are like, shape (…, n_in).
    n (int): How many.
    RETURNS (Tensor): Without values, shape (n, n_in).
    """
    if torch.is_grad_enabled():
        return rows.new_empty(n, *rows.shape[1:])
    filled = rows.new_empty(padded_length(n), *rows.shape[1:])
    filled[n:] = 0
    return filled[:n]


def _padded(rows: Tensor) -> Tensor:
    """The rows, and what lies behind them in memory, as many as `padded_length` says; if there is
    not enough of it, a copy with zeros. shape (n_filled, n_in).
    """
    n, n_filled, n_in = len(rows), padded_length(len(rows)), rows.shape[1]
    if n_filled == n:
        return rows
    n_stored = rows.untyped_storage().nbytes() // rows.element_size()
    if rows.is_contiguous() and rows.storage_offset() + n_filled * n_in <= n_stored:
        return rows.as_strided((n_filled, n_in), rows.stride())
    filled = rows.new_zeros(n_filled, n_in)
    filled[:n] = rows
    return filled


def padded_length(n: int) -> int:
    """How many rows n rows are multiplied as. oneDNN makes a kernel for each shape, which takes as
    long as a small product, and keeps it; so there are few shapes.

    n (int): At least 0.
    RETURNS (int): n or more, at most 3 more or a sixteenth.
    """
    step = max(4, 2 ** n.bit_length() // 32)
    return -(-n // step) * step


def column_major(layer: nn.Linear) -> nn.Linear:
    """Store a weight of shape (n_out, n_in) column by column, in place. The values stay the same;
    with few rows, where reading the weight takes most of the time, a product is faster.
    """
    layer.weight.data = layer.weight.data.T.contiguous().T
    return layer


@cache
def onednn_is_faster() -> bool:
    """RETURNS (bool): Whether float32 products are clearly faster by oneDNN than by MKL, tried out
    in a few milliseconds; or what is pinned, see choice.
    """
    if not torch.backends.mkldnn.is_available():
        return False

    def tried() -> bool:
        rows, layer = torch.zeros(64, 512), column_major(nn.Linear(512, 512))
        return gain(by_onednn, F.linear, rows, layer.weight, layer.bias) > _GAIN

    return takes_other_way("products", tried)


def by_onednn(rows: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    """`linear` by oneDNN: float32, on a CPU, without gradients; the weight stored by rows or by
    columns (others take a hundred times as long).

    rows, weight, bias, gelu: See `linear`.
    RETURNS (Tensor): shape (n, n_out).
    """
    last, kind = ("gelu", "none") if gelu else ("none", "")
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, last, [], kind)
