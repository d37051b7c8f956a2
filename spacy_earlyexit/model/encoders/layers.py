"""The canonical encoder: embeddings and layers that work on packed rows."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from ..kernels.chunks import CHUNK, chunks_of
from ..kernels.products import Linear, column_major, linear, padded_empty


@dataclass(frozen=True)
class EncoderConfig:
    """Everything that is needed to build an encoder's shapes, without its weights. What has a
    default is BERT's way.

    n_positions (int): Pieces of the longest unit, special pieces included.
    hidden, inner (int): Size of a row, and of the feed-forward's inner layer.
    hidden_dropout, attention_dropout (float): On what the feed-forward gives, and on the
        attention's weights.
    n_types (int): Token types, of which the first is used; 0 if there are none.
    first_position (int): The position of a unit's first piece (RoBERTa counts from pad_id + 1).
    embedding (Optional[int]): Size of the embeddings where a linear layer brings them to `hidden`.
    embedding_dropout, output_dropout (Optional[float]): On the embeddings, and on what the
        attention gives; None: as hidden_dropout.
    inner_dropout (float): Inside of the feed-forward.
    attention_bias, inner_bias, norm_bias (bool): Which of attention, feed-forward and norms have
        biases.
    gated (bool): The feed-forward is activation(a)·b with a, b of size `inner` (GLU).
    pre_norm (bool): Norms in front of attention and feed-forward, and a last one behind all
        layers.
    blocks (Sequence[int]): Which set of weights each layer uses, where layers share them. Empty:
        each its own.
    windows (Sequence[Optional[int]]): Per layer how many rows a row sees on each side; None: all.
        Empty: all, everywhere.
    thetas (Sequence[float]): Per layer the base of its rotary positions. Empty: positions are
        learned embeddings.
    aligned (bool): There is a map per layer for rows that leave behind it, see Encoder.at_exit.
    catch_up (int): Rank of the maps that halted rows go through, see CatchUp; 0: they are copied.
    """

    family: str
    n_vocab: int
    n_positions: int
    n_layers: int
    n_heads: int
    hidden: int
    inner: int
    activation: str
    norm_eps: float
    hidden_dropout: float
    attention_dropout: float
    n_types: int = 0
    first_position: int = 0
    embedding: int | None = None
    embedding_dropout: float | None = None
    output_dropout: float | None = None
    inner_dropout: float = 0.0
    attention_bias: bool = True
    inner_bias: bool = True
    norm_bias: bool = True
    gated: bool = False
    pre_norm: bool = False
    blocks: Sequence[int] = ()
    windows: Sequence[int | None] = ()
    thetas: Sequence[float] = ()
    aligned: bool = False
    catch_up: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def norm(self, size: int) -> nn.LayerNorm:
        return nn.LayerNorm(size, eps=self.norm_eps, bias=self.norm_bias)

    def dropout(self, rate: float | None) -> float:
        return self.hidden_dropout if rate is None else rate


class EncoderLayer(nn.Module):
    """One transformer layer, cut where early exit needs it: keys and values come from all rows,
    everything else from the active rows only.

    Norms are behind the sub-layers (Vaswani et al. 2017) or in front of them (`pre_norm`); then
    rows are the residual stream, which no norm has touched.
    """

    def __init__(self, config: EncoderConfig, number: int):
        """number (int): The layer's, from 1; of layers that share weights, the first one's."""
        super().__init__()
        hidden, bias = config.hidden, config.attention_bias
        self.n_heads = config.n_heads
        self.pre_norm, self.gated = config.pre_norm, config.gated
        self.window = config.windows[number - 1] if config.windows else None
        self.theta = config.thetas[number - 1] if config.thetas else None
        self.query = Linear(hidden, hidden, bias=bias)
        self.key_value = Linear(hidden, 2 * hidden, bias=bias)
        self.output = Linear(hidden, hidden, bias=bias)
        # Layer 1 of pre-norm encoders gets the embeddings, which have had their norm.
        normed = config.pre_norm and number == 1
        self.attention_norm = nn.Identity() if normed else config.norm(hidden)
        inner = 2 * config.inner if config.gated else config.inner
        gelu = config.activation == "gelu" and not config.gated
        self.inner = Linear(hidden, inner, bias=config.inner_bias, gelu=gelu)
        self.activation = nn.Identity() if gelu else ACT2FN[config.activation]
        self.outer = Linear(config.inner, hidden, bias=config.inner_bias)
        self.norm = config.norm(hidden)
        self.output_dropout = config.dropout(config.output_dropout)
        self.inner_dropout, self.outer_dropout = config.inner_dropout, config.hidden_dropout

    def queries(self, rows: Tensor) -> Tensor:
        """rows (Tensor): The active rows, shape (n_active, hidden).
        RETURNS (Tensor): Their queries, shape (n_active, hidden), without rotary positions.
        """
        return self.query(self.attention_norm(rows) if self.pre_norm else rows)

    def keys_values(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """rows (Tensor): All rows, halted ones too, shape (n_rows, hidden).
        RETURNS (Tuple[Tensor, Tensor]): Keys, without rotary positions, and values, both of shape
            (n_rows, hidden).
        """
        both = self.key_value(self.attention_norm(rows) if self.pre_norm else rows)
        key, value = both.chunk(2, dim=-1)
        return key, value

    def rotate(self, rows: Tensor, places: Tensor) -> Tensor:
        """Rotary positions (Su et al. 2021, section 3.2; the halves of each head make the pairs).

        rows (Tensor): Queries or keys, shape (n, hidden).
        places (Tensor): Their places in their unit, from 0, shape (n,).
        RETURNS (Tensor): shape (n, hidden).
        """
        size = rows.shape[-1] // self.n_heads
        # Angles of far places need more than half precision.
        dtype = torch.promote_types(rows.dtype, torch.float32)
        steps = torch.arange(0, size, 2, dtype=dtype, device=rows.device) / size
        angles = places[:, None].to(dtype) * (1.0 / cast(float, self.theta) ** steps)
        cos, sin = angles.cos()[:, None].to(rows.dtype), angles.sin()[:, None].to(rows.dtype)
        a, b = rows.view(len(rows), self.n_heads, size).chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).view(rows.shape)

    def finish(self, rows: Tensor, attended: Tensor) -> Tensor:
        """The layer behind its attention.

        rows (Tensor): The active rows that came into the layer, shape (n_active, hidden).
        attended (Tensor): The mixed values for these rows, shape (n_active, hidden).
        RETURNS (Tensor): The rows that leave the layer, shape (n_active, hidden).
        """
        rows = rows + self._drop(self.output(attended), self.output_dropout)
        if self.pre_norm:
            return rows + self._feed_forward(self.norm(rows))
        rows = self.attention_norm(rows)
        finished: Tensor = self.norm(rows + self._feed_forward(rows))
        return finished

    def _feed_forward(self, rows: Tensor) -> Tensor:
        inner = self.inner(rows)
        if self.gated:
            inner, gate = inner.chunk(2, dim=-1)
            inner = self.activation(inner) * gate
        else:
            inner = self.activation(inner)
        outer = self.outer(self._drop(inner, self.inner_dropout))
        return self._drop(outer, self.outer_dropout)

    def _drop(self, rows: Tensor, rate: float) -> Tensor:
        return F.dropout(rows, rate) if self.training and rate else rows


class CatchUp(nn.Module):
    """What a layer would have made of a row that has halted, guessed by a linear map of low rank:
    h + (h D_l) U_l + b_l. Deeper layers then see halted rows about where they were trained to see
    them, at a fraction of a layer's cost. (Din et al. 2023, "Jump to Conclusions", map rows of one
    layer to a later one to read them; here it is done layer by layer, for the words around.)

    At first it is the identity, see training/catch_up.py.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        n_layers, hidden, rank = config.n_layers, config.hidden, config.catch_up
        self.down = nn.Parameter(torch.empty(n_layers, hidden, rank))
        self.up = nn.Parameter(torch.zeros(n_layers, rank, hidden))
        self.bias = nn.Parameter(torch.zeros(n_layers, hidden))
        nn.init.normal_(self.down, std=0.02)  # or neither of the two factors would have a gradient

    def forward(self, number: int, rows: Tensor) -> Tensor:
        """number (int): The layer that the rows are spared, from 1.
        rows (Tensor): Rows that have halted, shape (n, hidden).
        RETURNS (Tensor): shape (n, hidden).
        """
        at = number - 1
        return linear(linear(rows, self.down[at].T), self.up[at].T, self.bias[at]).add_(rows)


class Encoder(nn.Module):
    """Embeddings and layers. The engine runs them.

    `final_norm` makes of a row, behind whatever layer, what off-ramps and listeners see: the row
    itself where norms are behind the sub-layers.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        size = config.hidden if config.embedding is None else config.embedding
        self.words = nn.Embedding(config.n_vocab, size)
        if not config.thetas:
            self.positions = nn.Embedding(config.first_position + config.n_positions, size)
        if config.n_types:
            self.types = nn.Embedding(config.n_types, size)
        self.norm = config.norm(size)
        self.dropout = nn.Dropout(config.dropout(config.embedding_dropout))
        self.project = nn.Identity() if config.embedding is None else Linear(size, config.hidden)
        self.blocks = list(config.blocks) or list(range(config.n_layers))
        self.layers = nn.ModuleList(
            EncoderLayer(config, self.blocks.index(block) + 1)
            for block in range(max(self.blocks) + 1)
        )
        self.final_norm = config.norm(config.hidden) if config.pre_norm else nn.Identity()
        if config.aligned:
            self.align = nn.Parameter(
                torch.zeros(config.n_layers - 1, config.hidden, config.hidden)
            )
        if config.catch_up:
            self.catch_up = CatchUp(config)

    def set_catch_up(self, rank: int) -> None:
        """Put in maps for halted rows that have learned nothing yet, or take them out. Nothing
        happens where there are maps of this rank.

        rank (int): See EncoderConfig.catch_up; at most `hidden`.
        """
        rank = min(rank, self.config.hidden)
        if rank == self.config.catch_up:
            return
        if self.config.catch_up:
            del self.catch_up
        self.config = replace(self.config, catch_up=rank)
        if rank:
            self.catch_up = CatchUp(self.config).to(self.words.weight.device)

    def lay_out(self) -> None:
        """Store the weights of the layers' products as products read them, see column_major."""
        for part in self.layers.modules():
            if isinstance(part, nn.Linear):
                column_major(part)

    def layer(self, number: int) -> EncoderLayer:
        """number (int): From 1. Layers that share their weights are one module."""
        return cast(EncoderLayer, self.layers[self.blocks[number - 1]])

    def embed(self, ids: Tensor, places: Tensor) -> Tensor:
        """ids, places (Tensor): Piece ids and places in their unit (from 0), shape (n_rows,).
        RETURNS (Tensor): The rows that go into layer 1, shape (n_rows, hidden).
        """
        chunks = chunks_of(ids, 4 * CHUNK)  # no wide numbers in between
        if len(chunks) == 1:
            return self._embed(ids, places)
        rows = padded_empty(self.words.weight.new_empty(0, self.config.hidden), len(ids))
        for chunk in chunks:
            rows[chunk] = self._embed(ids[chunk], places[chunk])
        return rows

    def _embed(self, ids: Tensor, places: Tensor) -> Tensor:
        rows = self.words(ids)
        if not self.config.thetas:
            rows += self.positions(places + self.config.first_position)
        if self.config.n_types:
            rows += self.types.weight[0]
        return self.project(self.dropout(self.norm(rows)))

    def at_exit(self, rows: Tensor, layers: np.ndarray) -> Tensor:
        """What listeners see of rows that left behind different layers. Where `aligned`, a linear
        map per layer, which begins as the identity, brings them to where those of the last layer
        are, so that one head can read them all (Din et al. 2023, "Jump to Conclusions").

        rows (Tensor): As they left, shape (n, hidden).
        layers (ndarray): Behind which layer each one left, from 1, shape (n,).
        RETURNS (Tensor): shape (n, hidden).
        """
        rows = self.final_norm(rows)
        if not self.config.aligned or (layers == self.config.n_layers).all():
            return rows
        order = np.argsort(layers, kind="stable")
        counts = np.bincount(layers, minlength=self.config.n_layers + 1)[1:]
        *parts, last = rows[torch.from_numpy(order).to(rows.device)].split(counts.tolist())
        moved = [part + part @ by.T for part, by in zip(parts, self.align, strict=True)]
        return torch.cat([*moved, last])[torch.from_numpy(np.argsort(order)).to(rows.device)]
