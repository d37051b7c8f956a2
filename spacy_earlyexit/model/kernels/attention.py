"""Attention of many short units, in prediction by the faster of two ways.

torch's fused attention makes two small products per unit and head. Where torch has several threads,
each of these can ask for threads again, which takes longer than the product itself (with MKL on an
AMD processor, two threads were slower than one). Two batched products for many units and heads have
no such cost, but write down all weights. Which way is faster is tried out, once per number of
threads; `benchmarks/products.py attention` shows it.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .choice import takes_other_way
from .trials import gain

_GAIN = 1.2  # batched products have to be so many times as fast, so that chance never decides
# Attention's weights at a time that stay in a processor's cache.
_MOST_WEIGHTS = 2**17
_VECTOR = 16  # numbers in a vector of AVX-512
_NOTHING = torch.empty(())  # what a product is not added to
_BOUND = 80.0  # exponentials of what lies between it and its negative are far from float32's ends


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    out: Tensor | None = None,
) -> Tensor:
    """softmax(query · key' / sqrt(size)) · value, as torch's F.scaled_dot_product_attention. With
    gradients, and everywhere but in float32 on a CPU, it is that.

    query (Tensor): shape (n_units, n_heads, width, size).
    key, value (Tensor): shape (n_units, n_heads, length, size).
    mask (Optional[Tensor]): Which keys a query sees, bool, shape (n_units, 1, width, length).
    dropout (float): On the weights.
    out (Optional[Tensor]): Where the result goes, in any layout; without gradients.
    RETURNS (Tensor): shape (n_units, n_heads, width, size).
    """
    if (
        torch.is_grad_enabled()
        or dropout
        or query.dtype != torch.float32
        or query.device.type != "cpu"
        or query.shape[1] * query.shape[2] * key.shape[2] > _MOST_WEIGHTS
        or not batched_is_faster(torch.get_num_threads())
    ):
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return mixed if out is None else out.copy_(mixed)
    return batched(query, key, value, mask, out)


def batched(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """`attention` by batched products, of as many units at a time as the cache holds.

    query, key, value, mask, out: See `attention`.
    """
    n_units, n_heads, width, _ = query.shape
    at_a_time = max(_MOST_WEIGHTS // max(n_heads * width * key.shape[2], 1), 1)
    if n_units <= at_a_time:
        mixed = _batched(query, key, value, mask)
        return mixed if out is None else out.copy_(mixed)
    out = torch.empty_like(query) if out is None else out
    parts = [part.split(at_a_time) for part in (query, key, value, out)]
    masks = [None] * len(parts[0]) if mask is None else mask.split(at_a_time)
    for q, k, v, result, near in zip(*parts, masks, strict=True):
        result.copy_(_batched(q, k, v, near))
    return out


def _batched(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    n_units, n_heads, width, size = query.shape
    # Copies, each head's numbers behind one another: products of strided batches are slow.
    q, k, v = (rows.reshape(n_units * n_heads, -1, size) for rows in (query, key, value))
    scores = torch.baddbmm(_NOTHING, q, k.transpose(1, 2), beta=0, alpha=size**-0.5)
    weights = _softmax(scores.view(n_units, n_heads, width, -1), mask)
    return torch.bmm(weights.view(scores.shape), v).view(query.shape)


def _softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the last dimension of what the mask leaves; the scores are overwritten.

    torch's takes rows that do not fill a vector of the processor number by number, and so does its
    maximum of each row; this is needed only where an exponential could overflow or vanish.
    """
    short, bounded = scores.shape[-1] < _VECTOR, False
    if short:
        low, high = scores.aminmax()
        bounded = max(-float(low), float(high)) < _BOUND
    if mask is not None:
        scores.masked_fill_(~mask, float("-inf"))
    if not short:
        return scores.softmax(-1)
    weights = scores.exp_() if bounded else (scores - scores.amax(-1, keepdim=True)).exp_()
    return weights.div_(weights.sum(-1, keepdim=True))


@cache
def batched_is_faster(n_threads: int) -> bool:
    """n_threads (int): torch's of now; each number has a trial of its own.
    RETURNS (bool): Whether batched products are clearly faster, tried out in a few milliseconds; or
        what is pinned, see choice.
    """

    def tried() -> bool:
        query, key = torch.zeros(24, 8, 12, 32), torch.zeros(24, 8, 24, 32)
        return gain(batched, F.scaled_dot_product_attention, query, key, key) > _GAIN

    return takes_other_way("attention", tried)
