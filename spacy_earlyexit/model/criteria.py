"""Exit criteria: which words are certain enough to leave at a layer."""

import functools
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from spacy.util import registry
from torch import Tensor

from ..errors import Errors

UNIT_GAP = 2**30  # no window reaches as far

# Thresholds over depth: layer and number of layers to a factor on the first layer's threshold.
SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": lambda layer, n_layers: 1.0,
    "doubled": lambda layer, n_layers: 2.0 if layer > n_layers / 2 else 1.0,
    "linear": lambda layer, n_layers: float(layer),
    "geometric": lambda layer, n_layers: 16.0 ** ((layer - 1) / max(n_layers - 1, 1)),
}


class Words(Protocol):
    """What a criterion sees of the words that are still in the batch.

    word_unit (Tensor): The unit (from 0) of each word, non-decreasing, shape (n_words,).
    n_units (int): Units still in the batch.
    word_gap (Tensor): How many places each word lies behind the one before it, 1 unless words in
        between have left the batch; UNIT_GAP at the start of a unit, but 0 at the first of all;
        shape (n_words,).
    n_gaps (int): How many of these are larger than 1.
    most_words (int): No unit has more words than that.
    """

    word_unit: Tensor
    word_gap: Tensor
    n_gaps: int
    most_words: int

    @property
    def n_units(self) -> int: ...


class ExitCriterion(Protocol):
    """Decides at every layer but the last, where everything leaves.

    One that does not go by the off-ramps' uncertainty says so with needs_tasks = False.
    """

    def checks(self, layer: int) -> bool:
        """Whether anything can leave at this layer (from 1). If not, its off-ramp is not run."""

    def halts(self, n_layers: int) -> bool | np.ndarray:
        """Whether rows can halt while others of their unit go on to the last of n_layers: one
        answer for all units, or one for each, shape (n_units,), bool.
        """

    def __call__(self, layer: int, uncertainty: Tensor, words: Words) -> Tensor:
        """layer (int): The layer, from 1.
        uncertainty (Tensor): Of every word in the batch, exited ones too, shape (n_words,).
        words (Words): Where the words lie.
        RETURNS (Tensor): True where a word may leave, shape (n_words,), bool.
        """

    def to_config(self) -> dict[str, Any]:
        """RETURNS (Dict[str, Any]): The block that `exit` takes in a config."""

    def validate(self, n_layers: int) -> None:
        """RAISES (ValueError): If the criterion does not fit an encoder of n_layers."""


def window_max(uncertainty: Tensor, words: Words, window: int) -> Tensor:
    """The largest uncertainty among a word and its neighbours in the same unit.

    max {u_i : |i - j| <= k} (paper section 3.3). The words of all units lie in one row with gaps
    of k words between units that hold -inf, so that a window never sees the next unit. Words that
    have left the batch hold -inf, too.

    uncertainty (Tensor): shape (n_words,).
    words (Words): Where the words lie.
    window (int): k, the neighbours on each side.
    RETURNS (Tensor): shape (n_words,).
    """
    window = min(window, words.most_words - 1)  # the gaps are as wide as the window
    if window <= 0 or len(uncertainty) == 0:
        return uncertainty
    if words.n_gaps == 0:
        return F.max_pool1d(uncertainty[None], 2 * window + 1, stride=1, padding=window)[0]
    at = words.word_gap.clamp(max=window + 1).cumsum(0)
    row = uncertainty.new_full((len(uncertainty) + words.n_gaps * window,), float("-inf"))
    row[at] = uncertainty
    pooled = F.max_pool1d(row[None, None], 2 * window + 1, stride=1, padding=window)
    return pooled[0, 0, at]


def unit_max(uncertainty: Tensor, words: Words) -> Tensor:
    """The largest uncertainty of each word's unit, shape (n_words,) (paper section 3.2)."""
    worst = uncertainty.new_zeros(words.n_units)
    worst = worst.scatter_reduce(0, words.word_unit, uncertainty, "amax", include_self=False)
    return worst[words.word_unit]


@dataclass(frozen=True, repr=False)
class _Shown(ABC):
    """Shows its settings shortly, and takes numpy's numbers as Python's, which configs can hold."""

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))
        self._check()

    @abstractmethod
    def _check(self) -> None:
        """RAISES (ValueError): If a setting is impossible for every encoder."""

    def __repr__(self) -> str:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        short = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in given.items()}
        shown = [f"{name}={value}" for name, value in short.items() if value is not None]
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True, repr=False)
class _Threshold(_Shown):
    """One threshold, or one per layer; 0 lets nothing leave."""

    threshold: float | Sequence[float]

    if TYPE_CHECKING:  # a field of the subclasses, behind their own

        @property
        def last_layer(self) -> int | None: ...

    def threshold_at(self, layer: int) -> float:
        """RETURNS (float): Of a layer, from 1; infinite where everything leaves."""
        if self.last_layer is not None and layer >= self.last_layer:
            return math.inf
        each = self.threshold
        return each[layer - 1] if isinstance(each, tuple) else cast(float, each)

    def __call__(self, layer: int, uncertainty: Tensor, words: Words) -> Tensor:
        limit = self.threshold_at(layer)
        if limit == math.inf:
            return torch.ones_like(uncertainty, dtype=torch.bool)
        return self._doubt(uncertainty, words) < limit

    @abstractmethod
    def _doubt(self, uncertainty: Tensor, words: Words) -> Tensor:
        """The uncertainty that is compared with the threshold, shape (n_words,)."""

    def checks(self, layer: int) -> bool:
        return self.threshold_at(layer) > 0

    def halts(self, n_layers: int) -> bool:
        return any(self.checks(layer) for layer in range(1, self.last_layer or n_layers))

    def _check(self) -> None:
        _check_threshold(self.threshold)
        if self.last_layer is not None:
            _check_layer("last_layer", self.last_layer)

    def validate(self, n_layers: int) -> None:
        if isinstance(self.threshold, tuple) and len(self.threshold) != n_layers:
            raise ValueError(Errors.E007.format(n_given=len(self.threshold), n_layers=n_layers))
        if self.last_layer is not None:
            _check_layer("last_layer", self.last_layer, n_layers)

    def to_config(self) -> dict[str, Any]:
        each = self.threshold
        config = {
            "@misc": f"spacy-earlyexit.{type(self).__name__}.v1",
            **{field.name: getattr(self, field.name) for field in fields(self)},
            "threshold": list(each) if isinstance(each, tuple) else each,
        }
        if self.last_layer is None:
            del config["last_layer"]
        return config


@dataclass(frozen=True, repr=False)
class TokenExit(_Threshold):
    """TOKEE: a word leaves when it and its neighbours are certain (paper section 3.3).

    threshold (Union[float, Sequence[float]]): δ in [0, 1], for all layers or per layer.
    window (int): k, how many neighbours on each side have to be certain too.
    last_layer (Optional[int]): Where all words leave that have not, certain or not, from 1; None:
        the encoder's last.
    RAISES (ValueError): If a setting is impossible.
    """

    window: int
    last_layer: int | None = None  # type: ignore[misc]

    def _check(self) -> None:
        super()._check()
        window = self.window
        if isinstance(window, bool) or not isinstance(window, int) or window < 0:
            raise ValueError(Errors.E006.format(value=window))

    def _doubt(self, uncertainty: Tensor, words: Words) -> Tensor:
        return window_max(uncertainty, words, self.window)


@dataclass(frozen=True, repr=False)
class SentenceExit(_Threshold):
    """SENTEE: a unit leaves as a whole when all its words are certain (paper section 3.2).

    threshold (Union[float, Sequence[float]]): δ in [0, 1], for all layers or per layer.
    last_layer (Optional[int]): As in TokenExit.
    RAISES (ValueError): If a setting is impossible.
    """

    last_layer: int | None = None  # type: ignore[misc]

    def _doubt(self, uncertainty: Tensor, words: Words) -> Tensor:
        return unit_max(uncertainty, words)


@dataclass(frozen=True, repr=False)
class FixedExit(_Shown):
    """Everything leaves at one layer, certain or not.

    layer (int): The layer, from 1.
    RAISES (ValueError): If it is below 1 (above the encoder's last: when it is used).
    """

    needs_tasks: ClassVar[bool] = False

    layer: int

    def checks(self, layer: int) -> bool:
        return layer == self.layer

    def halts(self, n_layers: int) -> bool:
        return False  # everything leaves at once: what went before is full depth

    def __call__(self, layer: int, uncertainty: Tensor, words: Words) -> Tensor:
        return torch.ones_like(uncertainty, dtype=torch.bool)

    def to_config(self) -> dict[str, Any]:
        return {"@misc": "spacy-earlyexit.FixedExit.v1", "layer": self.layer}

    def _check(self) -> None:
        _check_layer("layer", self.layer)

    def validate(self, n_layers: int) -> None:
        _check_layer("layer", self.layer, n_layers)


def make_token_exit(
    threshold: float | list[float], window: int, last_layer: int | None = None
) -> TokenExit:
    """Registered as spacy-earlyexit.TokenExit.v1; see TokenExit."""
    return TokenExit(threshold, window, last_layer)


def make_sentence_exit(
    threshold: float | list[float], last_layer: int | None = None
) -> SentenceExit:
    """Registered as spacy-earlyexit.SentenceExit.v1; see SentenceExit."""
    return SentenceExit(threshold, last_layer)


def make_fixed_exit(layer: int) -> FixedExit:
    """Registered as spacy-earlyexit.FixedExit.v1; see FixedExit."""
    return FixedExit(layer)


def make_criterion(block: Any) -> Any:
    """What a config's block makes: a criterion, if it is the block of one."""
    return registry.resolve({"exit": block})["exit"]


def read_criterion(block: Mapping[str, Any] | None) -> ExitCriterion | None:
    """As make_criterion, but one object for all equal blocks, which must not be changed: the
    registry is too slow to be asked for every text.

    block (Optional[Mapping[str, Any]]): What to_config gave; None: full depth.
    RAISES (ValueError): If it is no such block.
    """
    return None if block is None else _read_criterion(json.dumps(block))


@functools.lru_cache
def _read_criterion(block: str) -> ExitCriterion:
    return make_criterion(json.loads(block))


def _plain(value: Any) -> Any:
    """Numbers of numpy's as Python's, lists of them as tuples."""
    if isinstance(value, np.ndarray) and value.ndim:
        value = list(value)
    if isinstance(value, (list, tuple)):
        return tuple(_plain(item) for item in value)
    return value.item() if isinstance(value, (np.generic, np.ndarray)) else value


def _check_layer(setting: str, layer: Any, n_layers: int | None = None) -> None:
    whole = isinstance(layer, int) and not isinstance(layer, bool)
    if not whole or layer < 1:
        expected = "a whole number, 1 or more"
        raise ValueError(Errors.E018.format(setting=setting, expected=expected, value=layer))
    if n_layers is not None and layer > n_layers:
        raise ValueError(Errors.E008.format(setting=setting, n_layers=n_layers, layer=layer))


def _check_threshold(threshold: Any) -> None:
    values = threshold if isinstance(threshold, tuple) else (threshold,)
    for value in values:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 <= value <= 1:
            what = "normalised entropy: 0 = only full certainty, 1 = no certainty needed"
            raise ValueError(Errors.E005.format(setting="threshold", what=what, value=value))
