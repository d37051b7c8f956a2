"""The packed forward pass: embed, then layer by layer score, decide and compact.

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

batch.py says where rows and words lie. The device is asked once per layer: which words leave.
Training and prediction share this code: everything is differentiable but the decision to leave.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .batch import PAPER, Batch, Rows, Rules
from .costs import Spent
from .criteria import ExitCriterion
from .encoders import Encoder, EncoderLayer
from .kernels.chunks import chunks_of
from .kernels.products import padded_empty, take
from .offramps import OffRamps, uncertainty
from .pieces import Pieces


class MultiExitModule(nn.Module):
    """The encoder with its off-ramps.

    settings (Dict[str, Any]): What the weights were trained with, see architecture.Settings. Stored
        with them.
    """

    def __init__(
        self, encoder: Encoder, offramps: OffRamps, settings: dict[str, Any] | None = None
    ):
        super().__init__()
        self.encoder = encoder
        self.offramps = offramps
        self.settings = dict(settings or {})


@dataclass
class EngineOutput:
    """What one batch of units gave, in the order of the batch's words and rows.

    scores (Tensor): Scores of the wanted tasks at each word's exit, shape (n_words, n_classes).
    exit_layer (ndarray): Layer each word left at, from 1, shape (n_words,).
    uncertainty (Tensor): Each word's uncertainty at its exit, shape (n_words,).
    states (Optional[Tensor]): Rows at exit, shape (n_rows, H), if asked for.
    layer_scores (List[Tuple[int, Tensor, Tensor]]): With every_offramp, per layer: its number, the
        words still in the batch, shape (n,), and their scores, shape (n, n_classes).
    macs (ndarray): Multiply-accumulates spent per unit, shape (n_units,).
    """

    scores: Tensor
    exit_layer: np.ndarray
    uncertainty: Tensor
    states: Tensor | None
    layer_scores: list[tuple[int, Tensor, Tensor]]
    macs: np.ndarray


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
    n_layers = module.encoder.config.n_layers
    halts = criterion is not None and criterion.halts(n_layers)
    batch = Batch(pieces, units, next(module.parameters()).device, rules, halts)
    forward = _Forward(module, batch, criterion, tasks, every_offramp, states, mixed_precision)
    rows: Rows | None = forward.embed()
    number = 0
    while rows is not None:
        number += 1
        rows = forward.layer(number, rows)
        if forward.scores_at(number):
            scores = forward.score(number, rows)
            if forward.decides_at(number):
                leaving = forward.decide(number, scores)
                rows = forward.compact(number, rows, scores, leaving)
    return batch, forward.output()


class _Forward:
    """The steps of one pass, and what they leave for its output."""

    def __init__(
        self,
        module: MultiExitModule,
        batch: Batch,
        criterion: ExitCriterion | None,
        tasks: Sequence[str],
        every_offramp: bool,
        states: bool,
        mixed_precision: bool,
    ):
        self.encoder, self.offramps = module.encoder, module.offramps
        self.config = module.encoder.config
        self.batch = batch
        self.criterion = criterion
        self.slices, self.columns = self.offramps.select(tasks)
        self.temperatures = self.offramps.column_temperatures(self.slices)
        self.every_offramp = every_offramp
        self.states = states
        self.dropout = self.config.attention_dropout if module.training else 0.0
        self.mixed_precision = mixed_precision
        n_classes = sum(part.stop - part.start for part in self.slices.values())
        self.spent = Spent(self.config, batch.layout.lengths, self.offramps.width * n_classes)
        self.exits = _Exits(len(batch.word_id))
        self.layer_scores: list[tuple[int, Tensor, Tensor]] = []
        self.finished: list[tuple[np.ndarray, Tensor]] = []  # rows that left, and their states
        # Where exits are aligned: the last layer that changed each row, and each row's unit.
        self.aligned = states and self.config.aligned
        self.row_layer = np.ones(len(batch.layout.row_id), dtype=np.int64)
        self.row_unit = batch.layout.row_unit if self.aligned else None

    def embed(self) -> Rows:
        """RETURNS (Rows): The rows that go into layer 1."""
        return Rows(self.encoder.embed(self.batch.ids, self.batch.places))

    def layer(self, number: int, rows: Rows) -> Rows:
        """Take the rows through a layer: it updates active ones, and copies or moves the others.

        number (int): The layer, from 1.
        RETURNS (Rows): The active rows first.
        """
        batch, activity = self.batch, self.batch.activity
        hidden = rows.sorted(batch)
        halted = None
        if activity.order is not None:
            halted = take(hidden, batch.upload(activity.halted))
            if self.config.catch_up:
                halted = self.encoder.catch_up(number, halted)
        with self._precision():
            new = run_layer(self.encoder.layer(number), hidden, batch, self.dropout, halted)
        if self.aligned:
            changed = slice(None) if self.config.catch_up else activity.rows
            self.row_layer[batch.layout.row_id[changed]] = number
        n_scored = batch.layout.n_words * self.scores_at(number)
        self.spent.add(batch.unit_id, activity.n_active, batch.layout.lengths, n_scored)
        return Rows(new, activity.order)

    def _precision(self) -> Any:
        if not self.mixed_precision:
            return nullcontext()
        return torch.autocast(self.batch.device.type, torch.bfloat16)

    def decides_at(self, number: int) -> bool:
        """Whether words can leave behind a layer."""
        if number == self.config.n_layers:
            return True
        return self.criterion is not None and self.criterion.checks(number)

    def scores_at(self, number: int) -> bool:
        """Whether the off-ramp of a layer is run."""
        return self.every_offramp or self.decides_at(number)

    def score(self, number: int, rows: Rows) -> Tensor:
        """RETURNS (Tensor): The off-ramp's scores of all words, shape (n_words, n_classes)."""
        words = self.encoder.final_norm(rows.of_words(self.batch))
        near = self.batch.neighbours(self.offramps.context)
        scores: Tensor = self.offramps(number, words, self.columns, near)
        if self.every_offramp:
            self.layer_scores.append((number, self.batch.upload(self.batch.word_id), scores))
        return scores

    def decide(self, number: int, scores: Tensor) -> np.ndarray:
        """RETURNS (ndarray): The words that leave here, shape (n_words,), bool."""
        batch = self.batch
        doubt = uncertainty(scores.detach(), self.slices, self.temperatures[number - 1])
        leaving = batch.activity.words
        if number < self.config.n_layers and self.criterion is not None:
            leaving = leaving & self.criterion(number, doubt, batch).cpu().numpy()
        if leaving.any():
            words = np.flatnonzero(leaving)
            chosen = batch.upload(words)
            self.exits.add(
                number,
                batch.word_id[words],
                scores.index_select(0, chosen),
                doubt.index_select(0, chosen),
            )
        return leaving

    def compact(self, number: int, rows: Rows, scores: Tensor, leaving: np.ndarray) -> Rows | None:
        """Halt the words that leave, and drop the rows that are finished.

        RETURNS (Optional[Rows]): The rows that stay; None if the batch is finished.
        """
        if not leaving.any():
            return rows
        row_id = self.batch.layout.row_id
        staying = self.batch.leave(leaving)
        if staying is None:
            return rows
        if self.states:
            done = np.setdiff1d(np.arange(len(row_id)), staying, assume_unique=True)
            states = rows.states.index_select(0, self.batch.upload(rows.find(done)))
            self.finished.append((row_id[done], states))
        return Rows(rows.states, rows.find(staying)) if len(staying) else None

    def output(self) -> EngineOutput:
        """RETURNS (EngineOutput): What the pass gave."""
        macs = self.spent.total()
        states = None
        if self.states:
            order = np.argsort(np.concatenate([ids for ids, _ in self.finished]))
            rows = torch.cat([rows for _, rows in self.finished])[self.batch.upload(order)]
            states = self.encoder.at_exit(rows, self.row_layer)
            if self.row_unit is not None:
                moved = self.row_unit[self.row_layer < self.config.n_layers]
                macs += float(self.config.hidden**2) * np.bincount(moved, minlength=len(macs))
        return EngineOutput(
            scores=self.exits.sorted(self.batch, self.exits.scores),
            exit_layer=self.exits.layers,
            uncertainty=self.exits.sorted(self.batch, self.exits.uncertainty),
            states=states,
            layer_scores=self.layer_scores,
            macs=macs,
        )


class _Exits:
    """The words that left, in the order in which they did.

    layers (ndarray): The layer of each word, shape (n_words,).
    """

    def __init__(self, n_words: int):
        self.layers = np.zeros(n_words, dtype=np.int64)
        self.words: list[np.ndarray] = []
        self.scores: list[Tensor] = []
        self.uncertainty: list[Tensor] = []

    def add(self, number: int, words: np.ndarray, scores: Tensor, doubt: Tensor) -> None:
        """Add the words that leave behind a layer, with their scores and uncertainty."""
        self.layers[words] = number
        self.words.append(words)
        self.scores.append(scores)
        self.uncertainty.append(doubt)

    def sorted(self, batch: Batch, parts: list[Tensor]) -> Tensor:
        """parts (List[Tensor]): `scores` or `uncertainty`. RETURNS (Tensor): By word."""
        order = batch.upload(np.argsort(np.concatenate(self.words)))
        return torch.cat(parts).index_select(0, order)


def run_layer(
    layer: EncoderLayer, hidden: Tensor, batch: Batch, dropout: float, halted: Tensor | None = None
) -> Tensor:
    """One layer. Behind the attention, prediction on a CPU takes a few rows at a time, so that what
    stands between two products stays in its cache.

    hidden (Tensor): Rows that come in, shape (n_rows, H).
    dropout (float): Dropout on the attention's weights.
    halted (Optional[Tensor]): The halted rows as they go on, if there are any, shape (n_halted, H).
    RETURNS (Tensor): All rows, the active ones in front, shape (n_rows, H); Activity.order says
        where each one lies. They are sorted once it is known which of them stay.
    """
    rows = batch.take_active(hidden)
    mixed = attend(layer, hidden, rows, batch, dropout)
    chunks = chunks_of(rows)
    if len(chunks) == 1:
        active = layer.finish(rows, batch.take_filled(mixed, chunks[0]))
        return active if halted is None else torch.cat([active, halted])
    new = padded_empty(hidden, len(hidden))
    for chunk in chunks:
        new[chunk] = layer.finish(rows[chunk], batch.take_filled(mixed, chunk))
    if halted is not None:
        new[len(rows) :] = halted
    return new


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
    groups = batch.activity.queries
    # split, not slices: its backward pass is one concatenation
    parts = [query.split(groups.n_queries), key.split(groups.n_keys), value.split(groups.n_keys)]
    parts.append(batch.masks(layer.window))
    settings = layer.n_heads, dropout
    if torch.is_grad_enabled():
        pairs = zip(groups.groups, *parts, strict=True)
        return torch.cat([group.attend(*of_group, *settings) for group, *of_group in pairs])
    mixed = padded_empty(query, len(query))
    for group, *of_group, out in zip(
        groups.groups, *parts, mixed.split(groups.n_queries), strict=True
    ):
        group.attend(*of_group, *settings, out)
    return mixed
