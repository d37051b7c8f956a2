"""Where the rows and words of a batch lie, while words leave it.

Rows of all units lie one behind the other, without padding, shortest unit first:

```
rows     | <s> w0 w1 w1 </s> | <s> w2 w3 w4 w4 w5 </s> | …      hidden (n_rows, H)
unit     |  0   0  0  0   0  |  1   1  1  1  1  1   1  | …      lengths (n_units,)
```

Three objects know three things. `Layout` says which rows and words are still in the batch, unit by
unit; it is replaced when some leave. `Activity` says which of them are active, and with it how
attention is grouped; it is replaced when some halt. `Rows` holds the states, which a layer writes
active rows first, and knows where each row lies.

All bookkeeping is done on the host in numpy, without a loop over words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .criteria import UNIT_GAP
from .kernels.attention import attention
from .kernels.products import padded_length, take
from .pieces import Pieces, ranges


@dataclass(frozen=True)
class Rules:
    """What follows from a word's exit, and what its off-ramp sees. The defaults are the paper's.

    special_share (float): A unit's special pieces halt when at most this share of its words is
        active: with 1 from the start, wherever words can leave at all.
    reach (Optional[int]): Halted words that are further than this many words from every active one
        of their unit leave the batch, and windows take them for certain. None: they go on serving
        as keys and values as long as a word of their unit is active.
    mean_pieces (bool): The off-ramps see the mean of a word's pieces, not its first one.
    """

    special_share: float = 0.0
    reach: int | None = None
    mean_pieces: bool = False


PAPER = Rules()


@dataclass(frozen=True)
class Layout:
    """The rows and words that are in the batch, unit by unit. `*_id` arrays say which row, word or
    unit of the original batch each of them was.

    lengths (ndarray): Rows of each unit, shape (n_units,).
    row_word (ndarray): The word of each row, -1 for special pieces, shape (n_rows,).
    word_row (ndarray): The row of each word's first piece, shape (n_words,).
    word_unit (ndarray): The unit of each word, shape (n_words,).
    row_id, word_id, unit_id (ndarray): shape (n_rows,), (n_words,), (n_units,).
    """

    lengths: np.ndarray
    row_word: np.ndarray
    word_row: np.ndarray
    word_unit: np.ndarray
    row_id: np.ndarray
    word_id: np.ndarray
    unit_id: np.ndarray

    @property
    def n_units(self) -> int:
        return len(self.lengths)

    @cached_property
    def row_unit(self) -> np.ndarray:
        """The unit of each row, shape (n_rows,)."""
        return np.repeat(np.arange(self.n_units), self.lengths)

    @cached_property
    def n_words(self) -> np.ndarray:
        """Words of each unit, shape (n_units,)."""
        return np.bincount(self.word_unit, minlength=self.n_units)

    @cached_property
    def word_gap(self) -> np.ndarray:
        """See criteria.Words, shape (n_words,)."""
        return word_gaps(self.word_unit, self.word_id)

    def of_word(self, of_words: np.ndarray, of_units: np.ndarray) -> np.ndarray:
        """A value for each row: that of its word, or its unit's for special pieces.

        of_words, of_units (ndarray): shape (n_words,) and (n_units,).
        RETURNS (ndarray): shape (n_rows,).
        """
        return np.where(self.row_word >= 0, of_words[self.row_word], of_units[self.row_unit])

    def keep(self, word_stays: np.ndarray, unit_stays: np.ndarray, resort: bool) -> "Kept":
        """The layout without some of the words.

        word_stays, unit_stays (ndarray): bool, shape (n_words,) and (n_units,).
        resort (bool): Sort the units by length again.
        """
        row_stays = self.of_word(word_stays, unit_stays)
        lengths = np.bincount(self.row_unit[row_stays], minlength=self.n_units)
        units = np.flatnonzero(unit_stays)
        if resort:
            units = units[np.argsort(lengths[units], kind="stable")]
        rows, new_row = _regroup(row_stays, self.row_unit, units)
        words, new_word = _regroup(word_stays, self.word_unit, units)
        new_unit = np.zeros(self.n_units, dtype=np.int64)
        new_unit[units] = np.arange(len(units))
        row_word = self.row_word[rows]
        layout = Layout(
            lengths=lengths[units],
            row_word=np.where(row_word >= 0, new_word[row_word], -1),
            word_row=new_row[self.word_row[words]],
            word_unit=new_unit[self.word_unit[words]],
            row_id=self.row_id[rows],
            word_id=self.word_id[words],
            unit_id=self.unit_id[units],
        )
        return Kept(layout, rows, words)


@dataclass(frozen=True)
class Kept:
    """What is left of a layout.

    layout (Layout): The new one.
    rows, words (ndarray): The rows and words of the old one that it has, in its order.
    """

    layout: Layout
    rows: np.ndarray
    words: np.ndarray


def first_layout(pieces: Pieces, units: np.ndarray) -> Layout:
    """The layout of some units.

    pieces (Pieces): Packed pieces of many units.
    units (ndarray): The units of the batch, shortest first.
    """
    lengths, n_words = np.diff(pieces.unit_starts)[units], np.diff(pieces.word_starts)[units]
    rows = ranges(pieces.unit_starts[units], lengths)
    words = ranges(pieces.word_starts[units], n_words)
    unit_ids = np.arange(len(units))
    row_unit, word_unit = np.repeat(unit_ids, lengths), np.repeat(unit_ids, n_words)
    word_shift = np.cumsum(n_words) - n_words - pieces.word_starts[units]
    row_shift = np.cumsum(lengths) - lengths - pieces.unit_starts[units]
    row_word = pieces.row_word[rows]
    return Layout(
        lengths=lengths,
        row_word=np.where(row_word >= 0, row_word + word_shift[row_unit], -1),
        word_row=pieces.word_row[words] + row_shift[word_unit],
        word_unit=word_unit,
        row_id=np.arange(len(rows)),
        word_id=np.arange(len(words)),
        unit_id=unit_ids,
    )


class Activity:
    """Which words are active, and what follows for their rows and for attention.

    words (ndarray): The active words, shape (n_words,), bool.
    rows, halted (ndarray): The active and the halted rows, shape (n_active,) and (n_halted,).
    n_active (ndarray): Active rows of each unit, shape (n_units,).
    order (Optional[ndarray]): The place of each row when the active ones come first, shape
        (n_rows,); None if all are active.
    queries (QueryGroups): The groups of units that attention takes at once.
    """

    def __init__(self, layout: Layout, words: np.ndarray, least_active: np.ndarray):
        """least_active (ndarray): At so many active words or fewer a unit's special pieces halt,
        shape (n_units,).
        """
        n_active_words = np.bincount(layout.word_unit[words], minlength=layout.n_units)
        row_active = layout.of_word(words, n_active_words > least_active)
        self.words = words
        self.rows = np.flatnonzero(row_active)
        self.halted = np.flatnonzero(~row_active)
        self.n_active = np.bincount(layout.row_unit[self.rows], minlength=layout.n_units)
        self.order: np.ndarray | None = None
        if len(self.halted):
            self.order = np.empty(len(row_active), dtype=np.int64)
            self.order[np.concatenate([self.rows, self.halted])] = np.arange(len(row_active))
        self.queries = QueryGroups(layout.lengths, self.n_active, self.rows)


class QueryGroups:
    """Runs of units of one length, which attention takes at once: keys need no padding, queries are
    filled up where the units have different numbers of active rows.

    groups (List[Group]): The runs.
    n_keys, n_queries (List[int]): Rows and filled-up queries of each group.
    rows (ndarray): The row of each filled-up query, shape (n_filled,).
    filled (Optional[ndarray]): The active row that each filled-up query is, shape (n_filled,); None
        if nothing has to be filled up.
    taken (ndarray): The filled-up queries that are not fillers, shape (n_active,).
    """

    def __init__(self, lengths: np.ndarray, n_active: np.ndarray, rows: np.ndarray):
        """lengths, n_active (ndarray): All and active rows of each unit, shape (n_units,).
        rows (ndarray): The active rows, shape (n_active,).
        """
        first = np.flatnonzero(np.diff(lengths, prepend=0))
        sizes, group_lengths = np.diff(first, append=len(lengths)), lengths[first]
        widths = np.maximum.reduceat(n_active, first)
        self.n_keys: list[int] = (sizes * group_lengths).tolist()
        self.n_queries: list[int] = (sizes * widths).tolist()
        shapes = zip(sizes.tolist(), group_lengths.tolist(), widths.tolist(), strict=True)
        self.groups = [Group(*shape) for shape in shapes]
        self.rows = rows
        self.filled: np.ndarray | None = None
        self.taken = np.zeros(0, dtype=np.int64)
        slots = np.repeat(widths, sizes)  # of each unit
        if (slots > n_active).any():
            place = np.arange(slots.sum()) - np.repeat(np.cumsum(slots) - slots, slots)
            counts = np.repeat(n_active, slots)
            begin = np.repeat(np.cumsum(n_active) - n_active, slots)
            # A filler is the unit's last active row again.
            self.filled = begin + np.minimum(place, counts - 1)
            self.rows = rows[self.filled]
            self.taken = np.flatnonzero(place < counts)


@dataclass
class Group:
    """Units of one length.

    n_units, length (int): The units, and rows of each.
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


class Batch:
    """The words still in the batch, as the layers, the off-ramps and the criterion see them.

    layout (Layout), activity (Activity): Of now.
    rules (Rules): What follows from a word's exit.
    pieces_word, pieces_row (ndarray): The original words and rows as indices into the pieces' ones.
    ids (Tensor): The pieces of the original rows, shape (n_rows,).
    most_words (int): No unit has more words than that.

    word_unit, word_gap, n_units, n_gaps, most_words: See criteria.Words.
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
        layout = first_layout(pieces, units)
        starts = np.cumsum(layout.lengths) - layout.lengths
        self.device = device
        self.rules = rules
        self.most_words = int(layout.n_words.max(initial=0))
        self.pieces_word = ranges(pieces.word_starts[units], layout.n_words)
        self.pieces_row = ranges(pieces.unit_starts[units], layout.lengths)
        self.ids = self.upload(pieces.ids[self.pieces_row])
        self._row_places = layout.row_id - np.repeat(starts, layout.lengths)
        # At so many active words or fewer, a unit's special pieces halt.
        self._least_active = rules.special_share * layout.n_words * halts
        self._set_layout(layout, np.ones(len(layout.word_id), dtype=bool))

    def _set_layout(self, layout: Layout, active: np.ndarray) -> None:
        self.layout = layout
        self.places_host = self._row_places[layout.row_id]
        self.places = self.upload(self.places_host)  # of each row in its unit, from 0
        self.word_unit = self.upload(layout.word_unit)
        self.word_gap = self.upload(layout.word_gap)
        self.n_gaps = int((layout.word_gap > 1).sum())
        self._neighbours: dict[int, list[tuple[int, int, Tensor]]] = {}
        self._word_pieces: tuple[np.ndarray, Tensor, Tensor] | None = None
        self._set_activity(active)

    def _set_activity(self, active: np.ndarray) -> None:
        self.activity = Activity(self.layout, active, self._least_active[self.layout.unit_id])
        queries = self.activity.queries
        self._active_rows = self._filled = self._taken = None
        if self.activity.order is not None:
            self._active_rows = self.upload(self.activity.rows)
        if queries.filled is not None:
            self._filled, self._taken = self.upload(queries.filled), self.upload(queries.taken)
        self._masks: dict[int, list[Tensor | None]] = {}

    @property
    def n_units(self) -> int:
        return self.layout.n_units

    @property
    def word_id(self) -> np.ndarray:
        return self.layout.word_id

    @property
    def unit_id(self) -> np.ndarray:
        return self.layout.unit_id

    def upload(self, index: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(index)).to(self.device)

    def leave(self, leaving: np.ndarray) -> np.ndarray | None:
        """Halt words, and take those out of the batch that no active word reaches any more.

        leaving (ndarray): The words that leave, shape (n_words,), bool.
        RETURNS (Optional[ndarray]): The rows that stay, in their new order; None if all stay as
            they are. None of them: the batch is finished.
        """
        layout = self.layout
        active = self.activity.words & ~leaving
        if not active.any():
            return np.zeros(0, dtype=np.int64)
        stays = in_reach(active, layout.word_unit, layout.word_gap, self.rules.reach)
        if stays.all():
            self._set_activity(active)
            return None
        live = np.zeros(layout.n_units, dtype=bool)
        live[layout.word_unit[active]] = True
        # With a reach, units may have got shorter than those in front of them.
        kept = layout.keep(stays, live, resort=self.rules.reach is not None)
        self._set_layout(kept.layout, active[kept.words])
        return kept.rows

    def take_active(self, of_rows: Tensor) -> Tensor:
        """of_rows (Tensor): One entry per row, shape (n_rows, …).
        RETURNS (Tensor): Those of the active rows, shape (n_active, …).
        """
        return of_rows if self._active_rows is None else take(of_rows, self._active_rows)

    def fill_up(self, queries: Tensor) -> Tensor:
        """queries (Tensor): Of the active rows, shape (n_active, H).
        RETURNS (Tensor): As attention takes them: as many for each unit of a group.
        """
        return queries if self._filled is None else queries.index_select(0, self._filled)

    def take_filled(self, mixed: Tensor, chunk: slice) -> Tensor:
        """mixed (Tensor): What attention made of these.
        chunk (slice): Of the active rows.
        RETURNS (Tensor): That of these active rows, shape (n_chunk, H).
        """
        return mixed[chunk] if self._taken is None else take(mixed, self._taken[chunk])

    def masks(self, window: int | None) -> Sequence[Tensor | None]:
        """Which keys are near each query, a mask for each group. Layers between which no word left
        share them.

        window (Optional[int]): How far a row sees on each side; None: as far as its unit.
        RETURNS (Sequence[Optional[Tensor]]): bool, shape (n_units, 1, width, length); None where no
            two rows of a unit are further apart.
        """
        queries = self.activity.queries
        if window is None:
            return [None] * len(queries.groups)
        if window not in self._masks:
            of_keys = np.split(self.places_host, np.cumsum(queries.n_keys)[:-1])
            of_queries = np.split(self.places_host[queries.rows], np.cumsum(queries.n_queries)[:-1])
            masks = [
                group.mask(window, *places)
                for group, *places in zip(queries.groups, of_keys, of_queries, strict=True)
            ]
            self._masks[window] = [None if m is None else self.upload(m) for m in masks]
        return self._masks[window]

    def neighbours(self, context: int) -> list[tuple[int, int, Tensor]]:
        """The words around each word that are in the batch, too.

        context (int): How far to look.
        RETURNS (List[Tuple[int, int, Tensor]]): Distance, step and mask: word j + step lies
            `distance` words behind word j of its unit where mask[j], shape (n_words - step, 1),
            bool. Step is less than distance where words in between have left the batch.
        """
        if context not in self._neighbours:
            place = np.cumsum(np.minimum(self.layout.word_gap, context + 1))
            self._neighbours[context] = [
                (distance, step, self.upload(place[step:, None] - place[:-step, None] == distance))
                for distance in range(1, context + 1)
                for step in range(1, min(distance, len(place) - 1) + 1)
            ]
        return self._neighbours[context]

    def word_pieces(self, dtype: torch.dtype) -> tuple[np.ndarray, Tensor, Tensor]:
        """The pieces of each word, for means over them.

        RETURNS (Tuple[ndarray, Tensor, Tensor]): Rows of all words, word by word; where each word's
            begin, with empty words behind them that fill up the off-ramp's product; and the share
            of each row in its word's mean.
        """
        if self._word_pieces is None:
            row_word = self.layout.row_word
            rows = np.flatnonzero(row_word >= 0)
            counts = np.bincount(row_word[rows], minlength=len(self.word_id))
            starts = np.full(padded_length(len(counts)), len(rows))
            starts[: len(counts)] = np.cumsum(counts) - counts
            share = torch.from_numpy(1.0 / counts[row_word[rows]]).to(dtype)
            self._word_pieces = rows, self.upload(starts), share.to(self.device)
        return self._word_pieces


class Rows:
    """The states of a batch's rows, in the order in which they were written.

    states (Tensor): shape (n_stored, H).
    order (Optional[ndarray]): Where each row of the batch's layout lies, shape (n_rows,); None: in
        the layout's order.
    """

    def __init__(self, states: Tensor, order: np.ndarray | None = None):
        self.states = states
        self.order = order

    def sorted(self, batch: Batch) -> Tensor:
        """RETURNS (Tensor): The states in the layout's order, shape (n_rows, H)."""
        return self.states if self.order is None else take(self.states, batch.upload(self.order))

    def find(self, rows: np.ndarray) -> np.ndarray:
        """rows (ndarray): Some of the rows, shape (n,). RETURNS (ndarray): Where they lie."""
        return rows if self.order is None else self.order[rows]

    def of_words(self, batch: Batch) -> Tensor:
        """RETURNS (Tensor): What the off-ramps see of each word, shape (n_words, H)."""
        if not batch.rules.mean_pieces:
            return take(self.states, batch.upload(self.find(batch.layout.word_row)))
        rows, starts, share = batch.word_pieces(self.states.dtype)
        # Weighted sums: torch's means take twice as long.
        words = F.embedding_bag(
            batch.upload(self.find(rows)), self.states, starts, mode="sum", per_sample_weights=share
        )
        return words[: len(batch.word_id)]


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
    active_place = place[active]
    after = np.cumsum(active) - active  # active words in front of each
    before = np.maximum(after - 1, 0)
    after = np.minimum(after, len(active_place) - 1)
    distance = np.minimum(np.abs(place - active_place[before]), np.abs(active_place[after] - place))
    return distance <= reach


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
