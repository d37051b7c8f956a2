"""What the encoder multiplies: multiply-accumulates (MACs) of embeddings, layers and off-ramps."""

import numpy as np

from .encoders import EncoderConfig


def layer_macs(config: EncoderConfig, n_active: np.ndarray, n_rows: np.ndarray) -> np.ndarray:
    """Multiply-accumulates of one layer per unit (method: cost accounting).

    2H²(A+N) [projections] + 2HAN [attention, all heads] + 2HFA [feed-forward; gated: 3HFA]
    + 2HR(N-A) [maps of rank R for halted rows, if there are any]

    A local window costs no less: the scores outside of it are computed, then masked.

    config (EncoderConfig): Gives H, F and R.
    n_active, n_rows (ndarray): A and N of each unit, shape (n_units,).
    RETURNS (ndarray): shape (n_units,), float64.
    """
    active, rows = n_active.astype(np.float64), n_rows.astype(np.float64)
    h, f = config.hidden, config.inner
    feed_forward = (3 if config.gated else 2) * h * f * active
    caught_up = 2 * h * config.catch_up * (rows - active)
    return 2 * h * h * (active + rows) + 2 * h * active * rows + feed_forward + caught_up


def embedding_macs(config: EncoderConfig, n_rows: np.ndarray) -> np.ndarray:
    """Multiply-accumulates before layer 1 per unit: the embeddings' projection, if there is one.

    config (EncoderConfig): Gives H and the embeddings' size.
    n_rows (ndarray): Rows of each unit, shape (n_units,).
    RETURNS (ndarray): shape (n_units,), float64.
    """
    return float((config.embedding or 0) * config.hidden) * n_rows


def full_depth_macs(
    config: EncoderConfig, n_rows: np.ndarray, n_words: np.ndarray, n_weights: int
) -> np.ndarray:
    """Multiply-accumulates of the embeddings, all layers and the last off-ramp per unit.

    n_rows, n_words (ndarray): Of each unit, shape (n_units,).
    n_weights (int): What an off-ramp multiplies a word with.
    RETURNS (ndarray): shape (n_units,), float64.
    """
    layers = config.n_layers * layer_macs(config, n_rows, n_rows)
    offramp = float(n_weights) * n_words
    return embedding_macs(config, n_rows) + layers + offramp


class Spent:
    """Counts what each unit of a batch costs, layer by layer.

    config (EncoderConfig): The encoder's.
    n_rows (ndarray): Rows of each unit, shape (n_units,).
    n_weights (int): What an off-ramp multiplies a word with.
    """

    def __init__(self, config: EncoderConfig, n_rows: np.ndarray, n_weights: int):
        self.config = config
        self.n_rows = n_rows
        self.n_weights = n_weights
        self.layers: list[tuple[np.ndarray, ...]] = []

    def add(
        self, unit_id: np.ndarray, n_active: np.ndarray, n_rows: np.ndarray, n_scored: np.ndarray
    ) -> None:
        """Count one layer.

        unit_id (ndarray): The units that are still in the batch, shape (n,).
        n_active, n_rows, n_scored (ndarray): Their active rows, all rows, and the words that the
            off-ramp scores, shape (n,).
        """
        self.layers.append((unit_id, n_active, n_rows, n_scored))

    def total(self) -> np.ndarray:
        """RETURNS (ndarray): Multiply-accumulates of each unit, shape (n_units,), float64."""
        unit_id, n_active, n_rows, n_scored = map(np.concatenate, zip(*self.layers, strict=True))
        costs = layer_macs(self.config, n_active, n_rows) + float(self.n_weights) * n_scored
        in_layers = np.bincount(unit_id, costs, len(self.n_rows))
        return embedding_macs(self.config, self.n_rows) + in_layers
