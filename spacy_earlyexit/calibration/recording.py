"""What the off-ramps of every layer say about dev data, recorded in one pass at full depth.

From it temperatures are fitted, and exit settings tried out without running the encoder: hundreds
in the time of one real run. A replay is an approximation. In a real run a word that left early
stands in later layers with the row it left with, and its neighbours and its own later uncertainty
follow from that; in the recording all rows went to the last layer. So a replay ranks settings, and
real runs decide.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.batch import PAPER, Rules, in_reach, word_gaps
from ..model.costs import embedding_macs, layer_macs
from ..model.criteria import ExitCriterion
from ..model.engine import MultiExitModule
from ..model.offramps import IGNORE, uncertainty
from ..model.pieces import Pieces
from ..pipeline.decoding import bio_spans
from ..pipeline.tasks import is_bio

# Where nothing is wrong, colder is always better; where nothing is right, hotter.
COLDEST, HOTTEST = 0.1, 10.0


@dataclass
class Replay:
    """What a setting would do.

    exit_layer (ndarray): Layer each word leaves at, from 1, shape (n_words,).
    speedup (float): MACs at full depth / MACs spent.
    score (float): Mean of label_score over the tasks.
    expected_error (float): See expected_error.
    """

    exit_layer: np.ndarray
    speedup: float
    score: float
    expected_error: float


class Recording:
    """Scores of all words at all layers, and what they should have been.

    word_unit, n_units, word_gap, n_gaps, most_words: The words as a criterion sees them, see
        criteria.Words.
    """

    def __init__(
        self,
        module: MultiExitModule,
        pieces: Pieces,
        slices: Mapping[str, slice],
        scores: np.ndarray,
        gold: Mapping[str, np.ndarray],
        macs_full: float,
        rules: Rules = PAPER,
    ):
        """module (MultiExitModule): Gives and takes the temperatures.
        pieces (Pieces): The words' pieces.
        slices (Mapping[str, slice]): Where each task's classes lie in the scores.
        scores (ndarray): shape (n_layers, n_words, n_classes).
        gold (Mapping[str, ndarray]): Class ids, IGNORE where unknown, shape (n_words,).
        macs_full (float): Multiply-accumulates of all layers and the last off-ramp.
        rules (Rules): What follows from a word's exit.
        """
        self.module = module
        self.pieces = pieces
        self.slices = slices
        self.scores = torch.from_numpy(scores)
        self.gold = gold
        self.macs_full = macs_full
        self.rules = rules
        self.n_layers = len(scores)
        self.n_units = pieces.n_units
        self.unit = np.repeat(np.arange(pieces.n_units), np.diff(pieces.word_starts))
        self.gap = word_gaps(self.unit, np.arange(len(self.unit)))
        self.word_unit, self.word_gap = torch.from_numpy(self.unit), torch.from_numpy(self.gap)
        self.n_gaps = pieces.n_units - 1
        self.most_words = int(np.diff(pieces.word_starts).max(initial=0))
        self.labels = {
            task: self.scores[:, :, part].argmax(-1).numpy() for task, part in slices.items()
        }

    @cached_property
    def uncertainty(self) -> list[Tensor]:
        """Of every layer at the temperatures of now, shape (n_words,) each."""
        temperatures = self.module.offramps.column_temperatures(self.slices).cpu()
        return [
            uncertainty(scores, self.slices, own)
            for scores, own in zip(self.scores, temperatures, strict=True)
        ]

    @property
    def least_threshold(self) -> float:
        """RETURNS (float): One that hardly a word is below at any layer; 1e-5 at most."""
        least = min(float(np.quantile(own.numpy(), 0.01)) for own in self.uncertainty)
        return min(max(least, 1e-12), 1e-5)

    @cached_property
    def true_temperatures(self) -> dict[str, Tensor]:
        """Of every task and layer the temperature that makes its probabilities true (Guo et al.,
        ICML 2017), shape (n_layers,) each.
        """
        fitted = {}
        for task, part in self.slices.items():
            known = np.flatnonzero(self.gold[task] != IGNORE)
            gold, rows = torch.from_numpy(self.gold[task][known]), torch.from_numpy(known)
            fitted[task] = torch.tensor([fit_temperature(s[rows, part], gold) for s in self.scores])
        return fitted

    @cached_property
    def chances(self) -> dict[str, "Chances"]:
        """Of every task, for words that leave at each layer, at the true temperatures; arrays of
        shape (n_layers, n_words).
        """
        classes = self.module.offramps.classes
        return {
            task: gold_chances(
                self.scores[:, :, part],
                self.true_temperatures[task][:, None, None],
                self.gold[task],
                classes[task],
            )
            for task, part in self.slices.items()
        }

    def set_temperatures(self, true: bool, by_task: Mapping[str, float] | None = None) -> None:
        """Let the module divide scores by the true temperatures before it takes their uncertainty,
        or by nothing. What the off-ramps answer does not change by it.

        by_task (Optional[Mapping[str, float]]): Factors on the temperatures of some tasks.
        """
        offramps = self.module.offramps
        for task, own in self.true_temperatures.items():
            column = offramps.temperature[:, list(offramps.classes).index(task)]
            factor = (by_task or {}).get(task, 1.0)
            column.copy_(factor * (own if true else torch.ones_like(own)))
        self.__dict__.pop("uncertainty", None)

    def replay(self, criterion: ExitCriterion | None) -> Replay:
        """What a criterion would do; None for full depth."""
        exits = np.full(len(self.unit), self.n_layers)
        deciding = np.arange(1, self.n_layers + 1) == self.n_layers
        halts: bool | np.ndarray = False
        if criterion is not None:
            halts = criterion.halts(self.n_layers)
            # Backwards, so that the first layer that lets a word go has the last say.
            for layer in range(self.n_layers - 1, 0, -1):
                if criterion.checks(layer):
                    deciding[layer - 1] = True
                    leaving = criterion(layer, self.uncertainty[layer - 1], self)
                    exits[leaving.numpy()] = layer
        words = np.arange(len(exits))
        classes = self.module.offramps.classes
        scores = [
            label_score(ids, self.labels[task][exits - 1, words], classes[task], self.unit)
            for task, ids in self.gold.items()
            if (ids != IGNORE).any()
        ]
        return Replay(
            exits,
            speedup=self.macs_full / self._macs(exits, deciding, halts),
            score=float(np.mean(scores)) if scores else 0.0,
            expected_error=expected_error(
                of_task.at(exits - 1, words) for of_task in self.chances.values()
            ),
        )

    def _macs(self, exits: np.ndarray, deciding: np.ndarray, halts: bool | np.ndarray) -> float:
        """Multiply-accumulates spent (method: cost accounting), as the engine counts them.

        exits (ndarray): Exit layer of each word, shape (n_words,).
        deciding (ndarray): Whether the off-ramp of a layer is run, shape (n_layers,), bool.
        halts (Union[bool, ndarray]): See ExitCriterion.halts.
        """
        pieces, config, rules = self.pieces, self.module.encoder.config, self.rules
        is_word = pieces.row_word >= 0
        rows_of = np.bincount(pieces.row_word[is_word], minlength=len(exits))
        n_words = np.diff(pieces.word_starts)
        lengths = np.diff(pieces.unit_starts)
        specials = lengths - self._per_unit(rows_of)
        least_active = rules.special_share * n_words * halts
        total, scored = embedding_macs(config, lengths).sum(), 0
        for layer in range(1, self.n_layers + 1):
            going = exits >= layer
            if not going.any():
                break
            n_going = self._per_unit(going)
            here = in_reach(going, self.unit, self.gap, rules.reach)
            active = self._per_unit(rows_of * going)
            active = active + specials * (n_going > least_active)
            rows = self._per_unit(rows_of * here) + specials * (n_going > 0)
            total += layer_macs(config, active, rows).sum()
            scored += here.sum() if deciding[layer - 1] else 0
        return float(total + self.module.offramps.width * self.scores.shape[-1] * scored)

    def _per_unit(self, of_words: np.ndarray) -> np.ndarray:
        return np.bincount(self.unit, of_words, minlength=self.n_units)


class Chances(NamedTuple):
    """What the probabilities of a task say of its score, word by word.

    right (ndarray): Probability of the gold class, where it counts as a hit, else 0; shape
        (…, n_words).
    claimed (ndarray): That the answer claims a hit: is no "O", in a task of names; else 1. 0 where
        there is no gold. Shape (…, n_words).
    wanted (ndarray): Whether there is a hit to be made, shape (n_words,).
    """

    right: np.ndarray
    claimed: np.ndarray
    wanted: np.ndarray

    def at(self, layers: np.ndarray, words: np.ndarray) -> "Chances":
        """Where each word leaves, shape (n_words,) each."""
        return Chances(self.right[layers, words], self.claimed[layers, words], self.wanted)


def gold_chances(
    scores: Tensor, temperatures: Tensor, gold: np.ndarray, classes: Sequence[str]
) -> Chances:
    """What the off-ramps' probabilities of one task say of its gold classes.

    scores (Tensor): shape (…, n_words, n_classes).
    temperatures (Tensor): What divides them; of a shape that goes with theirs.
    gold (ndarray): Class ids, IGNORE where unknown, shape (n_words,).
    classes (Sequence[str]): Their names.
    """
    known = gold != IGNORE
    ids = torch.from_numpy(np.where(known, gold, 0))
    chances = F.softmax(scores / temperatures, dim=-1)
    right = chances.gather(-1, ids.expand(scores.shape[:-1])[..., None])[..., 0].numpy()
    if not is_bio(classes):
        return Chances(right * known, np.broadcast_to(known, right.shape), known)
    outside = classes.index("O")
    wanted = known & (gold != outside)
    return Chances(right * wanted, (1 - chances[..., outside].numpy()) * known, wanted)


def task_error(chances: Chances) -> float:
    """How wrong answers of one task would be that are drawn from the probabilities: 1 - accuracy,
    or 1 - F1 of the words in names.

    chances (Chances): shape (n_words,).
    RETURNS (float): In [0, 1]; nan if there is nothing to find.
    """
    right, claimed, wanted = (float(part.sum()) for part in chances)
    return 1 - 2 * right / (claimed + wanted) if wanted else math.nan


def expected_error(of_tasks: Iterable[Chances]) -> float:
    """The geometric mean of the tasks' errors, so that a tenth fewer errors count the same in an
    easy task and in a hard one. It hears how sure every word is, not only whose label changes, and
    is much less noisy than the score on little data. So is the log loss; but where most words are
    no names, it hardly hears the names.

    of_tasks (Iterable[Chances]): Of each task, shape (n_words,).
    RETURNS (float): In [0, 1]; nan if no task has gold labels.
    """
    errors = [error for error in map(task_error, of_tasks) if not math.isnan(error)]
    return float(np.exp(np.log(np.maximum(errors, 1e-9)).mean())) if errors else math.nan


def fit_temperature(scores: Tensor, gold: Tensor, steps: int = 30) -> float:
    """The T at which softmax(s / T) has the least negative log-likelihood.

    It is convex in 1 / T, with the derivative mean(sum_c p_c s_c - s_gold), whose zero is found by
    halving on a logarithmic scale.

    scores (Tensor): shape (n_words, n_classes).
    gold (Tensor): Class ids, shape (n_words,).
    RETURNS (float): In [COLDEST, HOTTEST]; 1 if there is nothing to fit.
    """
    if len(gold) == 0 or scores.shape[1] < 2:
        return 1.0
    scores = scores - scores.gather(1, gold[:, None])  # now the score of gold is 0
    cold, hot = COLDEST, HOTTEST
    for _ in range(steps):
        middle = (cold * hot) ** 0.5
        slope = (F.softmax(scores / middle, dim=1) * scores).sum(1).mean()
        if slope > 0:  # less likely with a larger 1 / T
            cold = middle
        else:
            hot = middle
    return (cold * hot) ** 0.5


def label_score(
    gold: np.ndarray, predicted: np.ndarray, classes: Sequence[str], unit: np.ndarray
) -> float:
    """How well the off-ramps' own labels do: F1 of entities where the classes are BIO, else the
    accuracy of words.

    gold, predicted (ndarray): Class ids, gold IGNORE where unknown, shape (n_words,).
    classes (Sequence[str]): Their names.
    unit (ndarray): The unit of each word; no entity reaches into the next.
    RETURNS (float): In [0, 1].
    """
    known = gold != IGNORE
    gold, predicted, unit = gold[known], predicted[known], unit[known]
    if not is_bio(classes):
        return float(np.mean(gold == predicted)) if len(gold) else 0.0
    breaks = np.diff(unit, prepend=-1) != 0
    expected, found = (_entity_ids(ids, breaks, classes) for ids in (gold, predicted))
    total = len(expected) + len(found)
    return 2 * len(np.intersect1d(expected, found, assume_unique=True)) / total if total else 1.0


def _entity_ids(path: np.ndarray, breaks: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """RETURNS (ndarray): One number per entity, made of its start, its end and its label."""
    starts, ends, labels = bio_spans(path, breaks, classes)
    return (starts * (len(path) + 1) + ends) * len(classes) + labels
