"""The score that training chooses its checkpoint by: dev scores at MAC speed-ups."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from spacy.training import Example

from ..calibration.measuring import Probe, Sweep, find_threshold
from ..evaluation.scores import depth_scores
from ..model.criteria import TokenExit

if TYPE_CHECKING:
    from ..pipeline.transformer import EarlyExitTransformer


def make_exit_scorer(
    speedups: Sequence[float] = (), window: int = 2
) -> Callable[..., dict[str, Any]]:
    """Registered as spacy-earlyexit.exit_scorer.v1.

    speedups (List[float]): MAC speed-ups whose dev scores make up exit_score. Empty: no exit_score.
        In training, the threshold for each is searched at every evaluation, and kept as the
        operating points "2x", "3x", …; that is, wherever the weights have changed since the last
        evaluation, or since `calibrate`. So an evaluation on test data behind it changes nothing.
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
        transformer: "EarlyExitTransformer | None" = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """examples (Iterable[Example]): Examples with predictions.
        transformer (Optional[EarlyExitTransformer]): The component, if its weights have changed.
        RETURNS (Dict[str, Any]): exit_layer_mean, exit_speedup, and in training exit_score.
        """
        examples = list(examples)
        scores: dict[str, Any] = depth_scores(examples)
        if transformer is not None and self.speedups:
            sweep = Sweep(Probe(transformer, examples), partial(TokenExit, window=self.window))
            found: dict[str, float] = {}
            for speedup in self.speedups:
                name = f"{speedup:g}x"
                try:
                    measured = find_threshold(sweep, speedup)
                except ValueError:  # out of reach, which must not stop the training
                    found[name] = 0.0
                    if name != transformer.exit:  # what is in force has to be there
                        transformer.points.pop(name, None)
                else:
                    found[name] = measured.score
                    transformer.points[name] = measured.to_point()
            transformer.tell_meta()
            scores.update({f"exit_score_{name}": score for name, score in found.items()})
            scores["exit_score"] = float(np.mean(list(found.values())))
        return scores
