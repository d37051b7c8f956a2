"""python -m spacy earlyexit calibrate"""

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from wasabi import msg

from ..errors import Errors
from .info import format_block, format_temperatures
from .options import CodePath, Force, GoldPreproc, GpuId, Limit, Plot, setup_device
from .tables import parse_list, parse_speedups, print_table

if TYPE_CHECKING:
    from spacy.training import Example

    from ..calibration.search import Calibration, Search
    from ..pipeline.transformer import EarlyExitTransformer


class Kind(str, Enum):
    """What leaves together."""

    token = "token"
    sentence = "sentence"


def calibrate_cli(
    pipeline: Annotated[str, typer.Argument(help="Folder or package of a trained pipeline")],
    dev_path: Annotated[Path, typer.Argument(help="Dev data (.spacy)", exists=True)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the new pipeline")],
    speedups: Annotated[
        str, typer.Option(help="MAC speed-ups, with commas: points 2x, 3x …")
    ] = "2,3,4",
    max_loss: Annotated[
        str,
        typer.Option(
            help="Losses of each dev score that are allowed, with commas (0.01: one point of "
            "100): points within-0.01 …, the fastest that lose no more"
        ),
    ] = "",
    lossless: Annotated[
        bool, typer.Option(help="Find the point lossless: the fastest that loses nothing on dev")
    ] = True,
    criterion: Annotated[
        Kind, typer.Option(help="Words leave one by one, or whole sentences")
    ] = Kind.token,
    windows: Annotated[
        str, typer.Option(help="Windows of token exit that are tried")
    ] = "1,2,3,4,5",
    schedules: Annotated[
        str, typer.Option(help="How thresholds grow over the layers, as it is tried")
    ] = "constant,doubled,linear,geometric",
    depths: Annotated[
        str,
        typer.Option(
            help="Shares of the layers that are tried as the deepest a word goes, certain or not"
        ),
    ] = "1,0.8,0.7,0.6,0.5,0.4",
    every: Annotated[
        str,
        typer.Option(help="1: words can leave at each layer, 2: at every second one, as is tried"),
    ] = "1",
    prefix: Annotated[str, typer.Option(help="Put before the points' names: sentence- …")] = "",
    add: Annotated[
        bool,
        typer.Option("--add", help="Keep points and temperatures of the pipeline, and add to them"),
    ] = False,
    temperatures: Annotated[
        bool | None,
        typer.Option(
            "--temperatures/--no-temperatures",
            help="Divide scores by a temperature, fitted for each layer and task, before their "
            "uncertainty is taken, or not; else both are tried",
        ),
    ] = None,
    task_temperatures: Annotated[
        str,
        typer.Option(
            help="Factors on the temperatures of some tasks: with seg=0.7 that task is taken for "
            "certain sooner, and more of a speed-up's cost is its own"
        ),
    ] = "",
    exit_point: Annotated[
        str | None,
        typer.Option(
            "--exit", help="Point in force in the new pipeline, or 'full'; else as it was"
        ),
    ] = None,
    finalists: Annotated[
        int,
        typer.Option(
            help="Candidates that are run for each point; from 2 on one has the largest window",
            min=1,
        ),
    ] = 5,
    gold_preproc: GoldPreproc = False,
    limit: Limit = 0,
    plot: Plot = None,
    gpu_id: GpuId = -1,
    force: Force = False,
    code_path: CodePath = None,
) -> None:
    """Find operating points of a trained pipeline on dev data: for each speed-up the surest
    of the settings that are not surely worse than the best, and the fastest that lose no
    more than allowed. They are saved with a copy of the pipeline.
    """
    from spacy.cli._util import import_code

    from ..calibration.search import Search

    import_code(code_path)
    setup_device(gpu_id)
    numbers = "numbers with commas between them"
    try:
        losses = parse_list(max_loss, "max_loss", float, numbers)
        search = Search(
            speedups=parse_speedups(speedups),
            max_losses=[*([0.0] if lossless else []), *(x for x in losses if x)],
            windows=parse_list(windows, "windows", int, "whole numbers with commas between them"),
            schedules=parse_list(schedules, "schedules", str, "names with commas between them"),
            depths=parse_list(depths, "depths", float, numbers),
            every=parse_list(every, "every", int, "whole numbers with commas between them"),
            sentence=criterion is Kind.sentence,
            prefix=prefix,
            temperatures=() if add else (False, True) if temperatures is None else (temperatures,),
            task_temperatures=parse_factors(task_temperatures),
            finalists=finalists,
        )
        found, transformer = calibrate_pipeline(
            pipeline,
            dev_path,
            output,
            search,
            exit_point=exit_point,
            add=add,
            gold_preproc=gold_preproc,
            limit=limit,
            force=force,
            plot=plot,
            progress=True,
        )
    except (OSError, ValueError) as error:
        msg.fail(f"Can't calibrate the pipeline '{pipeline}'", str(error), exits=1)
    print_calibration(found, transformer)
    msg.good(f"Saved the pipeline to {output}")


def parse_factors(text: str) -> dict[str, float]:
    """RETURNS (Dict[str, float]): The numbers by name out of "seg=0.7,ner=1".

    RAISES (ValueError): If it is nothing of the kind.
    """

    def factor(part: str) -> tuple[str, float]:
        name, value = part.split("=")
        return name.strip(), float(value)

    return dict(parse_list(text, "task_temperatures", factor, "tasks and numbers, like seg=0.7"))


def calibrate_pipeline(
    pipeline: str | Path,
    dev_path: Path,
    output: Path,
    search: "Search",
    *,
    exit_point: str | None = None,
    add: bool = False,
    gold_preproc: bool = False,
    limit: int = 0,
    force: bool = False,
    plot: Path | None = None,
    progress: bool = False,
) -> tuple["Calibration", "EarlyExitTransformer"]:
    """Calibrate a pipeline and write it, in full or not at all, to a folder.

    pipeline (Union[str, Path]): What spacy.load takes.
    dev_path (Path): Dev data (.spacy).
    output (Path): The folder. The pipeline itself, with force.
    search (Search): What is looked for.
    exit_point (Optional[str]): The point in force in the new pipeline; None: the setting stays.
    add (bool): Keep the points that are there.
    gold_preproc, limit (bool, int): As in spacy.Corpus.v1.
    force (bool): Replace the output if it exists.
    plot (Optional[Path]): Where to draw what was found.
    progress (bool): Draw a progress bar.
    RETURNS (Tuple[Calibration, EarlyExitTransformer]): What was found, and who has it now.
    RAISES (ValueError): If a setting is impossible, or data or pipeline do not fit.
    """
    import spacy

    from ..calibration.search import find_points
    from ..evaluation.scores import read_examples
    from ..files import check_output, replacing, restore
    from ..pipeline.exit_setting import FULL_DEPTH
    from ..pipeline.finding import find_transformer
    from ..visuals.plots import check_plots, plot_scores

    check_output(output, force, pipeline)
    restore(Path(pipeline))
    if plot is not None:
        check_plots(plot)
    nlp = spacy.load(pipeline)
    transformer = find_transformer(nlp)
    known = [FULL_DEPTH, *search.points, *(transformer.points if add else [])]
    if exit_point is not None and exit_point not in known:
        expected = f"one of {', '.join(known)}"
        raise ValueError(Errors.E018.format(setting="exit", expected=expected, value=exit_point))
    examples = read_examples(nlp, dev_path, gold_preproc=gold_preproc, limit=limit)
    before = transformer.temperatures
    found = find_points(transformer, examples, search, source=dev_path.name, progress=progress)
    measured = {FULL_DEPTH: found.full, **found.points}
    points = {name: point.to_point() for name, point in measured.items()}
    transformer.set_points({**(transformer.points if add else {}), **points})
    put_in_force(transformer, exit_point, search, moved=transformer.temperatures != before)
    wanted = [search.speed_point(speedup) for speedup in search.speedups] or search.points
    if not found.points.keys() & set(wanted):
        raise ValueError(Errors.E070.format(reasons=" ".join(found.missed.values())))
    with replacing(output) as folder:
        nlp.to_disk(folder)
        check_points(folder, examples, list(points))
    if plot is not None:
        shown = [(name, point.speedup, point.score) for name, point in measured.items()]
        runs = [(run.speedup, run.score) for run in found.runs]
        plot_scores(plot, shown, runs=runs, full=found.full.score, title=str(pipeline))
    return found, transformer


def check_points(pipeline: Path, examples: Sequence["Example"], names: Sequence[str]) -> None:
    """Run points of a saved pipeline again.

    pipeline (Path): The folder.
    examples (Sequence[Example]): The dev data that they were measured on.
    names (Sequence[str]): The points.
    RAISES (ValueError): If one does not cost what is stored with it.
    """
    import spacy

    from ..calibration.measuring import Probe
    from ..pipeline.finding import find_transformer

    nlp = spacy.load(pipeline)
    transformer = find_transformer(nlp)
    probe = Probe(transformer, examples)
    for name in names:
        found, expected = probe(transformer.resolve(name)), transformer.points[name]["dev_speedup"]
        if abs(found.speedup / expected - 1) > 1e-6:
            raise ValueError(Errors.E071.format(name=name, found=found.speedup, expected=expected))


def put_in_force(
    transformer: "EarlyExitTransformer", exit_point: str | None, search: "Search", *, moved: bool
) -> None:
    """Set the exit setting of a transformer that has new points, and say where it can't be kept.

    exit_point (Optional[str]): The point that is wanted; None: the setting that is there.
    search (Search): What was looked for.
    moved (bool): Whether temperatures are others than before.
    """
    from ..pipeline.exit_setting import FULL_DEPTH

    wanted = transformer.exit if exit_point is None else exit_point
    if isinstance(wanted, str):
        if wanted not in transformer.points:
            points = ", ".join(transformer.points)
            error = Errors.E033 if wanted in search.points else Errors.E048
            msg.warn(error.format(point=wanted, points=points))
            wanted = FULL_DEPTH
        wanted = None if wanted == FULL_DEPTH else wanted
    elif wanted is not None and moved and getattr(wanted, "needs_tasks", True):
        msg.warn(Errors.E040.format(criterion=wanted))
    transformer.exit = wanted


def print_calibration(found: "Calibration", transformer: "EarlyExitTransformer") -> None:
    """Print what calibrate_pipeline found."""
    from ..pipeline.exit_setting import FULL_DEPTH

    msg.divider("On the dev data")
    scores = list(found.full.scores)
    header = ["point", *scores, "loss", "MAC speed-up", "exit layer", "exit"]
    rows = []
    for name, point in {FULL_DEPTH: found.full, **found.points}.items():
        in_force = name == (transformer.exit or FULL_DEPTH)
        rows.append(
            (
                f"{name} (in force)" if in_force else name,
                *(f"{100 * point.scores[key]:.2f}" for key in scores),
                f"{100 * (found.full.score - point.score):.2f}",
                f"{point.speedup:.2f}x",
                f"{point.mean_depth:.2f}",
                format_block(point.to_point()["exit"]),
            )
        )
    print_table(rows, header, "l" + "r" * (len(scores) + 3) + "l")
    for name, reason in found.missed.items():
        msg.warn(f"No point {name}: {reason}")
    for name in found.overshot:
        speedup = f"{found.points[name].speedup:.2f}x"
        msg.warn(f"The point {name} is at {speedup}: no run was nearer, words leave in steps here")
    msg.text("For a speed-up: the least expected error of the runs that are not surely worse")
    msg.text(
        f"{len(found.runs)} runs; temperatures: {format_temperatures(transformer.temperatures)}"
    )
