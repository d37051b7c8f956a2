"""python -m spacy earlyexit evaluate"""

from pathlib import Path
from typing import Annotated, Any

import typer
from wasabi import msg

from .options import CodePath, GoldPreproc, GpuId, Limit, Plot, setup_device
from .tables import parse_list, print_speeds, print_table

LABELS_SHOWN = 12
FEW = 20  # documents, of which resamples say nothing


def evaluate_cli(
    pipeline: Annotated[str, typer.Argument(help="Folder or package of a trained pipeline")],
    test_path: Annotated[Path, typer.Argument(help="Test data (.spacy)", exists=True)],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="JSON file for the figures", dir_okay=False),
    ] = None,
    points: Annotated[
        str, typer.Option(help="Operating points, with commas; without it, all that there are")
    ] = "",
    repeats: Annotated[int, typer.Option(help="Timed rounds (medians); 0: scores only", min=0)] = 5,
    gold_preproc: GoldPreproc = False,
    raw_text: Annotated[
        bool, typer.Option("--raw-text", help="With gold tokens: one more row from the raw text")
    ] = False,
    limit: Limit = 0,
    plot: Plot = None,
    gpu_id: GpuId = -1,
    code_path: CodePath = None,
) -> None:
    """Score and time a pipeline at full depth and at its operating points, and show how deep its
    words go.
    """
    from spacy.cli._util import import_code

    from ..evaluation.scores import evaluate
    from ..files import check_writable, write_json
    from ..visuals.plots import check_plots, plot_scores

    import_code(code_path)
    setup_device(gpu_id)
    try:
        if plot is not None:
            check_plots(plot)
        if output is not None:
            check_writable(output)
        figures = evaluate(
            pipeline,
            test_path,
            points=parse_list(points, "points", str, "names with commas between them") or None,
            gold_preproc=gold_preproc,
            raw_text=raw_text,
            limit=limit,
            repeats=repeats,
            progress=True,
        )
        print_figures(figures)
        if output is not None:
            write_json(output, figures)
            msg.good(f"Saved the figures to {output}")
        if plot is not None:
            rows = [row for row in figures["rows"] if row["scores"]]
            shown = [(r["point"], r["exit_speedup"], mean_score(r)) for r in rows]
            plot_scores(plot, shown, title=f"{pipeline} on {figures['test']}")
    except (OSError, ValueError) as error:
        msg.fail(f"Can't evaluate the pipeline '{pipeline}'", str(error), exits=1)


def mean_score(row: dict[str, Any]) -> float:
    """RETURNS (float): Of a row of evaluate: the mean of its scores."""
    return sum(row["scores"].values()) / len(row["scores"])


def print_figures(figures: dict[str, Any]) -> None:
    """Print what evaluate returned as tables."""
    rows = figures["rows"]
    names = [row["point"] for row in rows]
    print_speeds(f"{figures['pipeline']} on {figures['test']}", names, rows)

    lost = [row for row in rows[1:] if row["losses"] and row["exit"]]
    if lost:
        few = figures["documents"] < FEW
        kind = "sentences" if figures["tokens"] == "gold" else "documents"
        interval = f"95 % interval by bootstrap over {kind}"
        msg.divider(
            f"Lost against {names[0]} ({f'too few {kind} for intervals' if few else interval})"
        )
        table = [
            (row["point"], *(show_loss(*loss, few=few) for loss in row["losses"].values()))
            for row in lost
        ]
        header = ["", *lost[0]["losses"]]
        print_table(table, header, "l" + "r" * (len(header) - 1))

    msg.divider("Share of words per exit layer (%)")
    layers = [str(i) for i, _ in enumerate(rows[0]["exit_layer_shares"], start=1)]
    shares = [
        (row["point"], *(f"{100 * share:.1f}" for share in row["exit_layer_shares"]))
        for row in rows
    ]
    print_table(shares, ["", *layers], "l" + "r" * len(layers))

    for task, own in rows[0]["tasks"].items():
        msg.divider(f"Mean exit layer of the words of each label ({task})")
        table = [
            (
                label,
                f"{found['words']:,}",
                *(depth(row["tasks"][task]["labels"].get(label)) for row in rows),
            )
            for label, found in list(own["labels"].items())[:LABELS_SHOWN]
        ]
        print_table(table, ["label", "words", *names], "l" + "r" * (len(names) + 1))
        if len(own["labels"]) > LABELS_SHOWN:
            msg.text(f"and {len(own['labels']) - LABELS_SHOWN} rarer labels (all with --output)")


def show_loss(loss: float, low: float, high: float, *, few: bool = False) -> str:
    return f"{100 * loss:.2f}" if few else f"{100 * loss:.2f} ({100 * low:.2f} to {100 * high:.2f})"


def depth(found: dict[str, float] | None) -> str:
    return "-" if found is None else f"{found['exit_layer_mean']:.2f}"
