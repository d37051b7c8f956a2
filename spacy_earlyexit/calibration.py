"""Thresholds for a wanted speed-up, searched on dev data, and the score that stage 2 chooses its
checkpoint by."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from spacy.training import Example

from .criteria import ExitCriterion, TokenExit
from .errors import Errors
from .evaluation import bare_doc, component_scores, depth_scores

if TYPE_CHECKING:
    from .pipeline.transformer import EarlyExitTransformer


@dataclass
class Measurement:
    """What one run over the examples gave.

    score (float): Mean of the components' main scores, in [0, 1].
    speedup (float): MACs at full depth / MACs spent, over the corpus.
    mean_depth (float): Mean exit layer of the words.
    """

    criterion: ExitCriterion | None
    score: float
    speedup: float
    mean_depth: float

    def to_point(self) -> dict[str, Any]:
        """RETURNS (Dict[str, Any]): An operating point as the pipeline keeps it."""
        return {
            "exit": self.criterion.to_config() if self.criterion else None,
            "dev_score": self.score,
            "dev_speedup": self.speedup,
            "dev_mean_depth": self.mean_depth,
        }


class Probe:
    """Runs a transformer and the components behind it on examples, under any criterion."""

    def __init__(
        self,
        transformer: "EarlyExitTransformer",
        examples: Sequence[Example],
        criterion: Callable[[float], ExitCriterion] | None = None,
    ):
        """transformer (EarlyExitTransformer): In its pipeline.
        examples (Sequence[Example]): Their predicted Docs give tokens and sentence boundaries.
        criterion (Optional[Callable]): Makes a criterion for a threshold, if one is searched.
        """
        self.transformer = transformer
        self.nlp = transformer.nlp
        self.criterion = criterion
        self.examples = list(examples)
        self.seen: dict[float, Measurement] = {}

    def __call__(self, criterion: ExitCriterion | None) -> Measurement:
        """Run once and score."""
        transformer = self.transformer
        docs = [bare_doc(eg.predicted) for eg in self.examples]
        with transformer.use(criterion):
            output = transformer.predict(docs)
        transformer.set_annotations(docs, output)
        components = transformer.components_behind()
        for _, pipe in components:
            docs = list(pipe.pipe(docs)) if hasattr(pipe, "pipe") else [pipe(doc) for doc in docs]
        scored = [Example(doc, eg.reference) for doc, eg in zip(docs, self.examples, strict=True)]
        owned = output.exit_layer[output.pieces.owned]
        return Measurement(
            criterion,
            score=component_scores(components, self.nlp, scored)[1],
            speedup=float(output.macs_full.sum() / output.macs.sum()),
            mean_depth=float(owned.mean()),
        )

    def at(self, threshold: float) -> Measurement:
        """The criterion at a threshold; each threshold is run once."""
        if threshold not in self.seen:
            assert self.criterion is not None
            self.seen[threshold] = self(self.criterion(threshold))
        return self.seen[threshold]


def find_threshold(
    probe: Probe, speedup: float, tolerance: float = 0.01, max_runs: int = 12
) -> Measurement:
    """Bisection for the threshold that gives a MAC speed-up.

    The speed-up grows with the threshold. Runs made for other targets narrow the start; the search
    goes by interpolation between the logarithms of the two nearest thresholds, kept away from
    their ends, and falls back to halving.

    probe (Probe): Runs the pipeline.
    speedup (float): The wanted MACs at full depth / MACs spent.
    tolerance (float): Relative deviation of the speed-up that is good enough.
    max_runs (int): Runs to make at most.
    RETURNS (Measurement): The nearest run.
    RAISES (ValueError): If even a threshold of 1 is slower than wanted.
    """
    low, high = 1e-6, 1.0
    for _ in range(max_runs):
        below = [t for t, m in probe.seen.items() if m.speedup <= speedup]
        above = [t for t, m in probe.seen.items() if m.speedup > speedup]
        low, high = max([low, *below]), min([high, *above])
        nearest = min(probe.seen.values(), key=lambda m: abs(m.speedup - speedup), default=None)
        if nearest is not None and abs(nearest.speedup / speedup - 1) <= tolerance:
            return nearest
        if high / low < 1.001:
            break
        share = 0.5
        if low in probe.seen and high in probe.seen:
            s_low, s_high = probe.seen[low].speedup, probe.seen[high].speedup
            if s_high > s_low:
                share = min(max((speedup - s_low) / (s_high - s_low), 0.1), 0.9)
        probe.at(math.exp(math.log(low) + share * (math.log(high) - math.log(low))))
    best = max(m.speedup for m in probe.seen.values())
    if best < speedup * (1 - tolerance):
        raise ValueError(Errors.E021.format(target=speedup, best=best))
    return min(probe.seen.values(), key=lambda m: abs(m.speedup - speedup))


def make_exit_scorer(
    speedups: Sequence[float] = (), window: int = 2
) -> Callable[..., dict[str, Any]]:
    """Registered as spacy-earlyexit.exit_scorer.v1.

    speedups (List[float]): MAC speed-ups whose dev scores make up exit_score. Empty: no exit_score.
        While the transformer is being trained, the threshold for each is searched at every
        evaluation, and kept as the operating points "2x", "3x", …
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
        transformer (Optional[EarlyExitTransformer]): The component, while it is being trained.
        RETURNS (Dict[str, Any]): exit_layer_mean, exit_speedup, and in training exit_score.
        """
        examples = list(examples)
        scores: dict[str, Any] = depth_scores(examples)
        if transformer is not None and self.speedups:
            probe = Probe(transformer, examples, partial(TokenExit, window=self.window))
            found: dict[str, float] = {}
            for speedup in self.speedups:
                name = f"{speedup:g}x"
                try:
                    measured = find_threshold(probe, speedup)
                except ValueError:  # out of reach, which must not stop the training
                    found[name] = 0.0
                    transformer.points.pop(name, None)
                else:
                    found[name] = measured.score
                    transformer.points[name] = measured.to_point()
            scores.update({f"exit_score_{name}": score for name, score in found.items()})
            scores["exit_score"] = float(np.mean(list(found.values())))
        return scores
