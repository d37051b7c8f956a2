"""Operating points: exit settings for a wanted speed-up or an allowed loss, chosen on dev data; and
the score that stage 2 chooses its checkpoint by.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from spacy.tokens import Doc
from spacy.training import Example
from tqdm import tqdm

from .architectures import module_of
from .criteria import ExitCriterion, SentenceExit, TokenExit
from .errors import Errors
from .evaluation import component_scores, depth_scores, fresh_docs
from .pieces import Pieces
from .recording import Recording

if TYPE_CHECKING:
    from .architectures import MultiExitOutput
    from .pipeline.transformer import EarlyExitTransformer

# More than this is not recorded, in bytes.
MOST_RECORDED = 4 * 2**30
# How far from the wanted speed-up (relative) a run may be that stands for it.
TOLERANCE = 0.01

# Thresholds over depth: layer and number of layers to a factor on the first layer's threshold.
SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": lambda layer, n_layers: 1.0,
    "doubled": lambda layer, n_layers: 2.0 if layer > n_layers / 2 else 1.0,
    "linear": lambda layer, n_layers: float(layer),
    "geometric": lambda layer, n_layers: 16.0 ** ((layer - 1) / max(n_layers - 1, 1)),
}


@dataclass
class Measurement:
    """What one run over the examples gave.

    score (float): Mean of the components' main scores, in [0, 1].
    speedup (float): MACs at full depth / MACs spent, over the corpus.
    mean_depth (float): Mean exit layer of the words.
    scores (Dict[str, float]): The components' scores, such as {"ents_f": 0.9}.
    """

    criterion: ExitCriterion | None
    score: float
    speedup: float
    mean_depth: float
    scores: dict[str, float] = field(default_factory=dict)

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

    def __init__(self, transformer: "EarlyExitTransformer", examples: Sequence[Example]):
        """transformer (EarlyExitTransformer): In its pipeline.
        examples (Sequence[Example]): Their predicted Docs give tokens, see fresh_docs.
        """
        self.transformer = transformer
        self.references = [eg.reference for eg in examples]
        self.docs = fresh_docs(transformer, examples)
        self.pieces: Pieces | None = None
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
            self.pieces = model.layers[0].predict(self.docs)
        module = module_of(model)
        slices, _ = module.offramps.select(transformer.active_tasks)
        n_words = len(self.pieces.word_row)
        n_classes = sum(part.stop - part.start for part in slices.values())
        if not n_words or not slices:
            raise ValueError(Errors.E038.format(n_words=n_words, name=transformer.name))
        size = 4 * transformer.n_layers * n_words * n_classes
        if size > MOST_RECORDED:
            gigabytes = size / 2**30
            raise ValueError(Errors.E039.format(n_words=n_words, gigabytes=gigabytes))
        docs, output = self._run(None, every_layer=True)
        assert output.every_layer is not None
        examples = [Example(*pair) for pair in zip(self.docs, self.references, strict=True)]
        gold = transformer.gold(examples, output.pieces)
        recording = Recording(
            module,
            output.pieces,
            output.slices,
            output.every_layer,
            {task: gold[task].cpu().numpy() for task in output.slices},
            float(output.macs_full.sum()),
        )
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
        measured = Measurement(
            criterion,
            score=score,
            speedup=float(output.macs_full.sum() / output.macs.sum()),
            mean_depth=float(output.exit_layer[output.pieces.owned].mean()),
            scores=scores,
        )
        self.runs.append(measured)
        return measured


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
    """What a recording says of one kind of criterion: speed-up and score for many thresholds."""

    def __init__(self, recording: Recording, criterion: Callable[[float], ExitCriterion]):
        self.thresholds = np.geomspace(1e-5, 1.0, 31)
        replays = [recording.replay(criterion(threshold)) for threshold in self.thresholds]
        # It never falls with the threshold; equal values would leave nothing to interpolate.
        speedups = np.maximum.accumulate([replay.speedup for replay in replays])
        self.speedups = speedups + 1e-9 * np.arange(len(speedups))
        self.scores = np.asarray([replay.score for replay in replays])

    def threshold_for(self, speedup: float) -> float:
        return float(np.exp(np.interp(speedup, self.speedups, np.log(self.thresholds))))

    def speedup_at(self, threshold: float) -> float:
        return float(np.interp(np.log(threshold), np.log(self.thresholds), self.speedups))

    def score_for(self, speedup: float) -> float:
        """RETURNS (float): -inf for a speed-up out of reach."""
        if speedup > self.speedups[-1]:
            return -math.inf
        return float(np.interp(speedup, self.speedups, self.scores))

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
    RAISES (ValueError): If even a threshold of 1 is slower than wanted.
    """
    low, high = 1e-6, 1.0
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
            threshold = _aim(sweep, curve, speedup)
            if low < threshold < high:
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
        raise ValueError(Errors.E021.format(target=speedup, best=best))
    return min(sweep.seen.values(), key=lambda m: abs(m.speedup - speedup))


@dataclass(frozen=True)
class Candidate:
    """A kind of criterion whose threshold is searched.

    schedule (str): One of SCHEDULES.
    window (Optional[int]): Of token exit; None for sentence exit.
    """

    schedule: str
    window: int | None
    n_layers: int

    def __call__(self, threshold: float) -> ExitCriterion:
        """threshold (float): Of the first layer."""
        factor = SCHEDULES[self.schedule]
        layers = range(1, self.n_layers + 1)
        # As they are stored: a point is what was measured.
        each = [float(f"{min(threshold * factor(i, self.n_layers), 1.0):.6g}") for i in layers]
        thresholds = each[0] if self.schedule == "constant" else each
        if self.window is None:
            return SentenceExit(thresholds)
        return TokenExit(thresholds, self.window)


@dataclass
class Calibration:
    """What calibrate found.

    full (Measurement): Full depth.
    points (Dict[str, Measurement]): The operating points, by name.
    missed (Dict[str, str]): Why there is no point of this name.
    runs (List[Measurement]): All runs, full depth too.
    curve (List[Tuple[float, float]]): Speed-up and score that the recording promises at best, by
        the off-ramps' own labels.
    """

    full: Measurement
    points: dict[str, Measurement]
    missed: dict[str, str]
    runs: list[Measurement]
    curve: list[tuple[float, float]]


def calibrate(
    transformer: "EarlyExitTransformer",
    examples: Sequence[Example],
    *,
    speedups: Sequence[float] = (2.0, 3.0, 4.0),
    max_losses: Sequence[float] = (0.0,),
    windows: Sequence[int] = (0, 1, 2, 3, 4, 5),
    schedules: Sequence[str] = tuple(SCHEDULES),
    sentence: bool = False,
    prefix: str = "",
    temperatures: bool = True,
    finalists: int = 3,
) -> Calibration:
    """Fit temperatures, and find the best setting for each speed-up, and the fastest for each loss.

    One pass records the scores of all layers. On it every candidate (a window and a schedule) is
    replayed at many thresholds. For each target, the most promising are run for real, at
    thresholds around it; the real dev score decides.

    transformer (EarlyExitTransformer): In its pipeline. It gets the temperatures, not the points.
    examples (Sequence[Example]): Dev data.
    speedups (Sequence[float]): MAC speed-ups.
    max_losses (Sequence[float]): How far the dev score may be below that of full depth.
    windows (Sequence[int]): Windows of token exit.
    schedules (Sequence[str]): Out of SCHEDULES.
    sentence (bool): Sentence exit, not token exit.
    prefix (str): Put before the points' names.
    temperatures (bool): Fit them; else they stay as they are.
    finalists (int): Candidates that are run for each target.
    RETURNS (Calibration): Points and runs.
    RAISES (ValueError): If a setting is impossible, or there is nothing to score by.
    """
    check_calibration(speedups, max_losses, windows, schedules, finalists)
    probe = Probe(transformer, examples)
    with tqdm(total=1, desc="full depth", unit="target", disable=None, leave=False) as bar:
        recording, full = probe.record()
        if not full.scores:
            raise ValueError(Errors.E040.format(name=transformer.name))
        if temperatures:
            recording.fit_temperatures()
        candidates = [
            Candidate(schedule, window, transformer.n_layers)
            for schedule in schedules
            for window in ([None] if sentence else sorted(set(windows)))
        ]
        bar.reset(total=1 + len(candidates) + len(speedups) + len(max_losses))
        bar.update()
        bar.set_description("replays")
        curves: dict[Candidate, Curve] = {}
        for candidate in candidates:
            curves[candidate] = Curve(recording, candidate)
            bar.update()
        sweeps = {candidate: Sweep(probe, candidate) for candidate in candidates}
        points: dict[str, Measurement] = {}
        missed: dict[str, str] = {}
        for speedup in speedups:
            name = point_name(speedup, prefix)
            bar.set_description(name)
            ranked = sorted(curves, key=lambda c: curves[c].score_for(speedup), reverse=True)
            tried = [(sweeps[c], curves[c]) for c in ranked[:finalists]]
            try:
                points[name] = _best_at(tried, speedup)
            except ValueError as error:
                missed[name] = str(error)
            bar.update()
        at_full = recording.replay(None).score
        for loss in max_losses:
            name = loss_name(loss, prefix)
            bar.set_description(name)
            promised = {c: curves[c].fastest(at_full - loss) for c in curves}
            ranked = sorted(promised, key=lambda c: promised[c], reverse=True)
            for candidate in ranked[:finalists]:
                _push(sweeps[candidate], curves[candidate], promised[candidate], full.score - loss)
            enough = [m for m in probe.runs[1:] if m.score >= full.score - loss and m.speedup > 1]
            if enough:
                points[name] = max(enough, key=lambda m: m.speedup)
            else:
                missed[name] = Errors.E041.format(loss=loss, score=full.score)
            bar.update()
    reached = np.geomspace(1.0, max(curve.speedups[-1] for curve in curves.values()), 50)
    best = [max(curve.score_for(s) for curve in curves.values()) for s in reached.tolist()]
    promise = list(zip(reached.tolist(), best, strict=True))
    return Calibration(full, points, missed, probe.runs, promise)


def check_calibration(
    speedups: Sequence[float],
    max_losses: Sequence[float],
    windows: Sequence[int],
    schedules: Sequence[str],
    finalists: int,
) -> None:
    """RAISES (ValueError): If a setting is impossible."""
    known = ", ".join(SCHEDULES)
    checks: list[tuple[str, str, Any, bool]] = [
        ("speedups", "numbers > 1", speedups, all(s > 1 for s in speedups)),
        ("max_loss", "shares in [0, 1)", max_losses, all(0 <= x < 1 for x in max_losses)),
        ("windows", "whole numbers >= 0", windows, bool(windows) and min(windows) >= 0),
        (
            "schedules",
            f"out of {known}",
            schedules,
            bool(schedules) and set(schedules) <= set(SCHEDULES),
        ),
        ("finalists", "1 or more", finalists, finalists >= 1),
    ]
    for setting, expected, value, fine in checks:
        if not fine:
            value = list(value) if isinstance(value, Sequence) else value
            raise ValueError(Errors.E019.format(setting=setting, expected=expected, value=value))


def point_name(speedup: float, prefix: str = "") -> str:
    """RETURNS (str): The name of the point for a speed-up, such as "2x"."""
    return f"{prefix}{speedup:g}x"


def loss_name(loss: float, prefix: str = "") -> str:
    """RETURNS (str): The name of the point for an allowed loss: "lossless", "within-0.01"."""
    return f"{prefix}within-{loss:g}" if loss else f"{prefix}lossless"


def _best_at(tried: Sequence[tuple[Sweep, Curve]], speedup: float) -> Measurement:
    """The run with the best score among those at a speed-up; if none got there, the nearest.

    RAISES (ValueError): If all are slower.
    """
    found: list[Measurement] = []
    for sweep, curve in tried:
        try:
            found.append(find_threshold(sweep, speedup, curve=curve))
        except ValueError as error:
            reason = error
    if not found:
        raise reason
    near = [m for m in found if abs(m.speedup / speedup - 1) <= TOLERANCE]
    if near:
        return max(near, key=lambda m: m.score)
    return min(found, key=lambda m: abs(m.speedup / speedup - 1))


def _push(sweep: Sweep, curve: Curve, promised: float, floor: float, max_runs: int = 4) -> None:
    """Run a candidate ever faster while its score stays at a floor or above, else slower.

    promised (float): The speed-up to begin with.
    """
    for _ in range(max_runs):
        runs = sweep.seen.values()
        low = max([1.0, *(m.speedup for m in runs if m.score >= floor)])
        high = min([math.inf, *(m.speedup for m in runs if m.score < floor and m.speedup > low)])
        if high / low < 1.02:
            break
        if low < promised < high and not any(m.speedup == low for m in runs):
            speedup = promised
        else:
            speedup = math.sqrt(low * high) if high < math.inf else 1.25 * low
        threshold = _aim(sweep, curve, speedup)
        if threshold in sweep.seen:
            break
        sweep.at(threshold)


def _aim(sweep: Sweep, curve: Curve, speedup: float) -> float:
    """Where a curve reaches a speed-up, corrected by how far the nearest run was from the curve."""
    near = min(sweep.seen, key=lambda t: abs(sweep.seen[t].speedup - speedup), default=None)
    gain = 1.0 if near is None else curve.speedup_at(near) / sweep.seen[near].speedup
    return curve.threshold_for(speedup * gain)


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
            sweep = Sweep(Probe(transformer, examples), partial(TokenExit, window=self.window))
            found: dict[str, float] = {}
            for speedup in self.speedups:
                name = f"{speedup:g}x"
                try:
                    measured = find_threshold(sweep, speedup)
                except ValueError:  # out of reach, which must not stop the training
                    found[name] = 0.0
                    transformer.points.pop(name, None)
                else:
                    found[name] = measured.score
                    transformer.points[name] = measured.to_point()
            scores.update({f"exit_score_{name}": score for name, score in found.items()})
            scores["exit_score"] = float(np.mean(list(found.values())))
        return scores
