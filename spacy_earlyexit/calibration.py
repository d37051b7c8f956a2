"""Operating points: exit settings for a wanted speed-up or an allowed loss, chosen on dev data; and
the score that stage 2 chooses its checkpoint by.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from spacy.tokens import Doc
from spacy.training import Example
from tqdm import tqdm

from .architectures import module_of
from .criteria import SCHEDULES, ExitCriterion, SentenceExit, TokenExit
from .errors import Errors
from .evaluation import component_scores, count_hits, depth_scores, fresh_docs, standard_error
from .pieces import Pieces
from .recording import Recording, expected_error, gold_chances

if TYPE_CHECKING:
    from .architectures import MultiExitOutput
    from .pipeline.transformer import EarlyExitTransformer

# More than this is not recorded, in bytes.
MOST_RECORDED = 4 * 2**30
# Standard errors that a score has to be below the best one to be surely worse. One would leave the
# choice to luck: the best of many runs has had some.
SURELY = 2.0
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
    expected (Dict[str, ndarray]): The hits per task if answers were drawn from the off-ramps'
        probabilities, see recording.Chances; shape (n_docs, 3) each.
    """

    criterion: ExitCriterion | None
    score: float
    speedup: float
    mean_depth: float
    scores: dict[str, float] = field(default_factory=dict)
    hits: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)
    expected: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @property
    def expected_error(self) -> float:
        """RETURNS (float): See recording.expected_error; nan if it is not known."""
        return expected_error(self.expected.values())

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
        hits (bool): Count them, and what is expected of them, in every run.
        """
        self.transformer = transformer
        self.hits = hits
        self.references = [eg.reference for eg in examples]
        self.docs = fresh_docs(transformer, examples)
        self.pieces: Pieces | None = None
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
        recording = Recording(
            module,
            output.pieces,
            output.slices,
            output.every_layer,
            self._gold(output),
            float(output.macs_full.sum()),
            model.attrs["rules"],
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
            hits=count_hits(scored) if self.hits else {},
            expected=self._expected(output) if self.hits else {},
        )
        self.runs.append(measured)
        return measured

    def _gold(self, output: "MultiExitOutput") -> dict[str, np.ndarray]:
        if not self.gold:
            examples = [Example(*pair) for pair in zip(self.docs, self.references, strict=True)]
            gold = self.transformer.gold(examples, output.pieces)
            self.gold = {task: gold[task].cpu().numpy() for task in output.slices}
        return self.gold

    def _expected(self, output: "MultiExitOutput") -> dict[str, np.ndarray]:
        layers = output.exit_layer - 1
        classes = module_of(self.transformer.model).offramps.classes
        counts = {}
        for task, ids in self._gold(output).items():
            scores = torch.from_numpy(output.scores[:, output.slices[task]])
            temperatures = torch.tensor(self.transformer.temperatures[task])[layers, None]
            chances = gold_chances(scores, temperatures, ids, classes[task])
            counts[task] = chances.counts(output.pieces.word_doc, len(self.docs))
        return counts


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
    thresholds.
    """

    def __init__(self, recording: Recording, criterion: Callable[[float], ExitCriterion]):
        self.thresholds = np.geomspace(1e-5, 1.0, 31)
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

    def promise(self, speedup: float) -> tuple[float, float]:
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
        raise ValueError(Errors.E021.format(target=speedup, best=best))
    return min(sweep.seen.values(), key=lambda m: abs(m.speedup - speedup))


@dataclass(frozen=True)
class Candidate:
    """A kind of criterion whose threshold is searched.

    schedule (str): One of SCHEDULES.
    window (Optional[int]): Of token exit; None for sentence exit.
    last_layer (Optional[int]): Where all words leave that have not; None: the last of n_layers.
    """

    schedule: str
    window: int | None
    n_layers: int
    last_layer: int | None = None

    def __call__(self, threshold: float) -> ExitCriterion:
        """threshold (float): Of the first layer."""
        factor = SCHEDULES[self.schedule]
        layers = range(1, self.n_layers + 1)
        # As they are stored: a point is what was measured.
        each = [float(f"{min(threshold * factor(i, self.n_layers), 1.0):.6g}") for i in layers]
        thresholds = each[0] if self.schedule == "constant" else each
        if self.window is None:
            return SentenceExit(thresholds, self.last_layer)
        return TokenExit(thresholds, self.window, self.last_layer)


@dataclass(frozen=True)
class Search:
    """What operating points are looked for, and among what.

    speedups (Sequence[float]): MAC speed-ups.
    max_losses (Sequence[float]): How far each dev score may be below that of full depth.
    windows (Sequence[int]): Windows of token exit.
    schedules (Sequence[str]): Out of SCHEDULES.
    depths (Sequence[float]): Where all words leave at the latest, as shares of the layers.
    sentence (bool): Sentence exit, not token exit.
    prefix (str): Put before the points' names.
    temperatures (bool): Fit them; else they stay as they are.
    finalists (int): Candidates that are run for each target, of different windows and depths
        first. If there are two or more, the largest window is among them.
    """

    speedups: Sequence[float] = (2.0, 3.0, 4.0)
    max_losses: Sequence[float] = (0.0,)
    windows: Sequence[int] = (1, 2, 3, 4, 5)
    schedules: Sequence[str] = tuple(SCHEDULES)
    depths: Sequence[float] = (1.0, 0.8, 0.7, 0.6, 0.5, 0.4)
    sentence: bool = False
    prefix: str = ""
    temperatures: bool = True
    finalists: int = 5

    def __post_init__(self) -> None:
        """RAISES (ValueError): If a setting is impossible."""
        known = bool(self.schedules) and set(self.schedules) <= set(SCHEDULES)
        deep = bool(self.depths) and all(0 < depth <= 1 for depth in self.depths)
        checks: list[tuple[str, str, bool]] = [
            ("speedups", "numbers > 1", all(s > 1 for s in self.speedups)),
            ("max_losses", "shares in [0, 1)", all(0 <= x < 1 for x in self.max_losses)),
            ("windows", "whole numbers >= 0", bool(self.windows) and min(self.windows) >= 0),
            ("schedules", f"some of {', '.join(SCHEDULES)}", known),
            ("depths", "shares in (0, 1]", deep),
            ("finalists", "1 or more", self.finalists >= 1),
        ]
        for setting, expected, fine in checks:
            if not fine:
                value = getattr(self, setting)
                raise ValueError(
                    Errors.E019.format(setting=setting, expected=expected, value=value)
                )

    def speed_point(self, speedup: float) -> str:
        """RETURNS (str): The name of the point for a speed-up, such as "2x"."""
        return f"{self.prefix}{speedup:g}x"

    def loss_point(self, loss: float) -> str:
        """RETURNS (str): That for an allowed loss: "lossless", "within-0.01"."""
        return f"{self.prefix}within-{loss:g}" if loss else f"{self.prefix}lossless"

    @property
    def points(self) -> list[str]:
        """RETURNS (List[str]): The names of all points that are looked for."""
        speeds = [self.speed_point(speedup) for speedup in self.speedups]
        return speeds + [self.loss_point(loss) for loss in self.max_losses]

    def candidates(self, n_layers: int) -> list[Candidate]:
        """RETURNS (List[Candidate]): All that is tried."""
        windows = [None] if self.sentence else sorted(set(self.windows))
        layers = sorted({max(round(depth * n_layers), 1) for depth in self.depths})
        lasts = [layer if layer < n_layers else None for layer in layers]
        kinds = itertools.product(dict.fromkeys(self.schedules), windows, lasts)
        return [Candidate(schedule, w, n_layers, last) for schedule, w, last in kinds]


@dataclass
class Calibration:
    """What calibrate found.

    full (Measurement): Full depth.
    points (Dict[str, Measurement]): The operating points, by name.
    missed (Dict[str, str]): Why there is no point of this name.
    runs (List[Measurement]): All runs, full depth too.
    """

    full: Measurement
    points: dict[str, Measurement]
    missed: dict[str, str]
    runs: list[Measurement]


def calibrate(
    transformer: "EarlyExitTransformer", examples: Sequence[Example], search: Search
) -> Calibration:
    """Fit temperatures, and find the best setting for each speed-up, and the fastest for each loss.

    One pass records the scores of all layers. On it every candidate (a window, a schedule and a
    last layer) is replayed at many thresholds. For each target, the most promising are run for
    real, at thresholds around it; their scores and expected errors decide.

    transformer (EarlyExitTransformer): In its pipeline. It gets the temperatures, not the points.
    examples (Sequence[Example]): Dev data.
    search (Search): What is looked for.
    RETURNS (Calibration): Points and runs.
    RAISES (ValueError): If there is nothing to score by.
    """
    probe = Probe(transformer, examples, hits=True)
    with tqdm(total=1, desc="full depth", unit="target", disable=None, leave=False) as bar:
        recording, full = probe.record()
        if not full.scores:
            raise ValueError(Errors.E040.format(name=transformer.name))
        if search.temperatures:
            recording.fit_temperatures()
        candidates = search.candidates(transformer.n_layers)
        bar.reset(total=1 + len(candidates) + len(search.points))
        bar.update()
        bar.set_description("replays")
        curves: dict[Candidate, Curve] = {}
        for candidate in candidates:
            curves[candidate] = Curve(recording, candidate)
            bar.update()
        sweeps = {candidate: Sweep(probe, candidate) for candidate in candidates}
        missed: dict[str, str] = {}
        for speedup in search.speedups:
            name = search.speed_point(speedup)
            bar.set_description(name)
            promises = {c: curve.promise(speedup) for c, curve in curves.items()}
            ranked = sorted(promises, key=lambda c: promises[c], reverse=True)
            within = [c for c in ranked if promises[c][0] >= 1 - TOLERANCE]
            for candidate in _of_each_kind(within or ranked)[: search.finalists]:
                try:
                    find_threshold(sweeps[candidate], speedup, curve=curves[candidate])
                except ValueError as error:
                    missed[name] = str(error)
            bar.update()
        at_full = recording.replay(None).score
        for loss in search.max_losses:
            name = search.loss_point(loss)
            bar.set_description(name)
            promised = {c: curves[c].fastest(at_full - loss) for c in curves}
            ranked = sorted(promised, key=lambda c: promised[c], reverse=True)
            for candidate in _of_each_kind(ranked)[: search.finalists]:
                fine = partial(_loses_at_most, loss, full)
                _push(sweeps[candidate], curves[candidate], promised[candidate], fine)
            bar.update()
    # Every run counts, whatever it was made for.
    fast = [run for run in probe.runs if run.speedup > 1]
    points: dict[str, Measurement] = {}
    for speedup in search.speedups:
        at = [run for run in fast if abs(run.speedup / speedup - 1) <= TOLERANCE]
        over = [run for run in fast if run.speedup > speedup]
        if at or over:  # words leave in steps: what is a little faster may be as near as it gets
            points[search.speed_point(speedup)] = (
                _choose(at, full) if at else min(over, key=_speedup)
            )
    for loss in search.max_losses:
        enough = [run for run in fast if _loses_at_most(loss, full, run)]
        if enough:
            points[search.loss_point(loss)] = max(enough, key=_speedup)
        else:
            missed[search.loss_point(loss)] = Errors.E041.format(loss=loss, score=full.score)
    missed = {name: reason for name, reason in missed.items() if name not in points}
    return Calibration(full, points, missed, probe.runs)


def _of_each_kind(ranked: Sequence[Candidate]) -> list[Candidate]:
    """The best candidate first, then that of the largest window, those of each last layer and of
    each window, then the others. Replays rank schedules well, but small windows and deep layers too
    high: what halted neighbours do to a word is not in a recording.
    """
    windows: dict[int | None, Candidate] = {}
    lasts: dict[int | None, Candidate] = {}
    for candidate in ranked:
        windows.setdefault(candidate.window, candidate)
        lasts.setdefault(candidate.last_layer, candidate)
    largest = max(windows.values(), key=lambda candidate: candidate.window or 0)
    first = [ranked[0], largest, *lasts.values(), *windows.values()]
    return list(dict.fromkeys([*first, *ranked]))


def _choose(runs: Sequence[Measurement], full: Measurement) -> Measurement:
    """Of the runs that are not surely worse than the best one in any score, that with the least
    expected error, which is less noisy than scores; where that is not known, the one with the
    largest window. Surely: by two standard errors of the difference, since all runs are over the
    same documents.

    The best one: scores count by how surely dev knows them, each in units of its standard error.
    Their mean would be ruled by the noisiest. Where an error is not known (see standard_error), it
    is the mean, and nothing may be lost of that score.

    runs (Sequence[Measurement]): Runs of about the same speed-up, with their hits.
    full (Measurement): Full depth.
    RETURNS (Measurement): One of them.
    """
    errors = {
        key: float(np.median([standard_error(full.hits, run.hits, key) for run in runs]))
        for key in full.scores
    }

    def worth(run: Measurement) -> float:
        if not all(errors.values()):
            return run.score
        return sum(run.scores[key] / error for key, error in errors.items())

    best = max(runs, key=worth)
    alike = [
        run
        for run in runs
        if all(
            score - run.scores[key] <= SURELY * standard_error(best.hits, run.hits, key)
            for key, score in best.scores.items()
        )
    ]
    if any(math.isnan(run.expected_error) for run in alike):
        return max(alike, key=lambda run: (_window(run), worth(run)))
    return min(alike, key=lambda run: run.expected_error)


def _window(run: Measurement) -> float:
    """Of token exit; a whole sentence is the largest window there is."""
    return run.criterion.window if isinstance(run.criterion, TokenExit) else math.inf


def _speedup(run: Measurement) -> float:
    return run.speedup


def _loses_at_most(loss: float, full: Measurement, run: Measurement) -> bool:
    """Whether no score of a run is further below full depth. Their mean would not do: what a noisy
    score seems to gain would make up for what a steady one loses.
    """
    return all(run.scores[key] >= value - loss for key, value in full.scores.items())


def _push(
    sweep: Sweep,
    curve: Curve,
    promised: float,
    fine: Callable[[Measurement], bool],
    max_runs: int = 4,
) -> None:
    """Run a candidate ever faster while its runs are good enough, else slower.

    promised (float): The speed-up to begin with.
    fine (Callable): Whether a run is good enough.
    """
    for _ in range(max_runs):
        runs = sweep.seen.values()
        low = max([1.0, *(m.speedup for m in runs if fine(m))])
        high = min([math.inf, *(m.speedup for m in runs if not fine(m) and m.speedup > low)])
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
