"""Scores of depth and cost, and speed-accuracy tables."""

import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import spacy
import torch
from spacy.language import Language
from spacy.training import Corpus, Example
from tqdm import tqdm

from ..errors import Errors
from ..pipeline.extensions import exit_layers, exit_stats
from ..pipeline.finding import bare_doc, find_transformer, segmenters
from ..pipeline.tasks import get_task, is_bio
from .gold import check_gold, check_regime
from .statistics import count_hits, paired_losses

if TYPE_CHECKING:
    from ..model.criteria import ExitCriterion
    from ..pipeline.transformer import EarlyExitTransformer

# What evaluate returns, and scripts/report.py reads.
FORMAT = "spacy-earlyexit.evaluation.v1"


def depth_scores(examples: Sequence[Example]) -> dict[str, float]:
    """Mean exit layer over all encoded words and MAC speed-up over the corpus (a ratio of sums).

    RETURNS (Dict[str, float]): exit_layer_mean, exit_speedup.
    """
    layers: list[int] = []
    macs = macs_full = 0.0
    for example in examples:
        layers.extend(layer for layer in exit_layers(example.predicted) if layer)
        stats = exit_stats(example.predicted)
        macs += stats["macs"]
        macs_full += stats["macs_full"]
    return {
        "exit_layer_mean": float(np.mean(layers)) if layers else 0.0,
        "exit_speedup": macs_full / macs if macs else 1.0,
    }


def read_examples(
    nlp: Language, path: Path, *, gold_preproc: bool = False, limit: int = 0
) -> list[Example]:
    """Data for a pipeline, as spacy.Corpus.v1 reads them.

    path (Path): The data (.spacy).
    gold_preproc (bool): Gold tokens and sentences.
    limit (int): First documents only, 0 for all.
    RETURNS (List[Example]): The examples.
    RAISES (ValueError): If the pipeline makes words itself and would get gold words, or there is no
        word in the data.
    """
    if gold_preproc and segmenters(nlp):
        raise ValueError(Errors.E049.format(name=segmenters(nlp)[0]))
    examples = list(Corpus(path, gold_preproc=gold_preproc, limit=limit)(nlp))
    if all(token.is_space for eg in examples for token in eg.predicted):
        raise ValueError(Errors.E039.format(path=path))
    return examples


def component_scores(
    components: Sequence[tuple[str, Any]], nlp: Language, examples: Sequence[Example]
) -> tuple[dict[str, float], float]:
    """The scores that count for each component, by the weights of its factory, as in the config
    that `spacy init config` makes.

    components (Sequence[Tuple[str, Any]]): Components of the pipeline by name.
    nlp (Language): The pipeline.
    examples (Sequence[Example]): Examples with predictions.
    RETURNS (Tuple[Dict[str, float], float]): The scores, such as {"ents_f": 0.9}, and the mean of
        the components' weighted means.
    """
    found: dict[str, float] = {}
    means: list[float] = []
    for name, pipe in components:
        weights = {
            k: w for k, w in (nlp.get_pipe_meta(name).default_score_weights or {}).items() if w
        }
        if not weights or not hasattr(pipe, "score"):
            continue
        scores = pipe.score(examples)
        own = {key: scores[key] for key in weights if scores.get(key) is not None}
        total = sum(weights[key] for key in own)
        means.append(sum(weights[key] * own[key] for key in own) / total if total else 0.0)
        found.update(own)
    return found, sum(means) / len(means) if means else 0.0


def measure_points(
    nlp: Language,
    transformer: "EarlyExitTransformer",
    examples: Sequence[Example],
    settings: Mapping[str, "None | str | ExitCriterion"],
    *,
    repeats: int = 5,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Score and time exit settings of one pipeline, interleaved, on the same Docs.

    One round warms up and gives the scores; then every round times each setting once with
    nlp.pipe, from Docs with tokens to annotated Docs. Full depth, which MACs compare with, runs the
    last off-ramp only.

    nlp (Language): The pipeline.
    transformer (EarlyExitTransformer): Its transformer.
    examples (Sequence[Example]): Their predicted Docs give tokens, their references the gold.
    settings (Mapping[str, Union[None, str, ExitCriterion]]): Exit settings by name; the first is
        what wall-clock speed-ups compare with.
    repeats (int): Timed rounds; 0 for scores only.
    progress (bool): Show a progress bar.
    RETURNS (List[Dict[str, Any]]): A row per setting: point (its name), exit (its block), scores,
        exit_layer_mean, exit_speedup (MACs), macs (in all), exit_layer_shares (of the words, per
        layer), tasks (of each: scores, and of each gold label: words, exit_layer_mean), losses
        (against the first setting, see paired_losses); and if timed words_per_second (median),
        spread (its least and greatest), wall_speedup.
    """
    n_words = sum(len(eg.predicted) for eg in examples)
    seconds: dict[str, list[float]] = {name: [] for name in settings}
    rows: dict[str, dict[str, Any]] = {}
    counts: list[dict[str, np.ndarray]] = []
    total, hidden = (repeats + 1) * len(settings), None if progress else True
    with tqdm(total=total, unit="run", disable=hidden, leave=False) as bar:
        for repeat in range(repeats + 1):
            for name, setting in settings.items():
                bar.set_description(name)
                docs = [bare_doc(eg.predicted) for eg in examples]
                with transformer.use(setting):
                    criterion = transformer.criterion
                    start = time.perf_counter()
                    done = list(nlp.pipe(docs))
                    elapsed = time.perf_counter() - start
                if repeat == 0:
                    scored = [
                        Example(doc, eg.reference) for doc, eg in zip(done, examples, strict=True)
                    ]
                    counts.append(count_hits(scored))
                    rows[name] = {
                        "point": name,
                        "exit": criterion.to_config() if criterion else None,
                        **describe_run(nlp, transformer, scored),
                    }
                    own_scores = rows[name]["scores"]
                    rows[name]["losses"] = paired_losses(counts[0], counts[-1], own_scores)
                else:
                    seconds[name].append(elapsed)
                bar.update()
    if repeats:
        for name, figures in speeds(seconds, n_words).items():
            rows[name].update(figures)
    return list(rows.values())


def speeds(seconds: Mapping[str, Sequence[float]], n_words: int) -> dict[str, dict[str, Any]]:
    """What timed rounds come to.

    seconds (Mapping[str, Sequence[float]]): Of each system, per round; the first is what wall-clock
        speed-ups compare with.
    n_words (int): Words of a round.
    RETURNS (Dict[str, Dict[str, Any]]): Of each system words_per_second (median), spread (its least
        and greatest), wall_speedup.
    """
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    base = next(iter(medians.values()))
    return {
        name: {
            "words_per_second": n_words / medians[name],
            "spread": [n_words / max(times), n_words / min(times)],
            "wall_speedup": base / medians[name],
        }
        for name, times in seconds.items()
    }


def describe_run(
    nlp: Language, transformer: "EarlyExitTransformer", examples: Sequence[Example]
) -> dict[str, Any]:
    """Scores and depths of one run; see measure_points.

    examples (Sequence[Example]): Examples with predictions.
    """
    scores: dict[str, float] = {}
    tasks: dict[str, dict[str, Any]] = {
        task: {"scores": {}, "labels": depth_by_label(task, transformer, examples)}
        for task in transformer.active_tasks
    }
    for name, pipe in transformer.components_behind():
        own, _ = component_scores([(name, pipe)], nlp, examples)
        scores.update(own)
        read = [task for task in transformer.tasks_of(pipe) if task in tasks]
        for task in read:
            tasks[task]["scores"].update(
                {k: v for k, v in own.items() if len(read) == 1 or k.startswith(f"{task}_")}
            )
    layers = np.asarray([layer for eg in examples for layer in exit_layers(eg.predicted)], int)
    counts = np.bincount(layers, minlength=transformer.n_layers + 1)[1:]
    return {
        "scores": scores,
        **depth_scores(examples),
        "macs": sum(exit_stats(eg.predicted)["macs"] for eg in examples),
        "exit_layer_shares": (counts / max(counts.sum(), 1)).tolist(),
        "tasks": tasks,
    }


def depth_by_label(
    task: str, transformer: "EarlyExitTransformer", examples: Sequence[Example]
) -> dict[str, dict[str, float]]:
    """How deep the words of each gold label go.

    task (str): The task that the labels are of. B-x and I-x are one label.
    RETURNS (Dict[str, Dict[str, float]]): By label, the most frequent first: words,
        exit_layer_mean.
    """
    reader = get_task(task, transformer.name)
    classes = reader.classes(transformer.label_data[task])
    names = {c: c[2:] if c != "O" and is_bio(classes) else c for c in classes}
    layers: dict[str, list[int]] = {}
    for eg in examples:
        for label, layer in zip(reader.gold(eg), exit_layers(eg.predicted), strict=True):
            if label is not None and layer:
                layers.setdefault(names.get(label, label), []).append(layer)
    return {
        label: {"words": len(own), "exit_layer_mean": float(np.mean(own))}
        for label, own in sorted(layers.items(), key=lambda item: -len(item[1]))
    }


def evaluate(
    pipeline: Language | str | Path,
    test: Sequence[Example] | str | Path,
    *,
    points: Sequence[str] | None = None,
    gold_preproc: bool = False,
    raw_text: bool = False,
    limit: int = 0,
    repeats: int = 5,
    progress: bool = False,
) -> dict[str, Any]:
    """Score and time a pipeline at full depth and at its operating points. Changes nothing.

    pipeline (Union[Language, str, Path]): The pipeline, or what spacy.load takes.
    test (Union[Sequence[Example], str, Path]): Test data: examples, or a file (.spacy).
    points (Optional[Sequence[str]]): Names of points; None for all. Full depth always comes first.
    gold_preproc (bool): Gold tokens and sentences, as in spacy.Corpus.v1. Of examples: whether
        their predicted Docs have them.
    raw_text (bool): With a file and gold_preproc, one more row: full depth without it, not timed.
    limit (int): First documents only, 0 for all.
    repeats (int): Timed rounds.
    progress (bool): Show a progress bar.
    RETURNS (Dict[str, Any]): A header (format, what was measured where) and rows, those of
        measure_points, with the dev scores that are stored with the points.
    RAISES (ValueError): If the pipeline has no earlyexit_transformer or no such point, or the data
        have no words, no gold for its components, or only labels that it does not know.
    """
    nlp = pipeline if isinstance(pipeline, Language) else spacy.load(pipeline)
    transformer = find_transformer(nlp)
    names = list(dict.fromkeys(["full", *(transformer.points if points is None else points)]))
    for name in names:
        transformer.resolve(name)
    test = Path(test) if isinstance(test, str) else test
    source = test.name if isinstance(test, Path) else "examples"
    examples = _read(nlp, test, gold_preproc=gold_preproc, limit=limit)
    _check_gold(nlp, transformer, examples, source)
    check_regime(transformer, examples, source)
    rows = measure_points(
        nlp, transformer, examples, {n: n for n in names}, repeats=repeats, progress=progress
    )
    for row in rows:
        on_dev = transformer.points.get(row["point"], {})
        row.update({key: on_dev[key] for key in ("dev_score", "dev_speedup") if key in on_dev})
    if raw_text and isinstance(test, Path):
        texts = read_examples(nlp, test, limit=limit)
        rows += measure_points(nlp, transformer, texts, {"full, raw text": None}, repeats=0)
    return {
        "format": FORMAT,
        "pipeline": pipeline_name(pipeline),
        "test": source,
        "documents": len(examples),
        "words": sum(len(eg.predicted) for eg in examples),
        "tokens": "gold" if gold_preproc else "spaCy's",
        "machine": {"cpu": cpu_name(), "threads": torch.get_num_threads()},
        "versions": {name: version(name) for name in ("spacy", "torch", "spacy-earlyexit")},
        "rows": rows,
    }


def pipeline_name(pipeline: Language | str | Path) -> str:
    """RETURNS (str): What results call a pipeline: its folder or package, without the path, or the
    name in its meta.
    """
    if isinstance(pipeline, Language):
        return f"{pipeline.meta['lang']}_{pipeline.meta['name']}"
    path = Path(pipeline).resolve()
    # What training and calibration call every pipeline says nothing.
    generic = path.name in ("model-best", "model-last", "calibrated")
    return f"{path.parent.name}/{path.name}" if generic else path.name


def _read(
    nlp: Language, test: Sequence[Example] | Path, *, gold_preproc: bool, limit: int
) -> list[Example]:
    if isinstance(test, Path):
        return read_examples(nlp, test, gold_preproc=gold_preproc, limit=limit)
    examples = list(test)[: limit or None]
    if all(token.is_space for eg in examples for token in eg.predicted):
        raise ValueError(Errors.E039.format(path="the examples"))
    return examples


def _check_gold(
    nlp: Language,
    transformer: "EarlyExitTransformer",
    examples: Sequence[Example],
    source: str,
) -> None:
    """See check_gold; other components are asked to score the gold itself."""
    if check_gold(transformer, examples, source):
        return
    components = transformer.components_behind()
    itself = [Example(eg.reference, eg.reference) for eg in examples]
    if not component_scores(components, nlp, itself)[0]:
        tasks = {task for _, pipe in components for task in transformer.tasks_of(pipe)}
        needed = [f"'{task}' ({get_task(task).annotation})" for task in sorted(tasks)]
        what = ", ".join(needed) or "nothing"
        raise ValueError(Errors.E081.format(source=source, name=transformer.name, what=what))


@lru_cache(maxsize=1)  # it takes a second
def cpu_name() -> str:
    """RETURNS (str): What the processor calls itself; without py-cpuinfo, its architecture."""
    try:
        name = import_module("cpuinfo").get_cpu_info().get("brand_raw")
    except Exception:  # py-cpuinfo is not installed, or knows no such processor
        name = None
    return name or platform.processor() or platform.machine()
