"""Print what the workflow measured as one Markdown table; put it into README.md if asked to."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from wasabi import msg

from spacy_earlyexit.files import write_bytes

METRICS = Path("metrics")
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
HEADER = [
    "system",
    "dev F1",
    "test F1",
    "mean exit layer",
    "MAC speed-up",
    "words/s",
    "wall-clock speed-up",
]


def report_cli(
    name: Annotated[str, typer.Argument(help="What the run is called: vars.name")],
    metrics: Annotated[Path, typer.Option(help="Folder of the JSON files", exists=True)] = METRICS,
    readme: Annotated[Path | None, typer.Option(help="Replace the table in this file")] = None,
) -> None:
    """Print the table of what a run measured: the plain peer, stage 1, stage 2."""
    paths = [metrics / f"{name}_{part}.json" for part in ("plain", "joint", "self_sampling")]
    figures = [json.loads(path.read_text(encoding="utf8")) for path in paths if path.is_file()]
    if not figures:
        msg.fail(f"There is none of {', '.join(map(str, paths))}: run the workflow", exits=1)
    table = report(figures)
    print(table)
    if readme:
        text = readme.read_text(encoding="utf8")
        if BEGIN not in text or END not in text:
            msg.fail(f"{readme} has no lines '{BEGIN}' and '{END}'", exits=1)
        before, rest = text.split(BEGIN, 1)
        after = rest.split(END, 1)[1]
        write_bytes(readme, f"{before}{BEGIN}\n{table}\n{END}{after}".encode())
        msg.good(f"Updated {readme}")


def report(figures: list[dict[str, Any]]) -> str:
    """figures (List[Dict]): Plain metrics (of train_plain.py) and pipelines (of evaluate.py).

    RETURNS (str): A Markdown table, and a line that says where it was measured.
    """
    rows: list[list[str]] = []
    notes: list[str] = []
    for own in figures:
        if own.get("system") == "plain":
            speed = f"{own['words_per_second']:,.0f}" if own["words_per_second"] else ""
            test = f"{100 * own['test']['f']:.2f}" if own["test"] else ""
            dev = f"{100 * own['dev']['f']:.2f}"
            rows.append(["plain fine-tuned encoder (Hugging Face)", dev, test, "", "", speed, ""])
        else:
            stage = "stage 2" if "self_sampling" in own["pipeline"] else "stage 1"
            rows += [pipeline_row(stage, row) for row in own["rows"]]
            notes.append(
                f"{own['words']:,} test words on {own['machine']['threads']} threads of "
                f"{own['machine']['cpu']}, torch {own['versions']['torch']}"
            )
    lines = [HEADER, ["---"] + ["---:"] * (len(HEADER) - 1), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([table, *sorted({f"Measured with {note}." for note in notes})])


def pipeline_row(stage: str, row: dict[str, Any]) -> list[str]:
    timed = "words_per_second" in row
    return [
        f"{stage}, {row['setting']}",
        f"{100 * row['dev_score']:.2f}",
        f"{100 * row['ents_f']:.2f}",
        f"{row['exit_layer_mean']:.2f}",
        f"{row['exit_speedup']:.2f}×",
        f"{row['words_per_second']:,.0f}" if timed else "",
        f"{row['wall_speedup']:.2f}×" if timed else "",
    ]


if __name__ == "__main__":
    typer.run(report_cli)
