"""The score that training chooses its checkpoint by: dev scores at MAC speed-ups."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from spacy.training import Example

from ..calibration.measuring import Probe, Sweep, Unreachable, find_threshold
from ..errors import Warnings
from ..evaluation.scores import depth_scores
from ..model.criteria import TokenExit
from ..pipeline.transformer import EarlyExitTransformer


def make_exit_scorer(
    speedups: Sequence[float] = (), window: int = 2
) -> Callable[..., dict[str, Any]]:
    """Registered as spacy-earlyexit.exit_scorer.v1.

    speedups (List[float]): MAC speed-ups whose dev scores make up exit_score. Empty: no exit_score.
        In training, the threshold for each is searched at every evaluation. Nothing of it is kept:
        operating points are found by `calibrate`.
    window (int): The window of token exit for these.
    """
    return ExitScorer(tuple(speedups), window)


class ExitScorer:
    """See make_exit_scorer."""

    def __init__(self, speedups: tuple[float, ...], window: int):
        self.speedups = speedups
        self.window = window

    def __call__(
        self,
        examples: Iterable[Example],
        transformer: EarlyExitTransformer | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """examples (Iterable[Example]): Examples with predictions.
        transformer (Optional[EarlyExitTransformer]): The component, if it is being trained.
        RETURNS (Dict[str, Any]): exit_layer_mean, exit_speedup, and in training exit_score and that
            of each speed-up; 0.0 where it is out of reach, which must not stop the training.
        """
        examples = list(examples)
        scores: dict[str, Any] = depth_scores(examples)
        if transformer is not None and transformer.links.nlp is None and self.speedups:
            warnings.warn(Warnings.W007.format(name=transformer.name), stacklevel=2)
        elif transformer is not None and self.speedups:
            sweep = Sweep(Probe(transformer, examples), partial(TokenExit, window=self.window))
            found: dict[str, float] = {}
            for speedup in self.speedups:
                try:
                    found[f"{speedup:g}x"] = find_threshold(sweep, speedup).score
                except Unreachable:
                    found[f"{speedup:g}x"] = 0.0
            scores.update({f"exit_score_{name}": score for name, score in found.items()})
            scores["exit_score"] = float(np.mean(list(found.values())))
        return scores
