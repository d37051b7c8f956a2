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

from .trials import gain

_GAIN = 1.2  # batched products have to be so many times as fast, so that chance never decides
# Attention's weights at a time that stay in a processor's cache.
_MOST_WEIGHTS = 2**17
_VECTOR = 16  # numbers in a vector of AVX-512


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """softmax(query · key' / sqrt(size)) · value, as torch's F.scaled_dot_product_attention. With
    gradients, and everywhere but in float32 on a CPU, it is that.

    query (Tensor): shape (n_units, n_heads, width, size).
    key, value (Tensor): shape (n_units, n_heads, length, size).
    mask (Optional[Tensor]): Which keys a query sees, bool, shape (n_units, 1, width, length).
    dropout (float): On the weights.
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
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return batched(query, key, value, mask)


def batched(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """`attention` by batched products, of as many units at a time as the cache holds.

    query, key, value, mask: See `attention`.
    """
    n_units, n_heads, width, _ = query.shape
    at_a_time = max(_MOST_WEIGHTS // max(n_heads * width * key.shape[2], 1), 1)
    if n_units <= at_a_time:
        return _batched(query, key, value, mask)
    parts = [part.split(at_a_time) for part in (query, key, value)]
    masks = [None] * len(parts[0]) if mask is None else mask.split(at_a_time)
    return torch.cat([_batched(*part) for part in zip(*parts, masks, strict=True)])


def _batched(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    n_units, n_heads, width, size = query.shape
    # Copies, each head's numbers behind one another: products of strided batches are slow.
    q, k, v = (rows.reshape(n_units * n_heads, -1, size) for rows in (query, key, value))
    scores = torch.baddbmm(q.new_empty(()), q, k.transpose(1, 2), beta=0, alpha=size**-0.5)
    if mask is not None:
        by_head = scores.view(n_units, n_heads, width, -1)
        by_head.masked_fill_(~mask, float("-inf"))
    return torch.bmm(_softmax(scores), v).view(query.shape)


def _softmax(scores: Tensor) -> Tensor:
    """Softmax over the last dimension. torch's takes rows that do not fill a vector of the
    processor number by number.
    """
    if scores.shape[-1] >= _VECTOR:
        return scores.softmax(-1)
    weights = (scores - scores.amax(-1, keepdim=True)).exp_()
    return weights.div_(weights.sum(-1, keepdim=True))


@cache
def batched_is_faster(n_threads: int) -> bool:
    """n_threads (int): torch's of now; each number has a trial of its own.
    RETURNS (bool): Whether batched products are clearly faster, tried out in a few milliseconds.
    """
    query, key = torch.zeros(24, 8, 12, 32), torch.zeros(24, 8, 24, 32)
    return gain(batched, F.scaled_dot_product_attention, query, key, key) > _GAIN
