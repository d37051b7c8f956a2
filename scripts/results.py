"""The table of the paper's claim: plain and cut encoders, sentence and token exit, of both stages,
over corpora and seeds; a result that lies there is not made again.
"""

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any, NamedTuple

import train_plain
import typer
from report import markdown_table, mean_and_spread, replace_block
from spacy.cli import project_run
from spacy.cli._util import setup_gpu
from wasabi import msg
from wasabi import table as text_table
from weasel.util.config import load_project_config

from spacy_earlyexit.cli.options import GpuId
from spacy_earlyexit.evaluation.scores import evaluate
from spacy_earlyexit.files import beside, put, write_bytes, write_json
from spacy_earlyexit.visuals.plots import check_plots

ROOT = Path(__file__).parent.parent
FULL, SPEEDUPS = "full depth", ("2x", "3x", "4x")
# What an encoder of 12 layers is cut to for each speed-up.
CUTS = {"2x": 6, "3x": 4, "4x": 3}
KEPT = ("point", "scores", "exit_layer_mean", "exit_speedup", "losses", "exit")


class Corpus(NamedTuple):
    """tasks (Dict[str, str]): What is trained, and the score that it is judged by.
    folder (str): In corpus/ and training/. gold_preproc (bool): As in spacy.Corpus.v1.
    """

    title: str
    folder: str
    tasks: dict[str, str]
    gold_preproc: bool = True


# By the names of their workflows.
CORPORA = {
    "wnut17": Corpus("WNUT-17", "wnut17", {"ner": "ents_f"}),
    "ewt": Corpus("EWT", "ewt", {"ner": "ents_f", "tag": "tag_acc"}),
    "gsd-zh": Corpus("GSD-zh", "gsd_zh", {"ner": "ents_f", "seg": "token_f"}, False),
}
SCORES = {"ents_f": ("entities, F1", "f"), "tag_acc": ("tags, accuracy", "acc")}
SCORES["token_f"] = ("words, F1", "f")
PREFIXES = ("", "sentence")  # of the points in the table; others are for other uses
STAGES = {"joint": "stage 1", "self_sampling": "stage 2"}

app = typer.Typer(add_completion=False)
Results = Annotated[Path, typer.Option(help="Folder of the results")]
RESULTS = Path("metrics/results")


@app.command("run")
def run_cli(
    encoder: Annotated[str, typer.Option(help="Hub name or folder of a Hugging Face encoder")],
    mirror: Annotated[str, typer.Option(help="Folder with the corpora; network")] = "",
    corpora: Annotated[str, typer.Option(help="Names, with commas")] = ",".join(CORPORA),
    seeds: Annotated[
        str, typer.Option(help="With commas; the last one's pipelines stay")
    ] = "2,1,0",
    peers: Annotated[bool, typer.Option(help="Plain and cut encoders, too")] = True,
    mixed_precision: Annotated[
        str, typer.Option(help="true: train with bfloat16 products, as in project.yml")
    ] = "false",
    gpu_id: GpuId = -1,
    results: Results = RESULTS,
) -> None:
    """Train and score what has no result yet. Pipelines that workflows left are replaced."""
    settings = load_project_config(ROOT)["vars"]
    setup_gpu(gpu_id, silent=True)
    for corpus in corpora.split(","):
        if corpus not in CORPORA:
            msg.fail(f"{corpus} is none of {', '.join(CORPORA)}", exits=1)
    for seed in map(int, seeds.split(",")):
        for name in corpora.split(","):
            common = {"vars.encoder": encoder, "vars.mirror": mirror, "vars.seed": seed}
            common |= {"vars.mixed_precision": mixed_precision, "vars.gpu": gpu_id}
            common |= {"vars.gold": "true", "vars.gold_flag": "--gold-preproc"}
            project_run(ROOT, f"{name}-corpus", overrides=common)
            if peers:
                run_peers(name, settings, encoder, seed, mixed_precision == "true", results)
            run_ours(name, common, seed, results)


def run_peers(
    name: str,
    settings: dict[str, Any],
    encoder: str,
    seed: int,
    mixed_precision: bool,
    results: Path,
) -> None:
    """The whole encoder and its first layers, fine-tuned the plain way with the budget of stage 1.

    name (str): Of the corpus.
    settings (Dict): The `vars` of project.yml.
    """
    corpus = CORPORA[name]
    data = ROOT / "corpus" / corpus.folder
    for task in corpus.tasks:
        for layers in (None, *CUTS.values()):
            path = result_path(results, name, peer_name(task, layers), seed)
            if path.exists():
                msg.info(f"{path} is there")
                continue
            msg.divider(path.stem)
            if seed == 0 and (metrics := of_benchmark(corpus.folder, task, layers)):
                write_json(path, metrics)
                continue
            train, dev, test = (
                train_plain.read_docs(data / f"{part}.spacy") for part in ("train", "dev", "test")
            )
            metrics = train_plain.train_plain(
                train,
                dev,
                encoder,
                task=task,
                test=test,
                epochs=100,
                batch_words=400,
                learn_rate=settings["learn_rate"],
                head_scale=settings["plain_head_scale"][task],
                seed=seed,
                max_steps=settings[corpus.folder]["stage1"],
                characters=not corpus.gold_preproc,
                layers=layers,
                mixed_precision=mixed_precision,
            )
            write_json(path, metrics)


def of_benchmark(folder: str, task: str, layers: int | None) -> dict[str, Any] | None:
    """What benchmarks/run.py has found for the same model, which it trains the same way.

    folder (str): Of the corpus.
    """
    name = "plain" if layers is None else f"cut-{layers}"
    path = ROOT / "training" / "benchmarks" / folder / name / "metrics.json"
    if not path.exists():
        return None
    metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf8"))
    return metrics if metrics["task"] == task else None


def run_ours(name: str, common: dict[str, Any], seed: int, results: Path) -> None:
    """Both stages by the commands of project.yml, scored on test at all their points.

    common (Dict): Overrides of `vars`.
    """
    corpus = CORPORA[name]
    paths = {stage: result_path(results, name, stage, seed) for stage in STAGES}
    if all(path.exists() for path in paths.values()):
        msg.info(f"{', '.join(map(str, paths.values()))} are there")
        return
    for step in ("joint", "self-sampling", "calibrate"):
        project_run(ROOT, f"{name}-{step}", overrides=common)
    for stage, path in paths.items():
        msg.divider(path.stem)
        pipeline = Path("training") / corpus.folder / stage / "calibrated"
        found = evaluate(
            ROOT / pipeline,
            ROOT / "corpus" / corpus.folder / "test.spacy",
            gold_preproc=corpus.gold_preproc,
            repeats=0,
        )
        rows = [{key: row[key] for key in KEPT} for row in found["rows"]]
        write_json(path, {**found, "pipeline": str(pipeline), "seed": seed, "rows": rows})
    if seed:
        keep_for_benchmark(ROOT / pipeline, corpus.folder, seed)


def keep_for_benchmark(pipeline: Path, folder: str, seed: int) -> None:
    """Copy a pipeline to where benchmarks/run.py looks for those of further seeds.

    folder (str): Of the corpus.
    """
    kept = ROOT / "training" / "benchmarks" / folder / f"ours-{seed}"
    with beside(kept) as work:
        shutil.copytree(pipeline, work / "new")
        put(work / "new", kept, work / "replaced")


def peer_name(task: str, layers: int | None) -> str:
    return f"plain-{task}" if layers is None else f"cut{layers}-{task}"


def result_path(results: Path, corpus: str, system: str, seed: int) -> Path:
    return results / f"{corpus}-{system}-{seed}.json"


@app.command("table")
def table_cli(
    results: Results = RESULTS,
    page: Annotated[
        list[Path] | None, typer.Option(help="Replace the table in these files")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the scores here (.svg, .png)")] = None,
) -> None:
    """Print mean and spread of what there is: test scores at full depth and at MAC speed-ups."""
    if plot is not None:
        check_plots(plot)
    found = collect(sorted(results.glob("*.json")))
    if not found:
        msg.fail(f"There is nothing in {results}: scripts/results.py run", exits=1)
    header, rows = table(found)
    print(text_table(rows, header=header, divider=True, max_col=60))
    for path in page or []:
        replace_block(path, "results all", markdown_table(header, rows))
    if plot is not None:
        draw(found, plot)


@app.command("losses")
def losses_cli(
    results: Results = RESULTS,
    page: Annotated[Path | None, typer.Option(help="Replace the table in this file")] = None,
) -> None:
    """Print what early exit loses of full depth of the same pipeline, in points of 100."""
    header, rows = losses_table(collect(sorted(results.glob("*.json"))))
    print(text_table(rows, header=header, divider=True, max_col=60))
    if page is not None:
        replace_block(page, "results losses", markdown_table(header, rows))


class Cell(NamedTuple):
    """Of one seed on test.

    score, speedup (float): The score, and the speed-up in MACs that was reached there.
    loss (Optional[Sequence[float]]): What is lost of full depth, with the ends of its interval.
    """

    score: float
    speedup: float
    loss: Sequence[float] | None = None


# By corpus and score, then system, then setting: a cell per seed.
Systems = dict[str, dict[str, list[Cell]]]
Found = dict[tuple[str, str], Systems]


def collect(paths: Iterable[Path]) -> Found:
    """paths (Iterable[Path]): Results, as result_path names them."""
    found: Found = {}

    def add(corpus: str, key: str, system: str, setting: str, cell: Cell) -> None:
        of_score = found.setdefault((corpus, key), {})
        of_score.setdefault(system, {}).setdefault(setting, []).append(cell)

    for path in paths:
        match = re.fullmatch(rf"({'|'.join(CORPORA)})-(\w+?)(?:-(\w+))?-(\d+)", path.stem)
        if match is None:
            continue
        corpus, system, task, _ = match.groups()
        result = json.loads(path.read_text(encoding="utf8"))
        if system in STAGES:
            for row in result["rows"]:
                kind, _, point = row["point"].rpartition("-")
                if row["point"] != "full" and (point not in SPEEDUPS or kind not in PREFIXES):
                    continue
                for key in CORPORA[corpus].tasks.values():
                    score = row["scores"][key]
                    if row["point"] == "full":
                        for each in ("token", "sentence"):
                            name = f"{STAGES[system]}, {each} exit"
                            add(corpus, key, name, FULL, Cell(score, 1.0))
                    else:
                        name = f"{STAGES[system]}, {kind or 'token'} exit"
                        loss = (row["losses"] or {}).get(key)
                        add(corpus, key, name, point, Cell(score, row["exit_speedup"], loss))
        else:
            key = CORPORA[corpus].tasks[task]
            score = result["test"][SCORES[key][1]]
            if system == "plain":
                add(corpus, key, "cut and fine-tuned", FULL, Cell(score, 1.0))
            else:
                at = {f"cut{layers}": speedup for speedup, layers in CUTS.items()}[system]
                add(corpus, key, "cut and fine-tuned", at, Cell(score, float(at[:-1])))
    return found


def table(found: Found) -> tuple[list[str], list[list[str]]]:
    """RETURNS (Tuple[List[str], List[List[str]]]): Header and rows: per corpus, score and system
    the mean over seeds, its standard deviation, in brackets the mean speed-up on test, and the
    number of seeds.
    """
    header = ["corpus", "score", "system", FULL, *(s.replace("x", "×") for s in SPEEDUPS), "seeds"]
    rows = []
    for (corpus, key), systems in _ordered(found):
        for system, settings in systems.items():
            seeds = sorted({len(scores) for scores in settings.values()})
            cells = [_cell(settings.get(setting, [])) for setting in (FULL, *SPEEDUPS)]
            count = "–".join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))
            rows.append([CORPORA[corpus].title, SCORES[key][0], system, *cells, count])
    return header, rows


def losses_table(found: Found) -> tuple[list[str], list[list[str]]]:
    """RETURNS (Tuple[List[str], List[List[str]]]): Header and rows: per corpus, score and system
    the mean loss over seeds, and the means of the ends of its intervals: as wide as if all seeds
    erred on the same documents, which is wider than they do.
    """
    header = ["corpus", "score", "system", *(s.replace("x", "×") for s in SPEEDUPS), "seeds"]
    rows = []
    for (corpus, key), systems in _ordered(found):
        for system, settings in systems.items():
            losses = {
                setting: [cell.loss for cell in settings.get(setting, []) if cell.loss is not None]
                for setting in SPEEDUPS
            }
            if not any(losses.values()):
                continue
            cells = [_loss(each) for each in losses.values()]
            count = str(max(len(each) for each in losses.values()))
            rows.append([CORPORA[corpus].title, SCORES[key][0], system, *cells, count])
    return header, rows


def _loss(losses: Sequence[Sequence[float]]) -> str:
    if not losses:
        return ""
    mean, low, high = (100 * fmean(each) for each in zip(*losses, strict=True))
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"


def _ordered(found: Found) -> list[tuple[tuple[str, str], Systems]]:
    corpora, scores = list(CORPORA), list(SCORES)
    ranked = sorted(found, key=lambda pair: (corpora.index(pair[0]), scores.index(pair[1])))
    return [(pair, dict(sorted(found[pair].items()))) for pair in ranked]


def _cell(cells: list[Cell]) -> str:
    if not cells:
        return ""
    text = mean_and_spread([cell.score for cell in cells])
    speedup = fmean(cell.speedup for cell in cells)
    return text if speedup == 1.0 else f"{text} ({speedup:.2f}×)"


def _spread(cells: list[Cell]) -> float:
    return 100 * stdev(cell.score for cell in cells) if len(cells) > 1 else 0.0


def draw(found: Found, path: Path) -> None:
    """Scores against MAC speed-ups, a panel per corpus and score, a line per system."""
    from io import BytesIO

    from matplotlib.figure import Figure

    names = sorted({name for systems in found.values() for name in systems})
    n_rows = -(-len(found) // 2)
    figure = Figure(figsize=(11, 3.4 * n_rows), layout="constrained")
    panels = figure.subplots(n_rows, 2, squeeze=False).ravel()
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    for axes, ((corpus, key), systems) in zip(panels, _ordered(found), strict=False):
        for system, settings in systems.items():
            at = [s for s in (FULL, *SPEEDUPS) if s in settings]
            x = [fmean(cell.speedup for cell in settings[s]) for s in at]
            y = [100 * fmean(cell.score for cell in settings[s]) for s in at]
            spread = [_spread(settings[s]) for s in at]
            colour = f"C{names.index(system)}"
            axes.errorbar(x, y, spread, marker="o", capsize=2, color=colour, label=system)
        title = f"{CORPORA[corpus].title}: {SCORES[key][0]}"
        axes.set(xlabel="MAC speed-up", ylabel="%", title=title, xticks=[1, 2, 3, 4])
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    content = BytesIO()
    kind = path.suffix[1:] or "svg"
    figure.savefig(content, format=kind, metadata={"Date": None} if kind == "svg" else None)
    write_bytes(path, content.getvalue())


if __name__ == "__main__":
    app()
