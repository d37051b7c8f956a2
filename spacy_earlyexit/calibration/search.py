"""Operating points: exit settings for a wanted speed-up or an allowed loss, chosen on dev data."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NoReturn

import numpy as np
from spacy.language import Language
from spacy.training import Example
from tqdm import tqdm

from ..errors import Errors
from ..evaluation.gold import check_gold, check_regime
from ..evaluation.statistics import standard_error
from ..model.criteria import SCHEDULES, ExitCriterion, SentenceExit, TokenExit
from ..pipeline.exit_setting import FULL_DEPTH
from ..pipeline.finding import find_transformer
from ..pipeline.transformer import EarlyExitTransformer
from .measuring import (
    TOLERANCE,
    Curve,
    Measurement,
    Probe,
    Sweep,
    Unreachable,
    find_threshold,
    next_threshold,
)
from .recording import Recording

# Standard errors that a score has to be below the best one to be surely worse. One would leave the
# choice to luck: the best of many runs has had some.
SURELY = 2.0


@dataclass(frozen=True)
class Candidate:
    """A kind of criterion whose threshold is searched.

    schedule (str): One of SCHEDULES.
    window (Optional[int]): Of token exit; None for sentence exit.
    last_layer (Optional[int]): Where all words leave that have not; None: the last of n_layers.
    every (int): Until then words leave at each `every`-th layer only; at the others nothing is
        checked.
    """

    schedule: str
    window: int | None
    n_layers: int
    last_layer: int | None = None
    every: int = 1

    def __call__(self, threshold: float) -> ExitCriterion:
        """threshold (float): Of the first layer."""
        factor = SCHEDULES[self.schedule]
        layers = range(1, self.n_layers + 1)
        each = [min(threshold * factor(i, self.n_layers), 1.0) for i in layers]
        each = [0.0 if i % self.every else limit for i, limit in zip(layers, each, strict=True)]
        thresholds = each[0] if len(set(each)) == 1 else each
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
    every (Sequence[int]): 1: words can leave at each layer, 2: at every second one …
    sentence (bool): Sentence exit, not token exit.
    prefix (str): Put before the points' names.
    temperatures (Sequence[bool]): Whether scores are divided by what makes their probabilities true
        before the uncertainty is taken. Of both, what has less expected error is taken; of none
        (), it stays as it is.
    task_temperatures (Mapping[str, float]): Factors on the temperatures of some tasks. With one
        below 1 a task is taken for certain sooner, and more of a speed-up's cost is its own. None
        where temperatures stay as they are.
    finalists (int): Candidates that are run for each target, of different kinds first. If there are
        two or more, the largest window is among them.
    """

    speedups: Sequence[float] = (2.0, 3.0, 4.0)
    max_losses: Sequence[float] = (0.0,)
    windows: Sequence[int] = (1, 2, 3, 4, 5)
    schedules: Sequence[str] = tuple(SCHEDULES)
    depths: Sequence[float] = (1.0, 0.8, 0.7, 0.6, 0.5, 0.4)
    every: Sequence[int] = (1,)
    sentence: bool = False
    prefix: str = ""
    temperatures: Sequence[bool] = (False, True)
    task_temperatures: Mapping[str, float] = field(default_factory=dict)
    finalists: int = 5

    def __post_init__(self) -> None:
        """RAISES (ValueError): If a setting is impossible."""
        known = bool(self.schedules) and set(self.schedules) <= set(SCHEDULES)
        deep = bool(self.depths) and all(0 < depth <= 1 for depth in self.depths)
        checks: list[tuple[str, str, bool]] = [
            ("speedups", "numbers > 1", all(1 < s < math.inf for s in self.speedups)),
            ("max_loss", "shares in [0, 1)", all(0 <= x < 1 for x in self.max_losses)),
            ("windows", "whole numbers >= 0", bool(self.windows) and min(self.windows) >= 0),
            ("schedules", f"some of {', '.join(SCHEDULES)}", known),
            ("depths", "shares in (0, 1]", deep),
            ("every", "whole numbers >= 1", bool(self.every) and min(self.every) >= 1),
            (
                "task_temperatures",
                "numbers > 0",
                all(own > 0 for own in self.task_temperatures.values()),
            ),
            (
                "task_temperatures",
                "empty where temperatures stay as they are (--add)",
                bool(self.temperatures) or not self.task_temperatures,
            ),
            ("finalists", "1 or more", self.finalists >= 1),
        ]
        for setting, expected, fine in checks:
            if not fine:
                value = getattr(self, "max_losses" if setting == "max_loss" else setting)
                raise ValueError(
                    Errors.E018.format(setting=setting, expected=expected, value=value)
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
        kinds = itertools.product(
            dict.fromkeys(self.schedules), windows, lasts, sorted(set(self.every))
        )
        return [Candidate(schedule, w, n_layers, last, n) for schedule, w, last, n in kinds]


@dataclass
class Calibration:
    """What calibrate found.

    full (Measurement): Full depth.
    points (Dict[str, Measurement]): The operating points, by name.
    missed (Dict[str, str]): Why there is no point of this name.
    overshot (List[str]): Points that are faster than their names say, since no run was nearer.
    runs (List[Measurement]): All runs, full depth too.
    """

    full: Measurement
    points: dict[str, Measurement]
    missed: dict[str, str]
    overshot: list[str]
    runs: list[Measurement]


def calibrate(
    nlp: Language,
    examples: Sequence[Example],
    search: Search | None = None,
    *,
    progress: bool = False,
) -> Calibration:
    """Find operating points of a pipeline and give them to it, in place of those that it has.

    nlp (Language): The pipeline, with a trained earlyexit_transformer.
    examples (Sequence[Example]): Dev data. Their predicted Docs give the tokens.
    search (Optional[Search]): What is looked for; None: 2x, 3x, 4x and lossless.
    progress (bool): Draw a progress bar.
    RETURNS (Calibration): Points and runs.
    RAISES (ValueError): See find_points.
    """
    transformer = find_transformer(nlp)
    found = find_points(transformer, examples, search or Search(), progress=progress)
    measured = {FULL_DEPTH: found.full, **found.points}
    transformer.set_points({name: point.to_point() for name, point in measured.items()})
    return found


def find_points(
    transformer: EarlyExitTransformer,
    examples: Sequence[Example],
    search: Search,
    *,
    source: str = "the dev data",
    progress: bool = False,
) -> Calibration:
    """Find the best setting for each speed-up, and the fastest for each loss.

    One pass records the scores of all layers. On it every candidate (a window, a schedule, a last
    layer and which layers are checked) is replayed at many thresholds. For each target, the most
    promising are run for real, at thresholds around it; their scores and expected errors decide.

    All that for scores as they are and for scores divided by temperatures, if both are wanted.

    transformer (EarlyExitTransformer): In its pipeline. It gets the temperatures, not the points.
    examples (Sequence[Example]): Dev data.
    search (Search): What is looked for.
    source (str): Where the data come from, for messages.
    progress (bool): Draw a progress bar.
    RETURNS (Calibration): Points and runs.
    RAISES (ValueError): If there is nothing to score by, only labels that the pipeline does not
        know, or a task is named that is not there.
    """
    if unknown := sorted(set(search.task_temperatures) - set(transformer.active_tasks)):
        expected = f"tasks among {', '.join(transformer.active_tasks)}"
        value = ", ".join(unknown)
        raise ValueError(
            Errors.E018.format(setting="task_temperatures", expected=expected, value=value)
        )
    check_gold(transformer, examples, source)
    check_regime(transformer, examples, source)
    probe = Probe(transformer, examples, hits=True)
    shown = None if progress else True  # None: not in a log file
    with tqdm(total=1, desc="full depth", unit="target", disable=shown, leave=False) as bar:
        recording, full = probe.record()
        if not full.scores:
            raise ValueError(Errors.E037.format(name=transformer.name))
        kinds = list(dict.fromkeys(search.temperatures))
        n_targets = len(search.candidates(transformer.n_layers)) + len(search.points)
        bar.reset(total=1 + max(len(kinds), 1) * n_targets)
        bar.update()
        if not kinds:
            found = _find(probe, recording, full, search, bar)
        else:
            of_each = {}
            for kind in kinds:
                recording.set_temperatures(kind, search.task_temperatures)
                of_each[kind] = _find(probe, recording, full, search, bar)
            best = _least_error(of_each, search)
            recording.set_temperatures(best, search.task_temperatures)
            found = of_each[best]
    return found


def _least_error(of_each: Mapping[bool, Calibration], search: Search) -> bool:
    """RETURNS (bool): With which temperatures most of the wanted speed-ups are reached, then with
    which the expected error at those that all reach is least, as a ratio.
    """
    names = [search.speed_point(speedup) for speedup in search.speedups]
    points = {kind: found.points for kind, found in of_each.items()}
    shared = [name for name in names if all(name in own for own in points.values())]
    errors = {kind: [own[name].expected_error for name in shared] for kind, own in points.items()}
    known = not np.isnan(list(errors.values())).any()

    def merit(kind: bool) -> tuple[int, float]:
        least = sum(math.log(max(error, 1e-9)) for error in errors[kind]) if known else 0.0
        return -sum(name in points[kind] for name in names), least

    return min(of_each, key=merit)


def _find(
    probe: Probe, recording: Recording, full: Measurement, search: Search, bar: "tqdm[NoReturn]"
) -> Calibration:
    """What is found at the temperatures of now."""
    probe.runs = [full]
    candidates = search.candidates(recording.n_layers)
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
        predictions = {c: curve.predicted(speedup) for c, curve in curves.items()}
        ranked = sorted(predictions, key=lambda c: predictions[c], reverse=True)
        within = [c for c in ranked if predictions[c][0] >= 1 - TOLERANCE]
        for candidate in _of_each_kind(within or ranked)[: search.finalists]:
            try:
                find_threshold(sweeps[candidate], speedup, curve=curves[candidate])
            except Unreachable as error:
                missed[name] = str(error)
        bar.update()
    at_full = recording.replay(None).score
    for loss in search.max_losses:
        name = search.loss_point(loss)
        bar.set_description(name)
        predicted = {c: curves[c].fastest(at_full - loss) for c in curves}
        ranked = sorted(predicted, key=lambda c: predicted[c], reverse=True)
        for candidate in _of_each_kind(ranked)[: search.finalists]:
            fine = partial(_loses_at_most, loss, full)
            _find_fastest(sweeps[candidate], curves[candidate], predicted[candidate], fine)
        bar.update()
    # Every run counts, whatever it was made for.
    fast = [run for run in probe.runs if run.speedup > 1]
    points: dict[str, Measurement] = {}
    overshot: list[str] = []
    for speedup in search.speedups:
        at = [run for run in fast if abs(run.speedup / speedup - 1) <= TOLERANCE]
        over = [run for run in fast if run.speedup > speedup]
        if at or over:  # words leave in steps: what is a little faster may be as near as it gets
            name = search.speed_point(speedup)
            points[name] = _choose(at, full) if at else min(over, key=_speedup)
            if not at:
                overshot.append(name)
    for loss in search.max_losses:
        enough = [run for run in fast if _loses_at_most(loss, full, run)]
        if enough:
            points[search.loss_point(loss)] = max(enough, key=_speedup)
        else:
            missed[search.loss_point(loss)] = Errors.E038.format(loss=loss, score=full.score)
    missed = {name: reason for name, reason in missed.items() if name not in points}
    return Calibration(full, points, missed, overshot, probe.runs)


def _of_each_kind(ranked: Sequence[Candidate]) -> list[Candidate]:
    """The best candidate first, then that of the largest window, those of each `every`, each last
    layer and each window, then the others. Replays rank schedules well, but small windows and deep
    layers too high: what halted neighbours do to a word is not in a recording.
    """
    windows: dict[int | None, Candidate] = {}
    lasts: dict[int | None, Candidate] = {}
    steps: dict[int, Candidate] = {}
    for candidate in ranked:
        windows.setdefault(candidate.window, candidate)
        lasts.setdefault(candidate.last_layer, candidate)
        steps.setdefault(candidate.every, candidate)
    largest = max(windows.values(), key=lambda candidate: candidate.window or 0)
    first = [ranked[0], largest, *steps.values(), *lasts.values(), *windows.values()]
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

    def merit(run: Measurement) -> float:
        if not all(errors.values()):
            return run.score
        return sum(run.scores[key] / error for key, error in errors.items())

    best = max(runs, key=merit)
    alike = [
        run
        for run in runs
        if all(
            score - run.scores[key] <= SURELY * standard_error(best.hits, run.hits, key)
            for key, score in best.scores.items()
        )
    ]
    if any(math.isnan(run.expected_error) for run in alike):
        return max(alike, key=lambda run: (_window(run), merit(run)))
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


def _find_fastest(
    sweep: Sweep,
    curve: Curve,
    predicted: float,
    fine: Callable[[Measurement], bool],
    max_runs: int = 4,
) -> None:
    """Run a candidate ever faster while its runs are good enough, else slower.

    predicted (float): The speed-up to begin with.
    fine (Callable): Whether a run is good enough.
    """
    for _ in range(max_runs):
        runs = sweep.seen.values()
        low = max([1.0, *(m.speedup for m in runs if fine(m))])
        high = min([math.inf, *(m.speedup for m in runs if not fine(m) and m.speedup > low)])
        if high / low < 1.02:
            break
        if low < predicted < high and not any(m.speedup == low for m in runs):
            speedup = predicted
        else:
            speedup = math.sqrt(low * high) if high < math.inf else 1.25 * low
        threshold = next_threshold(sweep, curve, speedup)
        if threshold in sweep.seen:
            break
        sweep.at(threshold)
