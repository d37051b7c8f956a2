"""The canonical encoder: embeddings and post-norm layers that work on packed rows."""

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn
from transformers.activations import ACT2FN


@dataclass(frozen=True)
class EncoderConfig:
    """Everything that is needed to build an encoder's shapes, without its weights.

    first_position (int): The position of a unit's first piece (RoBERTa counts from pad_id + 1).
    n_positions (int): Pieces of the longest unit, special pieces included.
    """

    family: str
    n_vocab: int
    n_types: int
    n_positions: int
    first_position: int
    n_layers: int
    n_heads: int
    hidden: int
    inner: int
    activation: str
    norm_eps: float
    hidden_dropout: float
    attention_dropout: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class EncoderLayer(nn.Module):
    """One transformer layer (Vaswani et al. 2017, norms behind the sub-layers), cut where early
    exit needs it: keys and values come from all rows, everything else from the active rows only.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.query = nn.Linear(config.hidden, config.hidden)
        self.key_value = nn.Linear(config.hidden, 2 * config.hidden)
        self.output = nn.Linear(config.hidden, config.hidden)
        self.attention_norm = nn.LayerNorm(config.hidden, eps=config.norm_eps)
        self.inner = nn.Linear(config.hidden, config.inner)
        self.outer = nn.Linear(config.inner, config.hidden)
        self.norm = nn.LayerNorm(config.hidden, eps=config.norm_eps)
        self.activation = ACT2FN[config.activation]
        self.dropout = nn.Dropout(config.hidden_dropout)

    def finish(self, rows: Tensor, attended: Tensor) -> Tensor:
        """The layer behind its attention, but for its last norm.

        rows (Tensor): The active rows that came into the layer, shape (n_active, hidden).
        attended (Tensor): The mixed values for these rows, shape (n_active, hidden).
        RETURNS (Tensor): The rows that `norm` takes, shape (n_active, hidden).
        """
        rows = self.attention_norm(rows + self.dropout(self.output(attended)))
        inner = self.activation(self.inner(rows))
        return rows + self.dropout(self.outer(inner))


class Encoder(nn.Module):
    """Embeddings and layers. The engine runs them."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.words = nn.Embedding(config.n_vocab, config.hidden)
        self.positions = nn.Embedding(config.first_position + config.n_positions, config.hidden)
        self.types = nn.Embedding(config.n_types, config.hidden)
        self.norm = nn.LayerNorm(config.hidden, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.n_layers))

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        """ids, positions (Tensor): Piece ids and places in their unit (from 0), shape (n_rows,).
        RETURNS (Tensor): The rows that go into layer 1, shape (n_rows, hidden).
        """
        rows = self.words(ids) + self.positions(positions + self.config.first_position)
        if self.config.n_types:
            rows = rows + self.types.weight[0]
        return self.dropout(self.norm(rows))
