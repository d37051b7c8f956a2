"""Train and score variants of both stages; a result that lies there is not made again."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import spacy
import srsly
import typer
from report import markdown_table, mean_and_spread, percent, replace_block
from spacy.cli._util import setup_gpu
from spacy.cli.train import train
from spacy.training import Corpus
from wasabi import msg
from wasabi import table as text_table

from spacy_earlyexit.calibration.measuring import Curve, Measurement, Probe, Sweep, find_threshold
from spacy_earlyexit.calibration.recording import label_score
from spacy_earlyexit.calibration.search import Search, find_points
from spacy_earlyexit.cli.options import GpuId
from spacy_earlyexit.files import write_json
from spacy_earlyexit.model.architecture import module_of
from spacy_earlyexit.pipeline.finding import find_transformer

ROOT = Path(__file__).parent.parent
PLAN = ROOT / "configs" / "experiments.yml"
# Where the corpus names no others.
CONFIGS = {"stage1": "joint.cfg", "stage2": "self_sampling.cfg"}
SPEEDUPS = (2.0, 3.0, 4.0, 5.0)

app = typer.Typer(add_completion=False)


@app.command("run")
def run_cli(
    encoder: Annotated[str, typer.Option(help="Hub name or folder of a Hugging Face encoder")],
    plan: Annotated[Path, typer.Option(exists=True)] = PLAN,
    only: Annotated[str, typer.Option(help="Names of experiments, with commas; all")] = "",
    output: Annotated[Path, typer.Option(help="Folder for the results")] = Path(
        "metrics/experiments"
    ),
    models: Annotated[Path, typer.Option(help="Folder for the pipelines")] = Path("training"),
    mixed_precision: Annotated[bool, typer.Option(help="Train with bfloat16 products")] = False,
    gpu_id: GpuId = -1,
    limit: Annotated[int, typer.Option(help="First dev documents only, 0 for all")] = 0,
) -> None:
    """Run what the plan names and has no result yet."""
    setup_gpu(gpu_id, silent=True)
    spec = srsly.read_yaml(plan)
    names = only.split(",") if only else list(spec["experiments"])
    unknown = sorted(set(names) - set(spec["experiments"]))
    if unknown:
        msg.fail(f"{plan} has no experiment {', '.join(unknown)}", exits=1)
    for name in names:
        own = spec["experiments"][name]
        for seed in own.get("seeds", [0]):
            path = output / f"{name}-{seed}.json"
            if path.exists():
                msg.info(f"{path} is there")
                continue
            msg.divider(f"{name}, seed {seed}")
            corpus = spec["corpora"][own["corpus"]]
            common = {**corpus["settings"], "paths.encoder": encoder, "system.seed": seed}
            common["corpora.dev.limit"] = limit
            common["components.transformer.model.mixed_precision"] = mixed_precision
            result = run_experiment(own, corpus, common, models / own["corpus"], gpu_id)
            head = {"name": name, "seed": seed, "mixed_precision": mixed_precision}
            settings = {key: value for key, value in own.items() if key != "seeds"}
            write_json(path, {**head, **settings, **result})


def run_experiment(
    own: dict[str, Any],
    corpus: dict[str, Any],
    common: dict[str, Any],
    models: Path,
    gpu_id: int = -1,
) -> dict[str, Any]:
    """Train both stages, or take stage 1 from where it lies, and score on dev.

    own (Dict): The experiment: settings by stage, over those of the configs.
    corpus (Dict): Settings by stage of its corpus, and its configs if they are not CONFIGS.
    common (Dict): Settings of both stages.
    models (Path): Folder for the pipelines. A stage-1 pipeline goes by its settings.
    RETURNS (Dict[str, Any]): Scores of each stage that the experiment names.
    """
    configs = corpus.get("configs", CONFIGS)
    stage1 = {**common, **corpus["stage1"], **own.get("stage1", {})}
    path = models / f"joint-{_key(stage1)}"
    # The last checkpoint, at the end of the rate's decay: dev scores are too noisy to choose by.
    last = path / "model-last"
    if not last.exists():
        _train(configs["stage1"], path, gpu_id, stage1)
    if "stage2" not in own:
        return {"rows": score(last, common)}
    stage2 = {**common, **corpus["stage2"], "paths.stage1": str(last), **own["stage2"]}
    # Scored once, at the end, by `score`.
    stage2 |= {
        "training.eval_frequency": stage2["training.max_steps"],
        "components.transformer.scorer.speedups": [],
        "training.score_weights.exit_score": 0.0,
        "training.score_weights.ents_f": 1.0,
    }
    path = models / f"self-sampling-{_key(stage2)}"
    if not (path / "model-last").exists():
        _train(configs["stage2"], path, gpu_id, stage2)
    return {"rows": score(path / "model-last", common)}


def _train(config: str, path: Path, gpu_id: int, settings: dict[str, Any]) -> None:
    steps = {"training.optimizer.learn_rate.total_steps": settings["training.max_steps"]}
    train(ROOT / "configs" / config, path, use_gpu=gpu_id, overrides={**settings, **steps})


def _key(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def score(pipeline: Path, common: dict[str, Any]) -> list[dict[str, Any]]:
    """Dev scores at full depth and at the best setting of token exit for each speed-up."""
    nlp = spacy.load(pipeline)
    transformer = find_transformer(nlp)
    limit = common["corpora.dev.limit"]
    gold_preproc = nlp.config["corpora"]["dev"]["gold_preproc"]
    dev = list(Corpus(common["paths.dev"], gold_preproc=gold_preproc, limit=limit)(nlp))
    # With temperatures, as when the first of them were scored, so that all rows compare.
    search = Search(speedups=SPEEDUPS, max_losses=(), temperatures=(True,), finalists=2)
    found = find_points(transformer, dev, search)
    for name, reason in found.missed.items():  # the other rows still stand
        msg.warn(f"{name} left out: {reason}")
    return [
        {"setting": name, **run.to_point(), **run.scores}
        for name, run in {"full depth": found.full, **found.points}.items()
    ]


@app.command("layers")
def layers_cli(
    pipelines: Annotated[list[str], typer.Argument(help="Folders of pipelines")],
    dev: Annotated[Path, typer.Option(help="Dev data (.spacy)", exists=True)],
    limit: Annotated[int, typer.Option(help="First documents only, 0 for all")] = 0,
) -> None:
    """Print how well the off-ramp of every layer does for itself, at full depth."""
    rows: list[list[str]] = []
    for pipeline in pipelines:
        nlp = spacy.load(pipeline)
        transformer = find_transformer(nlp)
        examples = list(Corpus(dev, gold_preproc=True, limit=limit)(nlp))
        recording, _ = Probe(transformer, examples).record()
        classes = module_of(transformer.model).offramps.classes
        for task, gold in recording.gold.items():
            labels = recording.labels[task]
            scores = [label_score(gold, own, classes[task], recording.unit) for own in labels]
            rows.append([pipeline, task, *map(percent, scores)])
    header = ["pipeline", "task", *(str(layer) for layer in range(1, len(rows[0]) - 1))]
    print(text_table(rows, header=header, divider=True, max_col=60))


@app.command("rules")
def rules_cli(
    pipelines: Annotated[list[str], typer.Argument(help="Folders of pipelines, such as seeds")],
    dev: Annotated[Path, typer.Option(help="Dev data (.spacy)", exists=True)],
    windows: Annotated[str, typer.Option(help="Of token exit")] = "1",
    schedules: Annotated[str, typer.Option(help="How thresholds grow over the layers")] = "linear",
    depths: Annotated[
        str, typer.Option(help="Deepest layers, as shares of all; as calibrate tries them")
    ] = "",
    every: Annotated[
        str, typer.Option(help="1: words leave at each layer, 2: at each second")
    ] = "1",
    temperatures: Annotated[
        str,
        typer.Option(
            help="What divides scores before the entropy is taken: none, fitted, or a number for "
            "one task only, like seg=0.7"
        ),
    ] = "none",
    limit: Annotated[int, typer.Option(help="First documents only, 0 for all")] = 0,
    page: Annotated[Path | None, typer.Option(help="Replace the table in this file")] = None,
    block: Annotated[str, typer.Option(help="Name of the table in that file")] = "rules",
) -> None:
    """Print what halting rules are worth at each MAC speed-up, the mean over the pipelines: every
    combination of what the options name, with commas.
    """
    kinds = temperatures.split(",")
    try:
        for kind in kinds:
            _temperatures(kind)
    except ValueError:
        msg.fail(f"--temperatures {temperatures}: expected none, fitted, TASK=NUMBER", exits=1)
    search = Search(
        windows=tuple(map(int, windows.split(","))),
        schedules=tuple(schedules.split(",")),
        depths=tuple(map(float, depths.split(","))) if depths else Search.depths,
        every=tuple(map(int, every.split(","))),
    )
    of_each = [_rules(pipeline, dev, search, kinds, limit) for pipeline in pipelines]
    # What one of them does not reach is left out.
    named = {rules: [found.get(rules) for found in of_each] for rules in of_each[0]}
    runs = {rules: [m for m in own if m] for rules, own in named.items() if all(own)}
    points = ["full depth", *(f"{speedup:g}x" for speedup in SPEEDUPS)]
    # Where one of the optional rules has one value only, it is no column.
    columns = ["point", "window", "schedule", "temperatures", "last layer", "every"]
    values = [{rules[i] for rules in runs if rules[1]} for i in range(len(columns))]
    optional = {"window", "schedule", "temperatures"}
    shown = [i for i, name in enumerate(columns) if name not in optional or len(values[i]) > 1]
    first = next(iter(runs.values()))[0]
    scores, tasks = list(first.scores), list(first.task_errors)
    tasks = tasks if len(tasks) > 1 else []
    header = [*(columns[i] for i in shown), "MAC speed-up", *scores, "expected error"]
    header += [f"that of {task}" for task in tasks]
    rows = [
        [
            *(rules[i] for i in shown),
            f"{fmean(m.speedup for m in own):.2f}×",
            *(percent(fmean(m.scores[key] for m in own)) for key in scores),
            percent(fmean(m.expected_error for m in own)),
            *(percent(fmean(m.task_errors[task] for m in own)) for task in tasks),
        ]
        for rules, own in sorted(runs.items(), key=lambda item: points.index(item[0][0]))
    ]
    print(text_table(rows, header=header, divider=True, max_col=60))
    if page:
        replace_block(page, block, markdown_table(header, rows))


def _rules(
    pipeline: str, dev: Path, search: Search, kinds: Sequence[str], limit: int
) -> dict[tuple[str, ...], Measurement]:
    """RETURNS (Dict[Tuple[str, ...], Measurement]): What a pipeline gave, by point, window,
    schedule, temperatures, last layer and steps.
    """
    nlp = spacy.load(pipeline)
    transformer = find_transformer(nlp)
    gold_preproc = nlp.config["corpora"]["dev"]["gold_preproc"]
    examples = list(Corpus(dev, gold_preproc=gold_preproc, limit=limit)(nlp))
    probe = Probe(transformer, examples, hits=True)
    recording, full = probe.record()
    found = {("full depth", *[""] * 5): full}
    for kind in dict.fromkeys(kinds):
        recording.set_temperatures(*_temperatures(kind))
        for candidate in reversed(search.candidates(transformer.n_layers)):
            curve, sweep = Curve(recording, candidate), Sweep(probe, candidate)
            for speedup in SPEEDUPS:
                if curve.speedups[0] > speedup:
                    continue
                try:
                    measured = find_threshold(sweep, speedup, curve=curve)
                except ValueError:  # out of reach
                    continue
                last = str(candidate.last_layer or transformer.n_layers)
                rules = (str(candidate.window), candidate.schedule, kind, last)
                found[(f"{speedup:g}x", *rules, str(candidate.every))] = measured
    return found


def _temperatures(kind: str) -> tuple[bool, dict[str, float]]:
    """RETURNS (Tuple[bool, Dict[str, float]]): Whether they are the fitted ones, and what one task
    has instead of 1.
    RAISES (ValueError): If it is no such thing.
    """
    if kind in ("none", "fitted"):
        return kind == "fitted", {}
    task, value = kind.split("=")
    return False, {task: float(value)}


@app.command("table")
def table_cli(
    results: Annotated[Path, typer.Option(exists=True)] = Path("metrics/experiments"),
    plan: Annotated[Path, typer.Option(exists=True)] = PLAN,
    only: Annotated[str, typer.Option(help="Names of experiments, with commas; all")] = "",
    absolute: Annotated[bool, typer.Option(help="Scores at each speed-up, not changes")] = False,
    page: Annotated[Path | None, typer.Option(help="Replace the table in this file")] = None,
    block: Annotated[str, typer.Option(help="Name of the table in that file")] = "experiments",
) -> None:
    """Print the results: dev scores at full depth, and what is lost at each MAC speed-up.

    Results of experiments that the plan no longer has are marked as history.
    """
    found = [srsly.read_json(path) for path in sorted(results.glob("*.json"))]
    names = only.split(",") if only else list(dict.fromkeys(own["name"] for own in found))
    if unknown := sorted(set(names) - {own["name"] for own in found}):
        msg.fail(f"{results} has no result of {', '.join(unknown)}", exits=1)
    chosen = [own for name in names for own in found if own["name"] == name]
    header, rows = table(chosen, absolute)
    planned = srsly.read_yaml(plan)["experiments"]
    rows = [[name if name in planned else f"{name} (history)", *cells] for name, *cells in rows]
    print(text_table(rows, header=header, divider=True, max_col=60))
    if page:
        replace_block(page, block, markdown_table(header, rows))


def table(
    results: Sequence[dict[str, Any]], absolute: bool = False
) -> tuple[list[str], list[list[str]]]:
    """A row per experiment and score: at full depth, then the change at each speed-up, or the score
    there; mean over seeds ± standard deviation.
    """
    header = ["experiment", "seeds", "score", "full depth", *(f"{s:g}×" for s in SPEEDUPS)]
    of_name: dict[str, list[dict[str, dict[str, float]]]] = {}
    for result in results:
        by_setting = {row["setting"]: row for row in result["rows"]}
        of_name.setdefault(result["name"], []).append(by_setting)
    rows = []
    for name, seeds in of_name.items():
        for key in ("ents_f", "tag_acc", "token_f"):
            if key not in seeds[0]["full depth"]:
                continue
            full = [seed["full depth"][key] for seed in seeds]
            cells = [mean_and_spread(full)]
            for point in (f"{speedup:g}x" for speedup in SPEEDUPS):
                if not all(point in seed for seed in seeds):  # one does not get there
                    cells.append("")
                    continue
                scores = [seed[point][key] for seed in seeds]
                if absolute:
                    cells.append(mean_and_spread(scores))
                else:
                    changes = [score - base for score, base in zip(scores, full, strict=True)]
                    cells.append(mean_and_spread(changes, "+.2f"))
            rows.append([name, str(len(seeds)), key, *cells])
    return header, rows


if __name__ == "__main__":
    app()
