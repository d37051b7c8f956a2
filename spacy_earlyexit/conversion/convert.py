"""Conversion of a pipeline that uses spacy-transformers: same encoder and heads, with exits."""

import copy
import io
import math
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import spacy
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from spacy.training.loop import train as spacy_train
from spacy.util import fix_random_seed, registry
from spacy_transformers import Transformer
from spacy_transformers.layers import TransformerModel
from wasabi import Printer

from ..calibration.measuring import Probe, Sweep, Unreachable, find_threshold
from ..errors import Errors
from ..evaluation.scores import component_scores, depth_scores, speeds
from ..files import beside, check_output, put
from ..model.architecture import module_of
from ..model.criteria import TokenExit
from ..pipeline.exit_setting import FULL_DEPTH
from ..pipeline.finding import find_transformer
from ..pipeline.transformer import EarlyExitTransformer
from .accelerate import check_family, loaded_objects, replace_stock
from .own_labels import prepare, read, tokens_of

LABELS = ("fill", "gold", "own")
# Rates, draws and halting rules are those of configs/listeners_*.cfg: heads and off-ramps learn ten
# times as fast as the encoder. In stage 1 only the off-ramps do, from nothing; at a tenth of this
# rate they find no names for epochs.
STAGE1_RATE = 0.03
WINDOW = 2  # of token exit, at the operating points
ENCODER_LR_SCALE = 0.1
HALTING = {"special_share": 0.5, "reach": 2, "mean_pieces": True, "offramp_context": 1}
LOSS = {"@misc": "spacy-earlyexit.JointLoss.v1", "layer_weights": "uniform"}
SELF_SAMPLING = {
    "@misc": "spacy-earlyexit.SelfSampling.v1",
    "windows": [0, 1, 2],
    "thresholds": [0.002, 0.005, 0.01, 0.02, 0.04],
    "speedups": None,
    "schedule": "linear",
    "aggressive": 0.2,
    "full_depth": 0.2,
}


@dataclass
class System:
    """What is compared: a pipeline, and how its words leave (nothing to set for the original)."""

    name: str
    nlp: Language
    transformer: EarlyExitTransformer | None = None
    setting: str | None = None


def convert(
    pipeline: str | Path,
    train_path: Path,
    output: Path,
    *,
    dev_path: Path | None = None,
    labels: str = "fill",
    stage1_steps: int = 200,
    stage2_steps: int = 400,
    batch_words: int = 400,
    learn_rate: float = 1e-3,
    speedups: Sequence[float] = (2.0, 3.0, 4.0),
    point: str = "2x",
    repeats: int = 3,
    seed: int = 0,
    gpu_id: int = -1,
    force: bool = False,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Convert a pipeline that uses spacy-transformers and write it to a folder.

    Stage 1 trains the off-ramps alone: at full depth the pipeline predicts as before. Stage 2
    (self-sampling) trains encoder and listening components too, which have never seen rows of
    shallow layers. All other components stay as they are.

    pipeline (Union[str, Path]): What spacy.load takes.
    train_path (Path): Training data (.spacy). Its tokens are taken as they are.
    output (Path): The folder; written in full or not at all.
    dev_path (Optional[Path]): Dev data (.spacy). None: a tenth of the training data.
    labels (str): "fill", "gold" or "own"; see prepare.
    stage1_steps, stage2_steps (int): Steps of both stages; without stage 2, only the off-ramps are
        new.
    batch_words (int): Words of a training batch.
    learn_rate (float): Of heads and off-ramps in stage 2; the encoder's is a tenth of it.
    speedups (Sequence[float]): MAC speed-ups of the operating points.
    point (str): The operating point in force in the new pipeline, or "full".
    repeats (int): Timed rounds; 0 for scores only.
    seed, gpu_id (int): As in `spacy train`.
    force (bool): Replace the output if it is a pipeline.
    progress (bool): Print what is being done.
    RETURNS (List[Dict[str, Any]]): A row each for the original, the new pipeline at full depth and
        at its points: system, in_force, scores, exit_layer_mean, exit_speedup (MACs), and if timed
        words_per_second (median), spread (its least and greatest), wall_speedup.
    RAISES (ValueError): If the pipeline, the data or a setting does not fit.
    """
    check_settings(labels, speedups, point, learn_rate)
    msg = Printer(no_print=not progress)
    check_output(output, force, pipeline)
    original = spacy.load(pipeline)
    name = find_stock(original)
    with beside(output) as folder:
        prepare(original, name, train_path, dev_path, folder, labels=labels, seed=seed, msg=msg)
        fix_random_seed(seed)
        nlp = spacy.load(pipeline)
        source_config = sections(nlp)
        swap(nlp, name, read(folder / "train.spacy", nlp.vocab), speedups)

        settings: dict[str, Any] = {
            "folder": folder,
            "batch_words": batch_words,
            "seed": seed,
            "gpu_id": gpu_id,
            "progress": progress,
        }
        msg.divider("Stage 1: the off-ramps")
        nlp = train_offramps(nlp, steps=stage1_steps, **settings)
        if stage2_steps:
            msg.divider("Stage 2: self-sampling")
            nlp = train_all(nlp, steps=stage2_steps, learn_rate=learn_rate, **settings)

        transformer = find_transformer(nlp)
        find_points(transformer, read(folder / "dev.spacy", nlp.vocab), speedups)
        if point != FULL_DEPTH and point not in transformer.points:
            msg.warn(
                Errors.E033.format(point=point, points=", ".join([FULL_DEPTH, *transformer.points]))
            )
            point = FULL_DEPTH
        transformer.exit = None if point == FULL_DEPTH else point
        # How this command trained is of no use to anybody: its data are gone.
        for section, value in source_config.items():
            nlp.config[section] = value
        nlp.to_disk(folder / "pipeline")
        put(folder / "pipeline", output, folder / "replaced")
        msg.good(f"Saved the pipeline to {output}")

        systems = [System("original", original), System("full depth", nlp, transformer, FULL_DEPTH)]
        systems += [System(at, nlp, transformer, at) for at in transformer.points]
        rows = compare(systems, folder / "dev.spacy", repeats=repeats)
    for row in rows:
        row["in_force"] = row["system"] == ("full depth" if point == FULL_DEPTH else point)
    return rows


def check_settings(labels: str, speedups: Sequence[float], point: str, learn_rate: float) -> None:
    """RAISES (ValueError): If a setting is impossible."""
    if labels not in LABELS:
        expected = f"one of {', '.join(LABELS)}"
        raise ValueError(Errors.E018.format(setting="labels", expected=expected, value=labels))
    if not speedups or not all(1 < speedup < math.inf for speedup in speedups):
        raise ValueError(
            Errors.E018.format(setting="speedups", expected="numbers > 1", value=list(speedups))
        )
    names = [FULL_DEPTH, *(f"{speedup:g}x" for speedup in speedups)]
    if point not in names:
        expected = f"one of {', '.join(names)}"
        raise ValueError(Errors.E018.format(setting="point", expected=expected, value=point))
    if learn_rate <= 0:
        raise ValueError(Errors.E018.format(setting="learn_rate", expected="> 0", value=learn_rate))


def find_stock(nlp: Language) -> str:
    """The spacy-transformers component of a pipeline that can be converted.

    nlp (Language): The pipeline.
    RETURNS (str): Its name.
    RAISES (ValueError): If there is not exactly one, nothing listens to it, or its encoder is not
        supported.
    """
    components = ", ".join(
        f"{name} ({nlp.get_pipe_meta(name).factory})" for name in nlp.component_names
    )
    if any(isinstance(pipe, EarlyExitTransformer) for _, pipe in nlp.components):
        raise ValueError(Errors.E028.format(components=components))
    stock = {name: pipe for name, pipe in nlp.pipeline if isinstance(pipe, Transformer)}
    if len(stock) != 1:
        raise ValueError(Errors.E029.format(n=len(stock), components=components or "nothing"))
    ((name, transformer),) = stock.items()
    if not transformer.listening_components:
        copies = [
            other
            for other, pipe in nlp.pipeline
            if other != name and any(isinstance(node, TransformerModel) for node in _layers(pipe))
        ]
        raise ValueError(
            Errors.E030.format(
                name=name, components=components, copies=", ".join(copies) or "none of them"
            )
        )
    check_family(name, transformer.model)
    return name


def _layers(pipe: Any) -> Iterable[Any]:
    model: Any = getattr(pipe, "model", None)
    return model.walk() if hasattr(model, "walk") else ()


def sections(nlp: Language) -> dict[str, Any]:
    """What a pipeline's config says of its own training."""
    return {
        key: copy.deepcopy(nlp.config[key])
        for key in ("paths", "corpora", "training")
        if key in nlp.config
    }


def swap(
    nlp: Language, name: str, docs: Sequence[Doc], speedups: Sequence[float]
) -> EarlyExitTransformer:
    """Put an earlyexit_transformer with the same encoder where the stock one is. At full depth it
    gives the same rows, so that the components behind it predict as before. The exceptions are
    what spacy-transformers does otherwise: tokens like "n't", which its tokenizer meets together
    with the word before; tokens in several overlapping spans, of which it pools all rows; spans
    longer than the encoder takes, which it cuts off; and in byte-level BPE the first word of a span
    inside a text, which it takes for the start of one, and a space that is a piece of its own,
    which it counts to no word.

    nlp (Language): The pipeline; changed.
    name (str): Its transformer.
    docs (Sequence[Doc]): Training data, from which the off-ramps get tasks and labels.
    speedups (Sequence[float]): Of the operating points.
    RETURNS (EarlyExitTransformer): The new component, not trained yet.
    """
    stock: Any = nlp.get_pipe(name)
    block = nlp.config.interpolate()["components"][name]
    loaded = loaded_objects(stock.model)
    config = {
        "loss": LOSS,
        "max_batch_items": block["max_batch_items"],
        "set_extra_annotations": block["set_extra_annotations"],
        "model": {
            "@architectures": "spacy-earlyexit.MultiExitTransformer.v1",
            "name": block["model"]["name"],
            "get_spans": block["model"]["get_spans"],
            "tokenizer_config": block["model"]["tokenizer_config"],
            "transformer_config": block["model"].get("transformer_config", {}),
            "encoder_lr_scale": ENCODER_LR_SCALE,
            "offramp_lr_scale": 1.0,
            "align_exits": True,
            **HALTING,
        },
        "scorer": {
            "@scorers": "spacy-earlyexit.exit_scorer.v1",
            "speedups": list(speedups),
            "window": WINDOW,
        },
    }
    examples = [Example(tokens_of(doc), doc) for doc in docs]
    return replace_stock(nlp, name, config, loaded, examples)


def train_offramps(nlp: Language, *, steps: int, folder: Path, **settings: Any) -> Language:
    """Stage 1. RETURNS (Language): The last checkpoint, in which nothing but off-ramps is new."""
    transformer = find_transformer(nlp)
    # Not a rate of 0: no gradient has to go through the encoder, nor counts when it is clipped.
    module_of(transformer.model).encoder.requires_grad_(False)
    return train(
        nlp, [transformer.name], steps=steps, rate=STAGE1_RATE, folder=folder, stage=1, **settings
    )


def train_all(
    nlp: Language, *, steps: int, learn_rate: float, folder: Path, **settings: Any
) -> Language:
    """Stage 2. RETURNS (Language): The best checkpoint."""
    transformer = find_transformer(nlp)
    nlp.get_pipe_config(transformer.name)["self_sampling"] = dict(SELF_SAMPLING)
    transformer.self_sampling = registry.resolve({"sampling": SELF_SAMPLING})["sampling"]
    learning = [transformer.name, *transformer.listening_components]
    return train(nlp, learning, steps=steps, rate=learn_rate, folder=folder, stage=2, **settings)


def find_points(
    transformer: EarlyExitTransformer, docs: Sequence[Doc], speedups: Sequence[float]
) -> None:
    """Give a transformer the operating points that can be reached, each the nearest threshold of
    token exit.

    docs (Sequence[Doc]): Dev data.
    """
    probe = Probe(transformer, [Example(tokens_of(doc), doc) for doc in docs])
    sweep = Sweep(probe, partial(TokenExit, window=WINDOW))
    points = {}
    for speedup in speedups:
        with suppress(Unreachable):
            points[f"{speedup:g}x"] = find_threshold(sweep, speedup).to_point()
    transformer.set_points(points)


def train(
    nlp: Language,
    learning: Sequence[str],
    *,
    steps: int,
    rate: float,
    folder: Path,
    stage: int,
    batch_words: int,
    seed: int,
    gpu_id: int,
    progress: bool = False,
) -> Language:
    """Train with spaCy's loop.

    nlp (Language): The pipeline; changed.
    learning (Sequence[str]): The components that learn, the transformer first.
    folder (Path): With train.spacy and dev.spacy; checkpoints go into it.
    RETURNS (Language): The pipeline of the last checkpoint.
    """
    find_transformer(nlp).forget_points()  # those of the stage before
    front = nlp.pipe_names[: nlp.pipe_names.index(learning[0])]
    scorer = nlp.get_pipe_config(learning[0])["scorer"]
    shown = {f"exit_score_{speedup:g}x": 0.0 for speedup in scorer["speedups"]}
    weights = {  # null: not a number, or not of interest
        key: None if weight is None else 0.0
        for key, weight in nlp.config["training"]["score_weights"].items()
    }
    corpora = {
        part: {"@readers": "spacy-earlyexit.GoldTokens.v1", "path": str(folder / f"{part}.spacy")}
        for part in ("train", "dev")
    }
    nlp.config["corpora"] = corpora
    nlp.config["training"] = {
        "train_corpus": "corpora.train",
        "dev_corpus": "corpora.dev",
        "seed": seed,
        "gpu_allocator": "pytorch" if gpu_id >= 0 else None,
        "dropout": 0.1,
        "accumulate_gradient": 1,
        "patience": 0,
        "max_epochs": 0,
        "max_steps": steps,
        "eval_frequency": -(-steps // 4),
        "frozen_components": [name for name in nlp.pipe_names if name not in learning],
        # The span getter may need what they say, such as sentences.
        "annotating_components": front,
        "before_to_disk": None,
        "before_update": None,
        "batcher": {
            "@batchers": "spacy.batch_by_words.v1",
            "size": batch_words,
            "tolerance": 0.2,
            "discard_oversize": False,
            "get_length": None,
        },
        "optimizer": {
            "@optimizers": "Adam.v1",
            "beta1": 0.9,
            "beta2": 0.999,
            "L2_is_weight_decay": True,
            "L2": 0.01,
            "grad_clip": 1.0,
            "use_averages": False,
            "eps": 1e-8,
            "learn_rate": {
                "@schedules": "warmup_linear.v1",
                "warmup_steps": steps // 10,
                "total_steps": steps,
                "initial_rate": rate,
            },
        },
        "logger": {
            "@loggers": "spacy-earlyexit.ConsoleLogger.v1",
            "progress_bar": "eval" if progress else None,
            "console_output": progress,
            "output_file": None,
        },
        "score_weights": {**weights, **shown, "exit_score": 1.0},
    }
    path = folder / f"stage{stage}"
    path.mkdir()
    out = {} if progress else {"stdout": io.StringIO(), "stderr": io.StringIO()}
    spacy_train(nlp, path, use_gpu=gpu_id, **out)
    # At the end of the rate's decay: dev scores are too noisy to choose a checkpoint by.
    return spacy.load(path / "model-last")


def compare(systems: Sequence[System], dev_path: Path, *, repeats: int) -> list[dict[str, Any]]:
    """Score and time the original and the new pipeline, interleaved, on the same tokens, as
    evaluation.measure_points does for the settings of one pipeline.

    systems (Sequence[System]): The first is the original, what wall-clock speed-ups compare with.
    dev_path (Path): Dev data.
    repeats (int): Timed rounds after one that warms up and gives the scores.
    RETURNS (List[Dict[str, Any]]): See convert.
    """
    transformer = systems[1].transformer
    assert transformer is not None
    behind = [name for name, _ in transformer.components_behind()]
    gold = {id(system.nlp): read(dev_path, system.nlp.vocab) for system in systems}
    n_words = sum(map(len, gold[id(systems[0].nlp)]))
    seconds: dict[str, list[float]] = {system.name: [] for system in systems}
    rows = []
    for repeat in range(repeats + 1):
        for system in systems:
            references = gold[id(system.nlp)]
            docs = [tokens_of(doc) for doc in references]
            own = system.transformer
            with own.use(system.setting) if own is not None else nullcontext():
                start = time.perf_counter()
                docs = list(system.nlp.pipe(docs))
                elapsed = time.perf_counter() - start
            if repeat:
                seconds[system.name].append(elapsed)
                continue
            scored = [Example(*pair) for pair in zip(docs, references, strict=True)]
            components = [(name, system.nlp.get_pipe(name)) for name in behind]
            full = {"exit_layer_mean": float(transformer.n_layers), "exit_speedup": 1.0}
            rows.append(
                {
                    "system": system.name,
                    "scores": component_scores(components, system.nlp, scored)[0],
                    **(full if own is None else depth_scores(scored)),
                }
            )
    if repeats:
        for row, figures in zip(rows, speeds(seconds, n_words).values(), strict=True):
            row.update(figures)
    return rows
