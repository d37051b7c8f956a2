"""What a pipeline scores and costs under an exit setting, and the setting that costs so much."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from spacy.tokens import Doc
from spacy.training import Example

from ..errors import Errors
from ..evaluation.scores import component_scores
from ..evaluation.statistics import count_hits
from ..model.architecture import module_of, pieces_of, settings_of
from ..model.criteria import ExitCriterion
from ..model.pieces import Pieces
from ..pipeline.finding import fresh_docs
from .recording import Chances, Recording, expected_error, gold_chances, task_error

if TYPE_CHECKING:
    from ..model.output import MultiExitOutput
    from ..pipeline.transformer import EarlyExitTransformer


class Unreachable(ValueError):
    """No setting of a kind is as fast as is wanted."""


# More than this is not recorded, in bytes.
MOST_RECORDED = 4 * 2**30
# How far from the wanted speed-up (relative) a run may be that stands for it.
TOLERANCE = 0.01


@dataclass
class Measurement:
    """What one run over the examples gave.

    score (float): Mean of the components' main scores, in [0, 1].
    speedup (float): MACs at full depth / MACs spent, over the corpus.
    mean_depth (float): Mean exit layer of the words.
    scores (Dict[str, float]): The components' scores, such as {"ents_f": 0.9}.
    hits (Dict[str, ndarray]): Of count_hits, shape (n_docs, 3) each; empty if they are not counted.
    expected_error (float): See recording.expected_error; nan if it is not known.
    task_errors (Dict[str, float]): That of each task, see recording.task_error; empty if they are
        not known.
    """

    criterion: ExitCriterion | None
    score: float
    speedup: float
    mean_depth: float
    scores: dict[str, float] = field(default_factory=dict)
    hits: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)
    expected_error: float = math.nan
    task_errors: dict[str, float] = field(default_factory=dict)

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
        self, transformer: "EarlyExitTransformer", examples: Sequence[Example], hits: bool = False
    ):
        """transformer (EarlyExitTransformer): In its pipeline.
        examples (Sequence[Example]): Their predicted Docs give tokens, see fresh_docs.
        hits (bool): Count them, and after `record` what is expected of them, in every run.
        """
        self.transformer = transformer
        self.hits = hits
        self.references = [eg.reference for eg in examples]
        self.docs = fresh_docs(transformer, examples)
        self.pieces: Pieces | None = None
        self.true_temperatures: dict[str, torch.Tensor] = {}  # of the recording
        self.gold: dict[str, np.ndarray] = {}  # per task, when it is known which words there are
        self.runs: list[Measurement] = []

    def __call__(self, criterion: ExitCriterion | None) -> Measurement:
        """Run once and score."""
        return self._measure(criterion, *self._run(criterion))

    def record(self) -> tuple[Recording, Measurement]:
        """One run at full depth that keeps the scores of all layers.

        RETURNS (Tuple[Recording, Measurement]): The recording, and what full depth gave.
        RAISES (ValueError): If there is nothing to record, or it would take too much memory.
        """
        transformer = self.transformer
        model = transformer.model
        if self.pieces is None:
            self.pieces = pieces_of(model, self.docs)
        module = module_of(model)
        slices, _ = module.offramps.select(transformer.active_tasks)
        n_words = len(self.pieces.word_row)
        n_classes = sum(part.stop - part.start for part in slices.values())
        if not n_words or not slices:
            raise ValueError(Errors.E035.format(n_words=n_words, name=transformer.name))
        size = 4 * transformer.n_layers * n_words * n_classes
        if size > MOST_RECORDED:
            gigabytes = size / 2**30
            raise ValueError(Errors.E036.format(n_words=n_words, gigabytes=gigabytes))
        docs, output = self._run(None, every_layer=True)
        assert output.every_layer is not None
        recording = Recording(
            module,
            output.pieces,
            output.slices,
            output.every_layer,
            self._gold(output),
            float(output.macs_full.sum()),
            settings_of(model).rules,
        )
        self.true_temperatures = recording.true_temperatures
        # It is full depth as it would be without the recording: the last off-ramp only.
        output.macs = output.macs_full
        return recording, self._measure(None, docs, output)

    def _run(
        self, criterion: ExitCriterion | None, **settings: Any
    ) -> tuple[list[Doc], "MultiExitOutput"]:
        docs = [doc.copy() for doc in self.docs]
        with self.transformer.use(criterion):
            output = self.transformer.predict(docs, pieces=self.pieces, **settings)
        self.pieces = output.pieces
        self.transformer.set_annotations(docs, output)
        return docs, output

    def _measure(
        self, criterion: ExitCriterion | None, docs: list[Doc], output: "MultiExitOutput"
    ) -> Measurement:
        components = self.transformer.components_behind()
        for _, pipe in components:
            docs = list(pipe.pipe(docs)) if hasattr(pipe, "pipe") else [pipe(doc) for doc in docs]
        scored = [Example(*pair) for pair in zip(docs, self.references, strict=True)]
        scores, score = component_scores(components, self.transformer.nlp, scored)
        chances = self._chances(output) if self.hits else {}
        measured = Measurement(
            criterion,
            score=score,
            speedup=float(output.macs_full.sum() / output.macs.sum()),
            mean_depth=float(output.exit_layer[output.pieces.owned].mean()),
            scores=scores,
            hits=count_hits(scored) if self.hits else {},
            expected_error=expected_error(chances.values()),
            task_errors={task: task_error(own) for task, own in chances.items()},
        )
        self.runs.append(measured)
        return measured

    def _gold(self, output: "MultiExitOutput") -> dict[str, np.ndarray]:
        if not self.gold:
            examples = [Example(*pair) for pair in zip(self.docs, self.references, strict=True)]
            gold = self.transformer.gold(examples, output.pieces)
            self.gold = {task: gold[task].cpu().numpy() for task in output.slices}
        return self.gold

    def _chances(self, output: "MultiExitOutput") -> dict[str, Chances]:
        """Of each task at exit, once the true temperatures are known."""
        if not self.true_temperatures:
            return {}
        layers = output.exit_layer - 1
        classes = module_of(self.transformer.model).offramps.classes
        return {
            task: gold_chances(
                torch.from_numpy(output.scores[:, output.slices[task]]),
                self.true_temperatures[task][layers, None],
                ids,
                classes[task],
            )
            for task, ids in self._gold(output).items()
        }


class Sweep:
    """One kind of criterion at several thresholds; each is run once.

    probe (Probe): Runs the pipeline.
    criterion (Callable): Makes the criterion for a threshold.
    """

    def __init__(self, probe: Probe, criterion: Callable[[float], ExitCriterion]):
        self.probe = probe
        self.criterion = criterion
        self.seen: dict[float, Measurement] = {}

    def at(self, threshold: float) -> Measurement:
        if threshold not in self.seen:
            self.seen[threshold] = self.probe(self.criterion(threshold))
        return self.seen[threshold]


class Curve:
    """What a recording says of one kind of criterion: speed-up, score and expected error for many
    thresholds, from one that hardly a word is below.
    """

    def __init__(self, recording: Recording, criterion: Callable[[float], ExitCriterion]):
        self.thresholds = np.geomspace(recording.least_threshold, 1.0, 31)
        replays = [recording.replay(criterion(threshold)) for threshold in self.thresholds]
        # It never falls with the threshold; equal values would leave nothing to interpolate.
        speedups = np.maximum.accumulate([replay.speedup for replay in replays])
        self.speedups = speedups + 1e-9 * np.arange(len(speedups))
        self.scores = np.asarray([replay.score for replay in replays])
        self.errors = np.asarray([replay.expected_error for replay in replays])

    def threshold_for(self, speedup: float) -> float:
        return float(np.exp(np.interp(speedup, self.speedups, np.log(self.thresholds))))

    def speedup_at(self, threshold: float) -> float:
        return float(np.interp(np.log(threshold), np.log(self.thresholds), self.speedups))

    def predicted(self, speedup: float) -> tuple[float, float]:
        """RETURNS (Tuple[float, float]): How near a speed-up can be got to, 1 being there, and the
        negative expected error there; of two candidates the better one is greater.
        """
        slowest, fastest = self.speedups[[0, -1]]
        reached = float(min(fastest / speedup, speedup / slowest, 1.0))
        return reached, -float(np.interp(speedup, self.speedups, self.errors))

    def fastest(self, score: float) -> float:
        """RETURNS (float): The largest speed-up with at least this score; 1 if there is none."""
        enough = self.speedups[self.scores >= score]
        return float(max(enough, default=1.0))


def find_threshold(
    sweep: Sweep,
    speedup: float,
    tolerance: float = TOLERANCE,
    max_runs: int = 12,
    curve: Curve | None = None,
) -> Measurement:
    """Search the threshold that gives a MAC speed-up.

    The speed-up grows with the threshold. Runs made for other targets narrow the start. With a
    curve, the next threshold is where the curve reaches the target, corrected by how far the
    nearest run was from it. Without, or where that leaves the bracket, the search goes by
    interpolation between the logarithms of the two nearest thresholds, kept away from their ends,
    and falls back to halving.

    sweep (Sweep): Runs the pipeline.
    speedup (float): The wanted MACs at full depth / MACs spent.
    tolerance (float): Relative deviation of the speed-up that is good enough.
    max_runs (int): Runs to make at most.
    curve (Optional[Curve]): What a recording says of this kind of criterion.
    RETURNS (Measurement): The nearest run.
    RAISES (Unreachable): If even a threshold of 1 is slower than wanted.
    """
    low = 1e-6 if curve is None else 0.1 * float(curve.thresholds[0])
    high = 1.0
    for _ in range(max_runs):
        below = [t for t, m in sweep.seen.items() if m.speedup <= speedup]
        above = [t for t, m in sweep.seen.items() if m.speedup > speedup]
        low, high = max([low, *below]), min([high, *above])
        nearest = min(sweep.seen.values(), key=lambda m: abs(m.speedup - speedup), default=None)
        if nearest is not None and abs(nearest.speedup / speedup - 1) <= tolerance:
            return nearest
        if high / low < 1.001:
            break
        if curve is not None:
            threshold = next_threshold(sweep, curve, speedup)
            if low < threshold <= high and threshold not in sweep.seen:
                sweep.at(threshold)
                continue
        share = 0.5
        if low in sweep.seen and high in sweep.seen:
            s_low, s_high = sweep.seen[low].speedup, sweep.seen[high].speedup
            if s_high > s_low:
                share = min(max((speedup - s_low) / (s_high - s_low), 0.1), 0.9)
        sweep.at(math.exp(math.log(low) + share * (math.log(high) - math.log(low))))
    best = max(m.speedup for m in sweep.seen.values())
    if best < speedup * (1 - tolerance):
        raise Unreachable(Errors.E020.format(target=speedup, best=best))
    return min(sweep.seen.values(), key=lambda m: abs(m.speedup - speedup))


def next_threshold(sweep: Sweep, curve: Curve, speedup: float) -> float:
    """Where a curve reaches a speed-up, corrected by how far the nearest run was from the curve."""
    near = min(sweep.seen, key=lambda t: abs(sweep.seen[t].speedup - speedup), default=None)
    gain = 1.0 if near is None else curve.speedup_at(near) / sweep.seen[near].speedup
    return curve.threshold_for(speedup * gain)
