"""Stage 2: train on the states that early exit leaves behind (paper section 3.4).

At prediction a deep layer meets states that were copied from shallower ones; joint training never
shows it any. Here every unit of a batch gets a window and a threshold, the model itself decides
with them where each word exits, and the off-ramps learn on what halt-and-copy makes of it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..criteria import SCHEDULES, window_max
from ..errors import Errors


class SelfSampling:
    """Draws an exit setting for every unit ("sandwich": some strict, some at full depth).

    windows (List[int]): Windows (words on each side) to draw from.
    thresholds (List[float]): Thresholds to draw from.
    schedule (str): How a threshold grows over depth, one of criteria.SCHEDULES.
    aggressive (float): Share of units that get the smallest window and largest threshold.
    full_depth (float): Share of units that run to the last layer.
    frozen (bool): Who decides: a frozen copy of the model as it was when stage 2 began, run at full
        depth; or the model that is being trained.
    """

    def __init__(
        self,
        windows: Sequence[int],
        thresholds: Sequence[float],
        schedule: str,
        aggressive: float,
        full_depth: float,
        frozen: bool,
    ):
        self.windows = list(windows)
        self.thresholds = list(thresholds)
        self.schedule = schedule
        self.aggressive = aggressive
        self.full_depth = full_depth
        self.frozen = frozen

    def __call__(
        self, n_units: int, n_layers: int, doubts: Sequence[Tensor] | None = None
    ) -> "SampledExit":
        """Uses torch's seeded generator, so that a seed reproduces the draw.

        n_units (int): Units of the batch.
        n_layers (int): Layers of the encoder.
        doubts (Optional[Sequence[Tensor]]): What the frozen copy says, see SampledExit.
        RETURNS (SampledExit): The criterion for this batch.
        """
        window = torch.tensor(self.windows)[torch.randint(len(self.windows), (n_units,))]
        threshold = torch.tensor(self.thresholds)[torch.randint(len(self.thresholds), (n_units,))]
        kind = torch.rand(n_units)
        aggressive = kind < self.aggressive
        window[aggressive] = min(self.windows)
        threshold[aggressive] = max(self.thresholds)
        threshold[kind >= 1.0 - self.full_depth] = 0.0
        factor = SCHEDULES[self.schedule]
        factors = [factor(layer, n_layers) for layer in range(1, n_layers + 1)]
        return SampledExit(threshold, window, factors, doubts)


class SampledExit:
    """TOKEE with a threshold and a window per unit of the original batch, shapes (n_units,).

    factors (Sequence[float]): What the thresholds are multiplied with, per layer.
    doubts (Optional[Sequence[Tensor]]): The uncertainties to go by, per layer those of all words of
        the original batch, shape (n_words,). None: those at hand.
    """

    def __init__(
        self,
        threshold: Tensor,
        window: Tensor,
        factors: Sequence[float],
        doubts: Sequence[Tensor] | None = None,
    ):
        self.threshold = threshold
        self.window = window
        self.factors = factors
        self.doubts = doubts

    def checks(self, layer: int) -> bool:
        return bool((self.threshold > 0).any())

    def halts(self, n_layers: int) -> np.ndarray:
        return (self.threshold > 0).numpy()

    def __call__(self, layer: int, uncertainty: Tensor, words: Any) -> Tensor:
        unit = torch.as_tensor(words.unit_id)[words.word_unit.cpu()]
        threshold = self.threshold[unit].to(uncertainty.device) * self.factors[layer - 1]
        window = self.window[unit].to(uncertainty.device)
        if self.doubts is not None:
            uncertainty = self.doubts[layer - 1][torch.as_tensor(words.word_id)]
        worst = torch.empty_like(uncertainty)
        for size in sorted(set(self.window.tolist())):
            own = window == size
            worst[own] = window_max(uncertainty, words, size)[own]
        return worst < threshold

    def to_config(self) -> dict[str, Any]:
        raise TypeError("a sampled exit belongs to one training batch and is not saved")

    def validate(self, n_layers: int) -> None:
        pass


def make_self_sampling(
    windows: list[int],
    thresholds: list[float],
    aggressive: float = 0.2,
    full_depth: float = 0.4,
    frozen: bool = False,
    schedule: str = "constant",
) -> SelfSampling:
    """Registered as spacy-earlyexit.SelfSampling.v1; for `self_sampling` of the transformer.

    The paper's code draws full widths {5, …, 15} (that is windows 2 … 7) and thresholds
    {.01, .03, .05, .1, .15, .2, .25}; of ten sentences two are aggressive, four at full depth; the
    frozen model of stage 1 decides.

    RAISES (ValueError): If a setting is impossible.
    """
    if not windows or min(windows) < 0:
        raise ValueError(
            Errors.E019.format(setting="windows", expected="numbers >= 0", value=windows)
        )
    if not thresholds or not all(0 < t <= 1 for t in thresholds):
        raise ValueError(
            Errors.E019.format(setting="thresholds", expected="in (0, 1]", value=thresholds)
        )
    if aggressive < 0 or full_depth < 0 or aggressive + full_depth > 1:
        raise ValueError(
            Errors.E019.format(
                setting="aggressive and full_depth",
                expected="shares that add up to at most 1",
                value=(aggressive, full_depth),
            )
        )
    if schedule not in SCHEDULES:
        expected = f"one of {', '.join(SCHEDULES)}"
        raise ValueError(Errors.E019.format(setting="schedule", expected=expected, value=schedule))
    return SelfSampling(windows, thresholds, schedule, aggressive, full_depth, frozen)
