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

from ..errors import Errors
from .criteria import SCHEDULES, window_max

# By how much a threshold follows what a unit's draw cost: small enough to average over units, large
# enough to get from any start to where it belongs in the first tenth of a training.
GAIN = 0.5
START, LEAST = 0.01, 1e-6


class SelfSampling:
    """Draws an exit setting for every unit ("sandwich": some strict, some at full depth).

    windows (List[int]): Windows (words on each side) to draw from.
    thresholds (Optional[List[float]]): Thresholds to draw from.
    speedups (Optional[List[float]]): MAC speed-ups to draw from instead; `follow` finds the
        threshold for each, and each window, while the model is trained.
    schedule (str): How a threshold grows over depth, one of criteria.SCHEDULES.
    aggressive (float): Share of units that get the smallest window and the largest threshold or
        speed-up.
    full_depth (float): Share of units that run to the last layer.

    grid (Tensor): The thresholds of now, shape (n_windows, n_thresholds or n_speedups).
    """

    def __init__(
        self,
        windows: Sequence[int],
        thresholds: Sequence[float] | None,
        schedule: str,
        aggressive: float,
        full_depth: float,
        speedups: Sequence[float] | None = None,
    ):
        self.windows = sorted(windows)
        self.speedups = None if speedups is None else torch.tensor(sorted(speedups))
        levels = [START] * len(speedups) if speedups is not None else sorted(thresholds or ())
        self.start = torch.tensor(levels).repeat(len(self.windows), 1)
        self.grid = self.start
        self.schedule = schedule
        self.aggressive = aggressive
        self.full_depth = full_depth

    def reset(self) -> None:
        """Begin again, for other weights."""
        self.grid = self.start

    def __call__(self, n_units: int, n_layers: int) -> "SampledExit":
        """Uses torch's seeded generator, so that a seed reproduces the draw.

        n_units (int): Units of the batch.
        n_layers (int): Layers of the encoder.
        RETURNS (SampledExit): The criterion for this batch.
        """
        n_windows, n_levels = self.grid.shape
        window = torch.randint(n_windows, (n_units,))
        level = torch.randint(n_levels, (n_units,))
        kind = torch.rand(n_units)
        aggressive = kind < self.aggressive
        window[aggressive], level[aggressive] = 0, n_levels - 1
        threshold = self.grid[window, level]
        threshold[kind >= 1.0 - self.full_depth] = 0.0
        factor = SCHEDULES[self.schedule]
        factors = [factor(layer, n_layers) for layer in range(1, n_layers + 1)]
        drawn = torch.stack([window, level])
        return SampledExit(threshold, torch.tensor(self.windows)[window], factors, drawn)

    def follow(self, sampled: "SampledExit", macs: np.ndarray, macs_full: np.ndarray) -> None:
        """Move the thresholds towards those that give the wanted speed-ups (Robbins and Monro
        1951): each up where its units cost more than wanted, and down where they cost less.

        sampled (SampledExit): What __call__ returned for a batch.
        macs, macs_full (ndarray): Multiply-accumulates of its units, spent and at full depth, shape
            (n_units,).
        """
        if self.speedups is None or sampled.drawn is None:
            return
        leaves = sampled.threshold > 0
        window, level = sampled.drawn[:, leaves]
        spent, full = (torch.from_numpy(each)[leaves].float() for each in (macs, macs_full))
        place = window * self.grid.shape[1] + level
        sums = torch.zeros(2, self.grid.numel()).index_add_(1, place, torch.stack([spent, full]))
        wanted = self.speedups.repeat(len(self.windows))
        over = torch.where(sums[1] > 0, wanted * sums[0] / sums[1] - 1, 0.0).view_as(self.grid)
        self.grid = (self.grid * (GAIN * over).exp()).clamp(LEAST, 1.0)


class SampledExit:
    """TOKEE with a threshold and a window per unit of the original batch, shapes (n_units,).

    factors (Sequence[float]): What the thresholds are multiplied with, per layer.
    drawn (Optional[Tensor]): Row and column of each threshold in SelfSampling.grid, shape
        (2, n_units).
    """

    def __init__(
        self,
        threshold: Tensor,
        window: Tensor,
        factors: Sequence[float],
        drawn: Tensor | None = None,
    ):
        self.threshold = threshold
        self.window = window
        self.factors = factors
        self.drawn = drawn

    def checks(self, layer: int) -> bool:
        return bool((self.threshold > 0).any())

    def halts(self, n_layers: int) -> np.ndarray:
        return (self.threshold > 0).numpy()

    def __call__(self, layer: int, uncertainty: Tensor, words: Any) -> Tensor:
        unit = torch.as_tensor(words.unit_id)[words.word_unit.cpu()]
        threshold = self.threshold[unit].to(uncertainty.device) * self.factors[layer - 1]
        window = self.window[unit].to(uncertainty.device)
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
    windows: Sequence[int] = (1, 2, 3),
    thresholds: Sequence[float] | None = None,
    aggressive: float = 0.1,
    full_depth: float = 0.2,
    schedule: str = "linear",
    speedups: Sequence[float] | None = (1.5, 2.0, 3.0, 4.0, 5.0),
) -> SelfSampling:
    """Registered as spacy-earlyexit.SelfSampling.v1; for `self_sampling` of the transformer. See
    SelfSampling for the settings; of `thresholds` and `speedups` one is null.

    The paper's code draws full widths {5, …, 15} (that is windows 2 … 7) and thresholds
    {.01, .03, .05, .1, .15, .2, .25}; of ten sentences two are aggressive, four at full depth; a
    frozen model of stage 1 decides. Here the model that is being trained decides.

    RAISES (ValueError): If a setting is impossible.
    """
    if not windows or min(windows) < 0:
        raise ValueError(
            Errors.E018.format(setting="windows", expected="numbers >= 0", value=windows)
        )
    if (thresholds is None) == (speedups is None):
        raise ValueError(
            Errors.E018.format(
                setting="thresholds and speedups",
                expected="one of the two, the other null",
                value=(thresholds, speedups),
            )
        )
    if thresholds is not None and not (thresholds and all(0 < t <= 1 for t in thresholds)):
        raise ValueError(
            Errors.E018.format(setting="thresholds", expected="in (0, 1]", value=thresholds)
        )
    if speedups is not None and not (speedups and all(s > 1 for s in speedups)):
        raise ValueError(
            Errors.E018.format(setting="speedups", expected="numbers > 1", value=speedups)
        )
    if aggressive < 0 or full_depth < 0 or aggressive + full_depth > 1:
        raise ValueError(
            Errors.E018.format(
                setting="aggressive and full_depth",
                expected="shares that add up to at most 1",
                value=(aggressive, full_depth),
            )
        )
    if schedule not in SCHEDULES:
        expected = f"one of {', '.join(SCHEDULES)}"
        raise ValueError(Errors.E018.format(setting="schedule", expected=expected, value=schedule))
    return SelfSampling(windows, thresholds, schedule, aggressive, full_depth, speedups)
