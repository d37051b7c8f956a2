"""python -m spacy earlyexit convert"""

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from wasabi import msg

from .options import CodePath, Force, GpuId, setup_device
from .tables import parse_speedups, print_speeds


class Labels(str, Enum):
    """Where the labels come from that the converted pipeline learns from."""

    fill = "fill"
    gold = "gold"
    own = "own"


def convert_cli(
    pipeline: Annotated[
        str, typer.Argument(help="Folder or package of a pipeline with spacy-transformers")
    ],
    train_path: Annotated[Path, typer.Argument(help="Training data (.spacy)", exists=True)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the new pipeline")],
    dev_path: Annotated[
        Path | None,
        typer.Option("--dev", help="Dev data (.spacy); without it, a tenth of the training data"),
    ] = None,
    labels: Annotated[
        Labels,
        typer.Option(
            help="fill: the pipeline's own predictions where a document has no gold for a layer; "
            "gold: gold only; own: predictions only"
        ),
    ] = Labels.fill,
    stage1_steps: Annotated[
        int, typer.Option(help="Steps in which only the off-ramps learn", min=1)
    ] = 200,
    stage2_steps: Annotated[
        int,
        typer.Option(
            help="Steps of self-sampling, in which encoder and heads learn too; 0: they stay as "
            "they are",
            min=0,
        ),
    ] = 400,
    batch_words: Annotated[int, typer.Option(help="Words of a training batch", min=1)] = 400,
    learn_rate: Annotated[
        float,
        typer.Option(help="Learning rate of heads and off-ramps in stage 2 (encoder: a tenth)"),
    ] = 1e-3,
    speedups: Annotated[
        str, typer.Option(help="MAC speed-ups of the operating points, with commas")
    ] = "2,3,4",
    point: Annotated[
        str, typer.Option(help="The operating point in force in the new pipeline, or 'full'")
    ] = "2x",
    repeats: Annotated[int, typer.Option(help="Timed rounds (medians); 0: scores only", min=0)] = 3,
    seed: Annotated[int, typer.Option(help="Random seed")] = 0,
    gpu_id: GpuId = -1,
    force: Force = False,
    code_path: CodePath = None,
) -> None:
    """Make a pipeline that uses spacy-transformers faster: keep its encoder and heads, add exits,
    train them, and show what was gained and lost on dev data.
    """
    from spacy.cli._util import import_code

    from ..conversion.convert import convert

    import_code(code_path)
    setup_device(gpu_id)
    try:
        rows = convert(
            pipeline,
            train_path,
            output,
            dev_path=dev_path,
            labels=labels.value,
            stage1_steps=stage1_steps,
            stage2_steps=stage2_steps,
            batch_words=batch_words,
            learn_rate=learn_rate,
            speedups=parse_speedups(speedups),
            point=point,
            repeats=repeats,
            seed=seed,
            gpu_id=gpu_id,
            force=force,
            progress=True,
        )
    except (OSError, ValueError) as error:
        msg.fail(f"Can't convert the pipeline '{pipeline}'", str(error), exits=1)
    print_rows(rows)
    msg.text(summary(rows))


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    """Print what convert returned as a table."""
    names = [f"{row['system']} (in force)" if row["in_force"] else row["system"] for row in rows]
    print_speeds("On the dev data", names, rows)


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """RETURNS (str): What the setting in force gained and lost against the original."""
    original = rows[0]
    row = next(row for row in rows if row["in_force"])
    gained = [f"{row['exit_speedup']:.2f}x fewer MACs"]
    if "words_per_second" in row:
        words = f"{original['words_per_second']:,.0f} -> {row['words_per_second']:,.0f} words/s"
        gained.append(f"{row['wall_speedup']:.2f}x as fast ({words})")
    changes = [
        f"{key} {100 * (row['scores'].get(key, 0.0) - value):+.2f}"
        for key, value in original["scores"].items()
    ]
    scores = ", ".join(changes) or "no scores"
    return f"At {row['system']}, against the original: {', '.join(gained)}; {scores}"
