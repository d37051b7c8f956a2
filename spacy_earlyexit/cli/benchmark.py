"""python -m spacy earlyexit benchmark"""

from pathlib import Path
from typing import Annotated, Any

import typer
from wasabi import msg

from ..errors import Errors
from .options import CodePath, Limit
from .tables import parse_list, print_table


def benchmark_cli(
    test_path: Annotated[Path, typer.Argument(help="Test data (.spacy)", exists=True)],
    pipelines: Annotated[
        list[str], typer.Argument(help="Folders or packages of pipelines, of any kind")
    ],
    points: Annotated[
        str,
        typer.Option(help="Exit settings of pipelines with an earlyexit_transformer; full: all of"),
    ] = "full,2x,3x,4x",
    precisions: Annotated[
        str, typer.Option(help="Their precisions: float32, int8 or both, with a comma")
    ] = "float32",
    repeats: Annotated[int, typer.Option(help="Timed rounds (medians)", min=1)] = 5,
    limit: Limit = 0,
    threads: Annotated[int, typer.Option(help="torch's threads, 0 for all cores", min=0)] = 0,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="File for the figures", dir_okay=False)
    ] = None,
    code_path: CodePath = None,
) -> None:
    """Time pipelines against each other on the same gold tokens (one that makes words of characters
    gets the text): words per second, latency and memory, with accuracy in the same row. Each
    pipeline and setting runs in a process of its own, in turns.
    """
    from spacy.cli._util import import_code

    from ..evaluation.benchmark import Row, benchmark
    from ..files import check_writable, write_json

    import_code(code_path)
    try:
        if json_path is not None:
            check_writable(json_path)
        exits = parse_list(points, "points", str, "names with commas between them")
        kinds = parse_list(precisions, "precisions", str, "names with commas between them")
        rows: list[Row] = []
        for setting, values in (("points", exits), ("precisions", kinds)):
            if not values:
                raise ValueError(Errors.E018.format(setting=setting, expected="a name", value=""))
        for pipeline, name in distinct_names(pipelines).items():
            rows += pipeline_rows(pipeline, name, test_path, exits, kinds, code_path)
        results = benchmark(rows, repeats=repeats, limit=limit, threads=threads, progress=True)
        print_results(results)
        if json_path is not None:
            write_json(json_path, results)
            msg.good(f"Saved the figures to {json_path}")
    except (OSError, ValueError, RuntimeError) as error:
        msg.fail("Can't run the benchmark", str(error), exits=1)


def distinct_names(pipelines: list[str]) -> dict[str, str]:
    """What results call pipelines: their folders' names, with so many of the folders above that
    they differ.

    RETURNS (Dict[str, str]): Names by what spacy.load takes.
    """
    from ..evaluation.scores import pipeline_name

    names = {pipeline: pipeline_name(pipeline) for pipeline in pipelines}
    parts = {pipeline: Path(pipeline).resolve().parts for pipeline in names}
    for pipeline, name in names.items():
        same = [other for other in names if pipeline_name(other) == name]
        n = len(Path(name).parts)
        while len({parts[other][-n:] for other in same}) < len({parts[o] for o in same}):
            n += 1
        names[pipeline] = "/".join(parts[pipeline][-n:])
    return names


def pipeline_rows(
    pipeline: str,
    system: str,
    test_path: Path,
    exits: list[str],
    precisions: list[str],
    code_path: Path | None = None,
) -> list[Any]:
    """The rows of a pipeline: one, or one per exit setting and precision.

    system (str): What they call it.

    RAISES (OSError, ValueError): If there is no such pipeline, or it has no such point.
    """
    import spacy

    from ..evaluation.benchmark import Row
    from ..pipeline.finding import find_transformer

    common: dict[str, Any] = {"corpus": test_path.stem, "test": str(test_path)}
    load = {"path": pipeline, "code": None if code_path is None else str(code_path)}
    nlp = spacy.load(pipeline)
    try:
        transformer = find_transformer(nlp)
    except ValueError:
        return [Row(system=system, setting="", settings=load, **common)]
    rows = []
    for precision in precisions:
        for name in exits:
            transformer.precision = precision  # says what is wrong before anything runs
            transformer.resolve(name)
            settings = {**load, "exit": name, "precision": precision}
            rows.append(
                Row(
                    system=system,
                    setting=f"{name} {precision}",
                    settings=settings,
                    baseline=f"{system}, {exits[0]} {precisions[0]}",
                    **common,
                )
            )
    return rows


def print_results(results: dict[str, Any]) -> None:
    """Print what benchmark returned."""
    from ..evaluation.benchmark import table

    machine = results["machine"]
    msg.divider(f"{machine['cpu']}, {results['threads']} threads, {results['repeats']} rounds")
    columns, rows = table(results)
    print_table([tuple(row) for row in rows], columns, "lll" + "r" * (len(columns) - 3))
