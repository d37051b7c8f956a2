"""The packed forward pass: gather, halt and copy, drop finished units.

Rows of all units lie one behind the other, without padding, shortest unit first:

```
rows     | <s> w0 w1 w1 </s> | <s> w2 w3 w4 w4 w5 </s> | …      hidden (n_rows, H)
unit     |  0   0  0  0   0  |  1   1  1  1  1  1   1  | …      starts (n_units + 1,)
```

In each layer

1. keys and values are made from all rows, queries from the *active* rows only;
2. attention runs over groups of units of one length, which are views of the packed rows; only
   queries are filled up, where the units of a group have different numbers of active rows;
3. output product, feed-forward and norms see the active rows only; the halted rows are copied
   behind them as they are, and go on serving as keys and values (halt-and-copy); an encoder with
   `CatchUp` moves them by a small map of the layer;
4. the off-ramp scores all words of the batch, the criterion says which leave, and their rows halt.
   Special pieces stay active as long as a word of their unit does, unless `Rules` say otherwise;
5. words out of reach of every active word, by default all of a unit without one, are finished:
   their rows leave the batch, and those that stay are put together again, unit by unit.

Bookkeeping is done on the host in numpy, without a loop over words; the device is asked once per
layer (which words leave). Training and prediction share this code: everything is differentiable
but the decision to leave.
"""

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .criteria import UNIT_GAP, ExitCriterion
from .encoders import Encoder, EncoderConfig, EncoderLayer
from .encoders.layers import chunks_of
from .kernels.attention import attention
from .kernels.products import roomy, rounded, take
from .offramps import OffRamps, uncertainty
from .pieces import Pieces, ranges


class MultiExitModule(nn.Module):
    """The encoder with its off-ramps."""

    def __init__(self, encoder: Encoder, offramps: OffRamps):
        super().__init__()
        self.encoder = encoder
        self.offramps = offramps


@dataclass(frozen=True)
class Rules:
    """What follows from a word's exit, and what its off-ramp sees. The defaults are the paper's.

    special_share (float): A unit's special pieces halt when at most this share of its words is
        active: with 1 from the start, wherever words can leave at all.
    reach (Optional[int]): Halted words that are further than this many words from every active one
        of their unit leave the batch, and windows take them for certain. None: they go on serving
        as keys and values as long as a word of their unit is active.
    renorm (bool): Halted rows are copied as they were before their layer's last norm, which each
        later layer applies anew (the released code's second stage); else as they left it.
    mean_pieces (bool): The off-ramps see the mean of a word's pieces, not its first one.
    """

    special_share: float = 0.0
    reach: int | None = None
    renorm: bool = False
    mean_pieces: bool = False


PAPER = Rules()


@dataclass
class EngineOutput:
    """What one batch of units gave, in the order of the batch's words and rows.

    scores (Tensor): Scores of the wanted tasks at each word's exit, shape (n_words, n_classes).
    exit_layer (ndarray): Layer each word left at, from 1, shape (n_words,).
    uncertainty (Tensor): Each word's uncertainty at its exit, shape (n_words,).
    states (Optional[Tensor]): Rows at exit, shape (n_rows, H), if asked for.
    layer_scores (List[Tuple[int, Tensor, Tensor]]): In training, per layer: its number, the words
        still in the batch, shape (n,), and their scores, shape (n, n_classes).
    macs (ndarray): Multiply-accumulates spent per unit, shape (n_units,).
    """

    scores: Tensor
    exit_layer: np.ndarray
    uncertainty: Tensor
    states: Tensor | None
    layer_scores: list[tuple[int, Tensor, Tensor]]
    macs: np.ndarray


class Batch:
    """The words still in the batch: where they and their rows lie. Shrinks as words finish.

    *_id arrays say which row, word or unit of the original batch this was.
    """

    def __init__(
        self,
        pieces: Pieces,
        units: np.ndarray,
        device: torch.device,
        rules: Rules = PAPER,
        halts: bool | np.ndarray = False,
    ):
        """pieces (Pieces): Packed pieces of many units.
        units (ndarray): The units of this batch, shortest first.
        rules (Rules): What follows from a word's exit.
        halts (Union[bool, ndarray]): See ExitCriterion.halts.
        """
        lengths = np.diff(pieces.unit_starts)[units]
        rows = ranges(pieces.unit_starts[units], lengths)
        n_words = np.diff(pieces.word_starts)[units]
        words = ranges(pieces.word_starts[units], n_words)
        starts = np.cumsum(lengths) - lengths
        self.device = device
        self.rules = rules
        # Words of each unit; at or below, its special pieces halt.
        self.least_active = rules.special_share * n_words * halts
        self.most_words = int(n_words.max(initial=0))
        self.pieces_word = words  # index into the pieces' words
        self.pieces_row = rows
        self.places_at_start = np.arange(len(rows)) - np.repeat(starts, lengths)
        self.ids = self.upload(pieces.ids[rows])
        row_unit = np.repeat(np.arange(len(units)), lengths)
        word_unit = np.repeat(np.arange(len(units)), n_words)
        row_word = pieces.row_word[rows]
        first_word = np.cumsum(n_words) - n_words
        shift = (first_word - pieces.word_starts[units])[row_unit]
        row_word = np.where(row_word >= 0, row_word + shift, -1)
        word_shift = (starts - pieces.unit_starts[units])[word_unit]
        self._set(
            lengths=lengths,
            row_word=row_word,
            word_row=pieces.word_row[words] + word_shift,
            word_unit=word_unit,
            row_id=np.arange(len(rows)),
            word_id=np.arange(len(words)),
            unit_id=np.arange(len(units)),
            active=np.ones(len(words), dtype=bool),
        )

    def _set(
        self,
        *,
        lengths: np.ndarray,
        row_word: np.ndarray,
        word_row: np.ndarray,
        word_unit: np.ndarray,
        row_id: np.ndarray,
        word_id: np.ndarray,
        unit_id: np.ndarray,
        active: np.ndarray,
    ) -> None:
        self.lengths = lengths
        self.n_units = len(lengths)
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        self.places_host = self.places_at_start[row_id]
        self.places = self.upload(self.places_host)  # of each row in its unit, from 0
        self.row_word = row_word
        self.row_id = row_id
        self.word_id = word_id
        self.unit_id = unit_id
        self.word_unit_host = word_unit
        self.word_unit = self.upload(word_unit)
        self.word_row = word_row
        self.n_words = np.bincount(word_unit, minlength=self.n_units)
        self.word_gap_host = word_gaps(word_unit, word_id)
        self.word_gap = self.upload(self.word_gap_host)
        self.n_gaps = int((self.word_gap_host > 1).sum())
        self.near: dict[int, list[tuple[int, int, Tensor]]] = {}
        # Rows of all words, word by word; where each word's begin; the share of each in its mean.
        self.word_pieces: tuple[np.ndarray, Tensor, Tensor] | None = None
        self._plan(active)

    def upload(self, index: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(index)).to(self.device)

    def _plan(self, active: np.ndarray) -> None:
        """Set which words are active, shape (n_words,), and with them rows and groups."""
        self.active = active
        n_active_words = np.bincount(self.word_unit_host[active], minlength=self.n_units)
        row_unit = np.repeat(np.arange(self.n_units), self.lengths)
        special_active = n_active_words > self.least_active[self.unit_id]
        row_active = np.where(self.row_word >= 0, active[self.row_word], special_active[row_unit])
        rows = np.flatnonzero(row_active)
        self.n_active = np.bincount(row_unit[rows], minlength=self.n_units)
        self.active_rows_host = rows
        self.active_rows: Tensor | None = None
        self.halted_rows: Tensor | None = None
        self.places_behind: np.ndarray | None = None
        if len(rows) < len(row_active):
            halted = np.flatnonzero(~row_active)
            self.active_rows, self.halted_rows = self.upload(rows), self.upload(halted)
            self.places_behind = np.empty(len(row_active), dtype=np.int64)
            self.places_behind[np.concatenate([rows, halted])] = np.arange(len(row_active))
        self._plan_groups(rows)

    def take_active(self, of_rows: Tensor) -> Tensor:
        """of_rows (Tensor): One entry per row, shape (n_rows, …).
        RETURNS (Tensor): Those of the active rows, shape (n_active, …).
        """
        return of_rows if self.active_rows is None else take(of_rows, self.active_rows)

    def behind(self, rows: np.ndarray) -> np.ndarray:
        """rows (ndarray): Some of the rows, shape (n,).
        RETURNS (ndarray): Where they lie behind the layer, see run_layer, shape (n,).
        """
        return rows if self.places_behind is None else self.places_behind[rows]

    def leave(self, leaving: np.ndarray) -> np.ndarray | None:
        """Halt words, and take those out of the batch that no active word reaches any more.

        leaving (ndarray): The words that leave, shape (n_words,), bool.
        RETURNS (Optional[ndarray]): The rows that stay, in their new order; None if all stay as
            they are.
        """
        active = self.active & ~leaving
        if not active.any():
            self.n_units = 0
            return np.zeros(0, dtype=np.int64)
        keep_word = in_reach(active, self.word_unit_host, self.word_gap_host, self.rules.reach)
        if keep_word.all():
            self._plan(active)
            return None
        live = np.zeros(self.n_units, dtype=bool)
        live[self.word_unit_host[active]] = True
        row_unit = np.repeat(np.arange(self.n_units), self.lengths)
        keep_row = np.where(self.row_word >= 0, keep_word[self.row_word], live[row_unit])
        lengths = np.bincount(row_unit[keep_row], minlength=self.n_units)
        units = np.flatnonzero(live)
        if self.rules.reach is not None:  # units may have got shorter than those before them
            units = units[np.argsort(lengths[units], kind="stable")]
        rows, new_row = _regroup(keep_row, row_unit, units)
        words, new_word = _regroup(keep_word, self.word_unit_host, units)
        new_unit = np.zeros(self.n_units, dtype=np.int64)
        new_unit[units] = np.arange(len(units))
        row_word = self.row_word[rows]
        self._set(
            lengths=lengths[units],
            row_word=np.where(row_word >= 0, new_word[row_word], -1),
            word_row=new_row[self.word_row[words]],
            word_unit=new_unit[self.word_unit_host[words]],
            row_id=self.row_id[rows],
            word_id=self.word_id[words],
            unit_id=self.unit_id[units],
            active=active[words],
        )
        return rows

    def neighbours(self, context: int) -> list[tuple[int, int, Tensor]]:
        """The words around each word that are in the batch, too.

        context (int): How far to look.
        RETURNS (List[Tuple[int, int, Tensor]]): Distance, step and mask: word j + step lies
            `distance` words behind word j of its unit where mask[j], shape (n_words - step, 1),
            bool. Step is less than distance where words in between have left the batch.
        """
        if context not in self.near:
            place = np.cumsum(np.minimum(self.word_gap_host, context + 1))
            self.near[context] = [
                (distance, step, self.upload(place[step:, None] - place[:-step, None] == distance))
                for distance in range(1, context + 1)
                for step in range(1, min(distance, len(place) - 1) + 1)
            ]
        return self.near[context]

    def word_vectors(self, hidden: Tensor) -> Tensor:
        """What the off-ramps see of each word.

        hidden (Tensor): The rows behind a layer, shape (n_rows, H).
        RETURNS (Tensor): shape (n_words, H).
        """
        if not self.rules.mean_pieces:
            return take(hidden, self.upload(self.behind(self.word_row)))
        if self.word_pieces is None:
            rows = np.flatnonzero(self.row_word >= 0)
            counts = np.bincount(self.row_word[rows], minlength=len(self.word_id))
            # Behind them words of no rows, which fill up the off-ramp's product.
            starts = np.full(rounded(len(counts)), len(rows))
            starts[: len(counts)] = np.cumsum(counts) - counts
            share = torch.from_numpy(1.0 / counts[self.row_word[rows]]).to(hidden.dtype)
            self.word_pieces = rows, self.upload(starts), share.to(self.device)
        rows, begin, share = self.word_pieces
        at = self.upload(self.behind(rows))
        # Weighted sums: torch's means take twice as long.
        words = F.embedding_bag(at, hidden, begin, mode="sum", per_sample_weights=share)
        return words[: len(self.word_id)]

    def _plan_groups(self, rows: np.ndarray) -> None:
        """rows (ndarray): The active rows, shape (n_active,)."""
        first = np.flatnonzero(np.diff(self.lengths, prepend=0))
        sizes, lengths = np.diff(first, append=self.n_units), self.lengths[first]
        widths = np.maximum.reduceat(self.n_active, first)
        slots = np.repeat(widths, sizes)  # of each unit
        self.query_slots: Tensor | None = None
        queries = rows
        if (slots > self.n_active).any():
            place = np.arange(slots.sum()) - np.repeat(np.cumsum(slots) - slots, slots)
            counts = np.repeat(self.n_active, slots)
            begin = np.repeat(np.cumsum(self.n_active) - self.n_active, slots)
            # What fills up is the unit's last one again.
            slot_query = begin + np.minimum(place, counts - 1)
            queries = rows[slot_query]
            self.query_slots = self.upload(slot_query)
            self.slots_taken = self.upload(np.flatnonzero(place < counts))
        self.slot_rows = queries
        # Rows of each group.
        self.n_keys, self.n_queries = (sizes * lengths).tolist(), (sizes * widths).tolist()
        shapes = zip(sizes.tolist(), lengths.tolist(), widths.tolist(), strict=True)
        self.groups = [_Group(*shape) for shape in shapes]
        self.masks_known: dict[int, list[Tensor | None]] = {}

    def masks(self, window: int | None) -> Sequence[Tensor | None]:
        """Which keys are near each query, a mask for each group. Kept: layers between which no word
        left share them.

        window (Optional[int]): How far a row sees on each side; None: as far as its unit.
        RETURNS (Sequence[Optional[Tensor]]): bool, shape (n_units, 1, width, length); None where no
            two rows of a unit are further apart.
        """
        if window is None:
            return [None] * len(self.groups)
        if window not in self.masks_known:
            keys = np.split(self.places_host, np.cumsum(self.n_keys)[:-1])
            queries = np.split(self.places_host[self.slot_rows], np.cumsum(self.n_queries)[:-1])
            masks = [
                group.mask(window, *places)
                for group, *places in zip(self.groups, keys, queries, strict=True)
            ]
            self.masks_known[window] = [None if m is None else self.upload(m) for m in masks]
        return self.masks_known[window]

    def fill_up(self, queries: Tensor) -> Tensor:
        """queries (Tensor): Of the active rows, shape (n_active, H).
        RETURNS (Tensor): As attention takes them: as many for each unit of a group.
        """
        return queries if self.query_slots is None else queries.index_select(0, self.query_slots)

    def take_filled(self, mixed: Tensor, chunk: slice) -> Tensor:
        """mixed (Tensor): What attention made of these.
        chunk (slice): Of the active rows.
        RETURNS (Tensor): That of these active rows, shape (n_chunk, H).
        """
        return mixed[chunk] if self.query_slots is None else take(mixed, self.slots_taken[chunk])


def word_gaps(word_unit: np.ndarray, word_id: np.ndarray) -> np.ndarray:
    """How far words lie behind one another, as criteria.Words has it, shape (n_words,).

    word_unit, word_id (ndarray): Unit and original place of each word, shape (n_words,).
    """
    gap = np.zeros_like(word_id)
    same_unit = word_unit[1:] == word_unit[:-1]
    gap[1:] = np.where(same_unit, word_id[1:] - word_id[:-1], UNIT_GAP)
    return gap


def in_reach(
    active: np.ndarray, word_unit: np.ndarray, word_gap: np.ndarray, reach: int | None
) -> np.ndarray:
    """The words that an active word of their unit still reaches, shape (n_words,), bool.

    active, word_unit, word_gap (ndarray): Of each word, shape (n_words,).
    reach (Optional[int]): See Rules.
    """
    if not active.any():
        return active
    if reach is None:
        live = np.zeros(int(word_unit[-1]) + 1, dtype=bool)
        live[word_unit[active]] = True
        return live[word_unit]
    place = np.cumsum(np.minimum(word_gap, reach + 1))
    at = place[active]
    after = np.cumsum(active) - active  # active words in front of each
    before = np.maximum(after - 1, 0)
    after = np.minimum(after, len(at) - 1)
    return np.minimum(np.abs(place - at[before]), np.abs(at[after] - place)) <= reach


def _regroup(
    keep: np.ndarray, unit: np.ndarray, units: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Items that stay, unit by unit in a new order.

    keep, unit (ndarray): Whether each item stays, and its unit, shape (n_items,).
    units (ndarray): The units that stay, in their new order.
    RETURNS (Tuple[ndarray, ndarray]): The items in their new order; and the new place of each, of
        no meaning where it does not stay, shape (n_items,).
    """
    counts = np.bincount(unit[keep], minlength=int(unit[-1]) + 1)
    starts = np.cumsum(counts) - counts
    items = np.flatnonzero(keep)[ranges(starts[units], counts[units])]
    place = np.zeros(len(keep), dtype=np.int64)
    place[items] = np.arange(len(items))
    return items, place


@dataclass
class _Group:
    """Attention of a run of units of one length: keys need no padding, queries are filled up where
    the units have different numbers of active rows.

    width (int): Queries of each unit.
    """

    n_units: int
    length: int
    width: int

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        n_heads: int,
        dropout: float,
        out: Tensor | None = None,
    ) -> Tensor:
        """q (Tensor): Queries, shape (n_units * width, H).
        k, v (Tensor): Keys and values, shape (n_units * length, H).
        mask (Optional[Tensor]): See Batch.masks.
        out (Optional[Tensor]): Where the result goes, shape (n_units * width, H); it has no
            gradients then.
        RETURNS (Tensor): Mixed values, shape (n_units * width, H).
        """

        def by_head(rows: Tensor, n: int) -> Tensor:
            return rows.view(self.n_units, n, n_heads, -1).transpose(1, 2)

        by_unit = by_head(q, self.width), by_head(k, self.length), by_head(v, self.length)
        if out is not None:
            attention(*by_unit, mask, dropout, by_head(out, self.width))
            return out
        mixed = attention(*by_unit, mask, dropout)
        return mixed.transpose(1, 2).reshape(self.n_units * self.width, -1)

    def mask(self, window: int, keys: np.ndarray, queries: np.ndarray) -> np.ndarray | None:
        """See Batch.masks.

        keys, queries (ndarray): The places in their units of its keys, shape (n_units * length,),
            and of its queries, shape (n_units * width,).
        """
        keys = keys.reshape(self.n_units, 1, 1, self.length)
        queries = queries.reshape(self.n_units, 1, self.width, 1)
        if (keys[..., -1] - keys[..., 0]).max() <= window:
            return None
        near: np.ndarray = np.abs(queries - keys) <= window
        return near


def attend(
    layer: EncoderLayer, hidden: Tensor, rows: Tensor, batch: Batch, dropout: float
) -> Tensor:
    """A layer's attention: the active rows look at all rows of their units.

    hidden, rows (Tensor): All rows, shape (n_rows, H), and the active ones, shape (n_active, H).
    dropout (float): Dropout on the attention's weights.
    RETURNS (Tensor): Mixed values for what `fill_up` made of the queries, shape (n_filled, H).
    """
    query = layer.queries(rows)
    key, value = layer.keys_values(hidden)
    if layer.theta is not None:
        query = layer.rotate(query, batch.take_active(batch.places))
        key = layer.rotate(key, batch.places)
    query = batch.fill_up(query)
    # split, not slices: its backward pass is one concatenation
    parts = [query.split(batch.n_queries), key.split(batch.n_keys), value.split(batch.n_keys)]
    parts.append(batch.masks(layer.window))
    settings = layer.n_heads, dropout
    if torch.is_grad_enabled():
        groups = zip(batch.groups, *parts, strict=True)
        return torch.cat([group.attend(*of_group, *settings) for group, *of_group in groups])
    mixed = roomy(query, len(query))
    groups = zip(batch.groups, *parts, mixed.split(batch.n_queries), strict=True)
    for group, *of_group, out in groups:
        group.attend(*of_group, *settings, out)
    return mixed


def run_layer(
    layer: EncoderLayer,
    hidden: Tensor,
    batch: Batch,
    dropout: float,
    halted: Tensor | None = None,
    norm: bool = True,
) -> Tensor:
    """One layer. Behind the attention, prediction on a CPU takes a few rows at a time, so that what
    stands between two products stays in its cache.

    hidden (Tensor): Rows that come in, shape (n_rows, H).
    dropout (float): Dropout on the attention's weights.
    halted (Optional[Tensor]): The halted rows as they go on, if there are any, shape (n_halted, H).
    norm (bool): Whether the layer's last norm is applied to the active rows.
    RETURNS (Tensor): All rows, the active ones in front, shape (n_rows, H); Batch.behind says where
        each one lies. They are sorted once it is known which of them stay.
    """
    rows = batch.take_active(hidden)
    mixed = attend(layer, hidden, rows, batch, dropout)

    def finished(chunk: slice) -> Tensor:
        done = layer.finish(rows[chunk], batch.take_filled(mixed, chunk))
        return layer.last_norm(done) if norm else done

    chunks = chunks_of(rows)
    if len(chunks) == 1:
        active = finished(chunks[0])
        return active if halted is None else torch.cat([active, halted])
    new = roomy(hidden, len(hidden))
    for chunk in chunks:
        new[chunk] = finished(chunk)
    if halted is not None:
        new[len(rows) :] = halted
    return new


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


def run(
    module: MultiExitModule,
    pieces: Pieces,
    units: np.ndarray,
    criterion: ExitCriterion | None,
    tasks: Sequence[str],
    *,
    rules: Rules = PAPER,
    every_offramp: bool = False,
    states: bool = False,
    mixed_precision: bool = False,
) -> tuple[Batch, EngineOutput]:
    """Take one batch of units through the layers.

    module (MultiExitModule): Encoder and off-ramps; its train() / eval() mode rules the dropout.
    pieces (Pieces): Packed pieces.
    units (ndarray): The units to run, shortest first.
    criterion (Optional[ExitCriterion]): Who leaves when; None runs everything to the last layer.
    tasks (Sequence[str]): The tasks that are scored and that rule the exit.
    rules (Rules): What follows from a word's exit.
    every_offramp (bool): Score at every layer, for the joint loss.
    states (bool): Return the rows at exit.
    mixed_precision (bool): Multiply the layers' matrices in bfloat16.
    RETURNS (Tuple[Batch, EngineOutput]): The batch, for its indices, and what it gave.
    """
    encoder, offramps = module.encoder, module.offramps
    config = encoder.config
    slices, columns = offramps.select(tasks)
    n_classes = sum(part.stop - part.start for part in slices.values())
    temperatures = offramps.column_temperatures(slices)
    attention_dropout = config.attention_dropout if module.training else 0.0

    halts = criterion is not None and criterion.halts(config.n_layers)
    batch = Batch(pieces, units, next(module.parameters()).device, rules, halts)
    n_all_words = len(batch.word_id)
    hidden = unnormed = encoder.embed(batch.ids, batch.places)
    exit_layer = np.zeros(n_all_words, dtype=np.int64)
    aligned = states and config.aligned
    row_layer = np.ones(len(batch.row_id), dtype=np.int64)  # the last that changed each row
    row_unit = np.repeat(batch.unit_id, batch.lengths) if aligned else None
    lengths = batch.lengths
    spent: list[tuple[np.ndarray, ...]] = []  # per layer: units, their active rows, rows and words
    left: list[tuple[np.ndarray, Tensor, Tensor]] = []  # words, scores and uncertainty at exit
    finished: list[tuple[np.ndarray, Tensor]] = []  # rows that left the batch, and their states
    layer_scores: list[tuple[int, Tensor, Tensor]] = []

    precision: AbstractContextManager[Any] = nullcontext()
    if mixed_precision:
        precision = torch.autocast(batch.device.type, torch.bfloat16)
    following: np.ndarray | None = None  # which rows go on, unit by unit; None: all as they are
    for number in itertools.count(1):
        if following is not None:
            index = batch.upload(following)
            hidden = take(hidden, index)
            unnormed = take(unnormed, index) if rules.renorm else hidden
        layer = encoder.layer(number)
        halted = None
        if batch.halted_rows is not None:
            halted = take(unnormed, batch.halted_rows)
            if config.catch_up:
                halted = encoder.catch_up(number, halted)
        with precision:
            unnormed = run_layer(layer, hidden, batch, attention_dropout, halted, not rules.renorm)
        hidden = layer.last_norm(unnormed) if rules.renorm else unnormed
        following = batch.places_behind
        if aligned:
            changed = slice(None) if config.catch_up else batch.active_rows_host
            row_layer[batch.row_id[changed]] = number
        last = number == config.n_layers
        deciding = last or (criterion is not None and criterion.checks(number))
        scoring = deciding or every_offramp
        spent.append((batch.unit_id, batch.n_active, batch.lengths, batch.n_words * scoring))
        if not scoring:
            continue
        words = encoder.final_norm(batch.word_vectors(hidden))
        scores = offramps(number, words, columns, batch.neighbours(offramps.context))
        if every_offramp:
            layer_scores.append((number, batch.upload(batch.word_id), scores))
        if not deciding:
            continue
        doubt = uncertainty(scores.detach(), slices, temperatures[number - 1])
        if last or criterion is None:
            leaving = batch.active
        else:
            leaving = batch.active & criterion(number, doubt, batch).cpu().numpy()
        if not leaving.any():
            continue
        who = np.flatnonzero(leaving)
        at = batch.upload(who)
        left.append((batch.word_id[who], scores.index_select(0, at), doubt.index_select(0, at)))
        exit_layer[batch.word_id[who]] = number
        row_id = batch.row_id
        staying = batch.leave(leaving)
        if staying is None:
            continue
        behind = np.arange(len(row_id)) if following is None else following
        if states:
            done = np.setdiff1d(np.arange(len(row_id)), staying, assume_unique=True)
            finished.append((row_id[done], hidden.index_select(0, batch.upload(behind[done]))))
        if batch.n_units == 0:
            break
        following = behind[staying]

    in_units, active, in_rows, scored = map(np.concatenate, zip(*spent, strict=True))
    costs = layer_macs(config, active, in_rows) + float(offramps.width * n_classes) * scored
    macs: np.ndarray = embedding_macs(config, lengths) + np.bincount(in_units, costs, len(lengths))
    order = batch.upload(np.argsort(np.concatenate([words for words, _, _ in left])))
    output = EngineOutput(
        scores=torch.cat([s for _, s, _ in left]).index_select(0, order),
        exit_layer=exit_layer,
        uncertainty=torch.cat([u for _, _, u in left]).index_select(0, order),
        states=None,
        layer_scores=layer_scores,
        macs=macs,
    )
    if states:
        row_order = batch.upload(np.argsort(np.concatenate([ids for ids, _ in finished])))
        rows = torch.cat([rows for _, rows in finished])[row_order]
        output.states = encoder.at_exit(rows, row_layer)
        if row_unit is not None:
            aligned_rows = np.bincount(row_unit[row_layer < config.n_layers], minlength=len(macs))
            macs += float(config.hidden**2) * aligned_rows
    return batch, output
