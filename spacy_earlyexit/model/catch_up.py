"""Begin stage 2 with maps that already bring halted rows forward."""

import numpy as np
import torch
from torch import Tensor

from .batch import Batch
from .encoders import Encoder
from .engine import run_layer
from .pieces import Pieces

# Rows that the maps are fitted on; they are seen once, at full depth.
FIT_ROWS = 16_384
RIDGE = 1e-3  # of the rows' mean variance


@torch.no_grad()
def fit_catch_up(encoder: Encoder, pieces: Pieces, max_rows: int = FIT_ROWS) -> None:
    """Fit the maps of `encoder.catch_up`: of all maps of their rank those that, at full depth, come
    nearest to what each layer does to its rows (reduced-rank ridge regression; Izenman 1975).

    encoder (Encoder): With catch_up maps; these are replaced.
    pieces (Pieces): Of training text.
    max_rows (int): Rows that are looked at, of the first units.
    """
    lengths = np.diff(pieces.unit_starts)
    first = np.arange(max(1, int(np.searchsorted(np.cumsum(lengths), max_rows, side="right"))))
    units = first[np.argsort(lengths[first], kind="stable")]
    batch = Batch(pieces, units, encoder.words.weight.device)
    rows = encoder.embed(batch.ids, batch.places)
    for number in range(1, encoder.config.n_layers + 1):
        behind = run_layer(encoder.layer(number), rows, batch, dropout=0.0)
        down, up, bias = low_rank_map(rows, behind - rows, encoder.config.catch_up)
        encoder.catch_up.down[number - 1] = down
        encoder.catch_up.up[number - 1] = up
        encoder.catch_up.bias[number - 1] = bias
        rows = behind


def low_rank_map(rows: Tensor, targets: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """rows D U + b, of all that have this rank the nearest to the targets.

    rows, targets (Tensor): shape (n, H).
    rank (int): Columns of D.
    RETURNS (Tuple[Tensor, Tensor, Tensor]): D, U and b, of shapes (H, rank), (rank, H) and (H,).
    """
    x, y = rows.double(), targets.double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    covariance = x.T @ x / len(x)
    ridge = RIDGE * covariance.diagonal().mean() * torch.eye(x.shape[1], dtype=x.dtype).to(x)
    full = torch.linalg.solve(covariance + ridge, x.T @ y / len(x))
    # The directions in which what the full map says varies most.
    _, directions = torch.linalg.eigh(full.T @ covariance @ full)
    up = directions[:, -rank:].T
    down = full @ up.T
    bias = y_mean - x_mean @ down @ up
    return tuple(part.to(rows) for part in (down, up, bias))  # type: ignore[return-value]
