"""Rows in chunks that stay in a processor's cache."""

import torch
from torch import Tensor

# Rows that prediction on a CPU takes through row-wise parts at a time: what stands between two
# steps then stays in its cache.
CHUNK = 512


def chunks_of(rows: Tensor, most: int = CHUNK) -> list[slice]:
    """rows (Tensor): shape (n, …).
    most (int): Of each chunk.
    RETURNS (List[slice]): The chunks; with gradients and on a GPU all in one.
    """
    n = len(rows)
    if torch.is_grad_enabled() or rows.device.type != "cpu" or n <= most:
        return [slice(0, n)]
    return [slice(start, min(start + most, n)) for start in range(0, n, most)]
