"""The benchmark: train what it compares (once), time it (always anew), write table and figures."""

import gc
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import spacy
import srsly
import torch
import typer
from comparisons import brief, comparisons
from spacy.cli.init_config import init_config
from spacy.cli.train import train as spacy_train
from spacy.language import Language
from spacy.training.initialize import init_nlp
from spacy.util import load_config
from systems import train_plain  # also makes the scripts importable
from wasabi import msg
from weasel.util.config import load_project_config

from report import replace_block  # isort: skip
from spacy_earlyexit.cli.benchmark import print_results
from spacy_earlyexit.cli.tables import print_table
from spacy_earlyexit.evaluation.benchmark import Row, benchmark, table
from spacy_earlyexit.files import write_bytes, write_json

ROOT = Path(__file__).parent.parent
PLAN = ROOT / "benchmarks" / "plan.yml"
RESULTS = ROOT / "benchmarks" / "results"
TRAINED = ROOT / "training" / "benchmarks"
KINDS = {
    "spacy": "spacy_earlyexit.evaluation.benchmark:SpacySystem",
    "hugging-face": "systems:HuggingFace",
    "onnx": "systems:Onnx",
}
OURS_COLOURS = {"ours, float32": "black", "ours, int8": "crimson"}

app = typer.Typer(add_completion=False)
Only = Annotated[str, typer.Option(help="Names of corpora, with commas; all")]


@app.command("train")
def train_cli(
    encoder: Annotated[str, typer.Option(help="Hub name or folder of a Hugging Face encoder")],
    corpora: Only = "",
    systems: Annotated[str, typer.Option(help="Names of systems, with commas; all")] = "",
    mixed_precision: Annotated[bool, typer.Option(help="Train with bfloat16 products")] = False,
    steps: Annotated[int, typer.Option(help="So many steps for all, for tests; 0: the plan's")] = 0,
) -> None:
    """Train what the plan names and is not there yet. Plain encoders have the budget of stage 1 and
    its rates (project.yml).
    """
    plan = srsly.read_yaml(PLAN)
    settings = load_project_config(ROOT)["vars"]
    for corpus in _chosen(corpora, plan["corpora"]):
        for name in _chosen(systems, plan["train"]):
            own, path = plan["train"][name], TRAINED / corpus / name
            if path.exists():
                msg.info(f"{path.relative_to(ROOT)} is there")
                continue
            msg.divider(f"{corpus}: {name}")
            beside = path.with_name(f".{name}.tmp")
            shutil.rmtree(beside, ignore_errors=True)
            task = plan["corpora"][corpus]["task"]
            n_steps = steps or own.get("steps") or settings[corpus]["stage1"]
            if own["kind"] == "plain":
                data = ROOT / "corpus" / corpus
                metrics = train_plain.train_plain(
                    train_plain.read_docs(data / "train.spacy"),
                    train_plain.read_docs(data / "dev.spacy"),
                    encoder,
                    task=task,
                    test=train_plain.read_docs(data / "test.spacy"),
                    epochs=100,
                    batch_words=400,
                    learn_rate=settings["learn_rate"],
                    head_scale=settings["plain_head_scale"][task],
                    max_steps=n_steps,
                    layers=own.get("layers"),
                    save=beside,
                    mixed_precision=mixed_precision,
                )
                write_json(beside / "metrics.json", metrics)
                if own.get("layers") is None:
                    export_onnx(beside)
            else:
                pipeline = plan["corpora"][corpus]["pipeline"]
                start = TRAINED / corpus / own["encoder"] if "encoder" in own else None
                if start is None:
                    _train_spacy(beside, corpus, pipeline, own["optimize"], n_steps)
                else:
                    whole = steps or settings[corpus]["stage1"]
                    _train_spacy_transformers(beside, corpus, pipeline, start, n_steps, whole)
            beside.rename(path)


def _train_spacy(
    path: Path,
    corpus: str,
    pipeline: list[str],
    optimize: str,
    steps: int,
    *,
    gpu: bool = False,
    sources: dict[str, Path] | None = None,
    **settings: Any,
) -> None:
    """A pipeline as `spacy init config` proposes it.

    gpu (bool): Propose one with a transformer.
    sources (Optional[Dict[str, Path]]): Components that go on from those of trained pipelines.
    settings (Any): Of [training], over the proposed ones.
    """
    config = init_config(lang="en", pipeline=pipeline, optimize=optimize, gpu=gpu, silent=True)
    for name, source in (sources or {}).items():
        config["components"][name] = {"source": str(source)}
    config["training"].update(settings)
    path.mkdir(parents=True)
    config.to_disk(path / "base.cfg")
    spacy_train(path / "base.cfg", path, overrides=_spacy_settings(corpus, steps, gpu))


def _spacy_settings(corpus: str, steps: int, gpu: bool) -> dict[str, Any]:
    data = ROOT / "corpus" / corpus
    settings: dict[str, Any] = {
        "paths.train": str(data / "train.spacy"),
        "paths.dev": str(data / "dev.spacy"),
        "training.max_steps": steps,
        "training.eval_frequency": max(steps // 4, 1),
        "training.gpu_allocator": None,
        "corpora.train.gold_preproc": True,
        "corpora.dev.gold_preproc": True,
    }
    if not gpu:
        settings["initialize.vectors"] = None
    return settings


def _train_spacy_transformers(
    path: Path, corpus: str, pipeline: list[str], encoder: Path, steps: int, whole: int
) -> None:
    """spacy-transformers with stock heads, on an encoder that was fine-tuned before. spaCy has one
    learning rate for all: at those that the encoder bears, new heads would need thousands of steps.
    So the heads learn first, the encoder as it is, then all together.

    steps, whole (int): How long the heads learn, and then all.
    """
    name = "components.transformer.model.name"
    config = init_config(lang="en", pipeline=pipeline, optimize="accuracy", gpu=True, silent=True)
    path.mkdir(parents=True)
    config.to_disk(path / "start.cfg")
    settings = {**_spacy_settings(corpus, steps, True), name: str(encoder)}
    init_nlp(load_config(path / "start.cfg", settings)).to_disk(path / "start")

    fixed = ["transformer"]
    _train_spacy(
        path / "heads", corpus, pipeline, "accuracy", steps, gpu=True,
        sources={"transformer": path / "start"}, frozen_components=fixed,
        annotating_components=fixed, **_own_training(1e-3, steps),
    )  # fmt: skip
    trained = path / "heads" / "model-last"
    sources = {part: trained for part in ("transformer", *pipeline)}
    _train_spacy(
        path / "whole", corpus, pipeline, "accuracy", whole, gpu=True, sources=sources,
        **_own_training(1e-4, whole),
    )  # fmt: skip
    (path / "whole" / "model-best").rename(path / "model-best")


def _own_training(rate: float, steps: int) -> dict[str, Any]:
    """rate (float): The greatest. RETURNS (Dict[str, Any]): Settings of [training]."""
    schedule = {"@schedules": "warmup_linear.v1", "initial_rate": rate}
    schedule |= {"warmup_steps": steps // 10, "total_steps": steps}
    return {
        "accumulate_gradient": 1,
        "batcher": {"@batchers": "spacy.batch_by_words.v1", "size": 400, "tolerance": 0.2},
        "optimizer": {"@optimizers": "Adam.v1", "learn_rate": schedule},
        "before_update": {"@callbacks": "benchmarks.collect_garbage.v1"},
    }


@spacy.registry.callbacks("benchmarks.collect_garbage.v1")
def collect_garbage() -> Callable[[Language, dict[str, Any]], None]:
    """Reference cycles hold the graphs of spacy-transformers' batches: memory fills up before
    Python looks for them by itself.
    """

    def collect(nlp: Language, info: dict[str, Any]) -> None:
        gc.collect()

    return collect


def export_onnx(path: Path) -> None:
    """model.onnx beside a saved token classifier, and model-int8.onnx, dynamically quantised."""
    from onnxruntime.quantization import quantize_dynamic
    from transformers import AutoModelForTokenClassification

    model = AutoModelForTokenClassification.from_pretrained(path, attn_implementation="eager")
    ids = torch.tensor(np.arange(10, 26).reshape(2, 8))
    axes = {0: "batch", 1: "length"}
    torch.onnx.export(
        model.eval(),
        (ids, torch.ones_like(ids)),
        str(path / "model.onnx"),
        input_names=["input_ids", "attention_mask"],
        output_names=["logits"],
        dynamic_axes={"input_ids": axes, "attention_mask": axes, "logits": axes},
        dynamo=False,
    )
    quantize_dynamic(path / "model.onnx", path / "model-int8.onnx")


@app.command("run")
def run_cli(
    corpora: Only = "",
    repeats: Annotated[int, typer.Option(help="Timed rounds (medians)", min=1)] = 5,
    threads: Annotated[int, typer.Option(help="torch's threads, 0 for all cores", min=0)] = 0,
    limit: Annotated[int, typer.Option(help="First test documents only, 0 for all")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="32 documents, one round")] = False,
    output: Annotated[Path, typer.Option("--json", help="File for the figures")] = RESULTS
    / "latest.json",
) -> None:
    """Time everything that is trained; write the figures, a table and a picture beside them. With
    --corpora, what the file has of other corpora stays if it was measured alike.
    """
    plan = srsly.read_yaml(PLAN)
    rows = [row for corpus in _chosen(corpora, plan["corpora"]) for row in plan_rows(plan, corpus)]
    if not rows:
        msg.fail("Nothing is trained yet: run `benchmarks/run.py train` first", exits=1)
    results = benchmark(
        rows,
        repeats=1 if quick else repeats,
        limit=32 if quick else limit,
        threads=threads,
        progress=True,
    )
    results["rows"] = rows_of_others(results, output) + results["rows"]
    print_results(results)
    columns, rows_of_text = comparisons(results)
    print_table([tuple(row) for row in rows_of_text], columns, "llrrl")
    write_json(output, results)
    write_bytes(output.with_suffix(".md"), markdown(results).encode())
    plot(results, output.with_suffix(".svg"))
    msg.good(f"Saved {output}, and table and picture beside it")


def rows_of_others(results: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """What a file has of corpora that were not run now, if it is of the same machine, versions and
    commit, and as many rounds.
    """
    before = srsly.read_json(path) if path.exists() else {"rows": []}
    if any(before.get(key) != results[key] for key in results.keys() - {"rows", "date"}):
        return []
    now = {row["corpus"] for row in results["rows"]}
    return [row for row in before["rows"] if row["corpus"] not in now]


@app.command("page")
def page_cli(
    page: Annotated[Path, typer.Argument(help="Replace the tables in this file", exists=True)],
    figures: Annotated[Path, typer.Option("--json", exists=True)] = RESULTS / "latest.json",
    short: Annotated[
        Path | None, typer.Option("--brief", help="The short table goes here", exists=True)
    ] = None,
) -> None:
    """Put the tables of the last run into a page, and draw its picture anew."""
    results = srsly.read_json(figures)
    if short is not None:
        replace_block(short, "benchmark brief", _table(*brief(results), 2).strip())
    replace_block(page, "benchmark", markdown(results).strip())
    write_bytes(figures.with_suffix(".md"), markdown(results).encode())
    plot(results, figures.with_suffix(".svg"))


def plan_rows(plan: dict[str, Any], corpus: str) -> list[Row]:
    """The rows of a corpus whose systems are there; names those that are not."""
    rows: list[Row] = []
    test = str(ROOT / "corpus" / corpus / "test.spacy")
    for entry in plan["rows"]:
        settings = {k: v for k, v in entry.items() if k not in ("system", "setting", "use", "kind")}
        if "points" in entry:
            path = ROOT / "training" / corpus / "self_sampling" / "calibrated"
            if not path.exists():
                msg.warn(f"{path.relative_to(ROOT)} is missing: spacy project run {corpus}")
                continue
            others = [TRAINED / corpus / f"ours-{seed}" for seed in plan["seeds"]]
            if any(not other.exists() for other in others):
                msg.warn(f"Scores of one seed of {corpus}: scripts/results.py run makes more")
                others = []
            for precision in entry["precisions"]:
                for point in entry["points"]:
                    own = {"exit": point, "precision": precision}
                    rows.append(
                        Row(
                            entry["system"],
                            f"{point} {precision}",
                            corpus,
                            test,
                            KINDS["spacy"],
                            {"path": str(path), **own},
                            f"{entry['system']}, full {precision}",
                            [{"path": str(other), **own} for other in others],
                        )
                    )
            continue
        path = TRAINED / corpus / entry["use"]
        if not path.exists():
            msg.warn(f"{path.relative_to(ROOT)} is missing: benchmarks/run.py train")
            continue
        if entry["kind"] == "spacy":
            path = path / "model-best"
        else:
            settings["task"] = plan["corpora"][corpus]["task"]
        rows.append(
            Row(
                entry["system"],
                entry.get("setting", ""),
                corpus,
                test,
                KINDS[entry["kind"]],
                {"path": str(path), **settings},
            )
        )
    return rows


def markdown(results: dict[str, Any]) -> str:
    """RETURNS (str): The header, the rows, and what they say against each other."""
    machine = results["machine"]
    documents = f"the first {results['limit']:,}" if results["limit"] else "all"
    head = (
        f"{machine['cpu']}, {results['threads']} threads, torch {results['versions']['torch']}, "
        f"{results['date']}, commit {results['commit']}; {documents} test documents, medians of "
        f"{results['repeats']} rounds (least and greatest in brackets)."
    )
    seeds = {row["corpus"]: row["seeds"] for row in results["rows"] if row["seeds"] > 1}
    if seeds:
        each = ", ".join(f"{n} seeds of {corpus}" for corpus, n in seeds.items())
        head += f" Scores of ours are means of {each}; times are those of the first."
    versus = "Early exit: the fastest of ours that loses 1.0 of each score at most."
    return "\n\n".join([head, _table(*table(results), 3), versus, _table(*comparisons(results), 2)])


def _table(columns: list[str], rows: list[list[str]], n_left: int) -> str:
    """n_left (int): Columns of words, the others are of numbers."""
    lines = [columns, ["---"] * n_left + ["---:"] * (len(columns) - n_left), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def plot(results: dict[str, Any], path: Path) -> None:
    """Accuracy against words per second, a panel per corpus and score."""
    from io import BytesIO

    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    panels = []
    for corpus in dict.fromkeys(row["corpus"] for row in results["rows"]):
        for key, name in (("score", "score"), ("tag_acc", "tag accuracy")):
            own = [r for r in results["rows"] if r["corpus"] == corpus and r[key] is not None]
            # Points like sentence-3x or single-3x would hide the line of the others.
            own = [r for r in own if r["system"] != "ours" or "-" not in r["setting"]]
            if key == "score":  # of systems that only tag it is that of tags
                own = [r for r in own if r["score"] != r["tag_acc"]]
            if own:
                panels.append((corpus, key, name, own))
    names = list(dict.fromkeys(_series(row) for row in results["rows"]))
    n_rows = -(-(len(panels) + 1) // 2)
    figure = Figure(figsize=(11, 3.8 * n_rows), layout="constrained")
    *cells, last = figure.subplots(n_rows, 2).ravel()
    for axes, (corpus, key, name, own) in zip(cells, panels, strict=False):
        for series in dict.fromkeys(_series(row) for row in own):
            points = [row for row in own if _series(row) == series]
            x = [row["words_per_second"] for row in points]
            y = [100 * row[key] for row in points]
            ours = series.startswith("ours")
            colour = OURS_COLOURS.get(series, f"C{names.index(series)}")
            axes.plot(x, y, "o-" if ours else "s", color=colour, label=series, zorder=2 + ours)
            if not ours:
                continue
            side = -1 if "float32" in series else 1  # below or above
            for row in points:
                point = row["setting"].split()[0]
                axes.annotate(
                    "" if "." in point else point,  # 3.5x is between its neighbours
                    (row["words_per_second"], 100 * row[key]),
                    xytext=(0, 6 * side),
                    textcoords="offset points",
                    ha="center",
                    va="bottom" if side > 0 else "top",
                    color=colour,
                    fontsize=8,
                )
        axes.set(xlabel="words per second", ylabel=f"{name} (%)", title=corpus, xscale="log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_minor_formatter("")
        axes.margins(y=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    labels = {
        label: handle
        for axes in cells
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    for axes in [*cells[len(panels) :], last]:
        axes.set_axis_off()
    last.legend(labels.values(), labels.keys(), frameon=False, loc="center")
    content = BytesIO()
    figure.savefig(content, format="svg", metadata={"Date": None})
    write_bytes(path, content.getvalue())


def _series(row: dict[str, Any]) -> str:
    """What has a colour of its own: a system; of ours, each precision."""
    return f"ours, {row['setting'].split()[-1]}" if row["system"] == "ours" else row["system"]


def _chosen(names: str, known: dict[str, Any]) -> list[str]:
    chosen = names.split(",") if names else list(known)
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        msg.fail(f"The plan has no {', '.join(unknown)}, only {', '.join(known)}", exits=1)
    return chosen


if __name__ == "__main__":
    spacy.util.fix_random_seed(0)
    app()
