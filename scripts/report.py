"""Print what a workflow measured as a table; put it into README.md if asked to."""

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

import typer
from wasabi import msg

from spacy_earlyexit.cli.tables import print_table
from spacy_earlyexit.evaluation.scores import FORMAT
from spacy_earlyexit.files import write_bytes

# The scores that have a column where they were measured, and what the plain peer calls them.
SCORES = {
    "ents_f": ("NER F1", "ner", "f"),
    "tag_acc": ("tag accuracy", "tag", "acc"),
    "token_f": ("segmentation F1", "seg", "f"),
    "pos_acc": ("tag accuracy (UPOS)", "pos", "acc"),
}
PLAIN = "plain fine-tuned encoder (Hugging Face)"
# What the columns are called where there are 80 characters for all.
SHORT = {
    "NER F1": "NER",
    "tag accuracy": "tags",
    "tag accuracy (UPOS)": "tags",
    "segmentation F1": "words",
    "mean exit layer": "exit layer",
    "MAC speed-up": "MACs",
    "wall-clock speed-up": "time",
}
COSTS = ["mean exit layer", "MAC speed-up", "words/s", "wall-clock speed-up"]


def report_cli(
    name: Annotated[str, typer.Argument(help="What the run is called")],
    metrics: Annotated[Path, typer.Option(help="Folder of the JSON files", exists=True)] = Path(
        "metrics"
    ),
    readme: Annotated[Path | None, typer.Option(help="Replace the table in this file")] = None,
) -> None:
    """Print the table of what a run measured: the plain peer, stage 1, stage 2."""
    figures = []
    for part in ("plain*", "joint", "self_sampling"):
        for path in sorted(metrics.glob(f"{name}_{part}.json")):
            figures.append(json.loads(path.read_text(encoding="utf8")))
            found = figures[-1].get("format")
            if figures[-1].get("system") != "plain" and found != FORMAT:
                msg.fail(
                    f"{path} is of the format {found}, not {FORMAT}",
                    f"Make it anew: python -m spacy project run {name}-evaluate",
                    exits=1,
                )
    if not figures:
        msg.fail(f"There is no {metrics / name}_*.json: run the workflow first", exits=1)
    header, rows, notes = report(figures)
    # What is lost and the scores of dev are in the page, which is wider than a terminal.
    shown = [i for i, name in enumerate(header) if name not in ("lost", "dev score")]
    cells = [tuple(row[i].replace(PLAIN, "Hugging Face") for i in shown) for row in rows]
    names = [SHORT.get(header[i], header[i]) for i in shown]
    print_table(cells, names, "l" + "r" * (len(shown) - 1))
    if not readme:
        notes = [note for note in notes if not note.startswith("Lost")]
    print("\n".join(textwrap.fill(note, 80) for note in notes))
    if readme:
        content = "\n\n".join([markdown_table(header, rows), *notes])
        replace_block(readme, f"results {name}", content)
        msg.good(f"Updated {readme}")


def report(figures: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]], list[str]]:
    """figures (Sequence[Dict]): Plain metrics (of train_plain.py) and pipelines (of spacy
        earlyexit evaluate).

    RETURNS (Tuple[List[str], List[List[str]], List[str]]): Header, rows, and lines that say where
        it was measured. Scores are of test, in percent.
    """
    plain = {own["task"]: own for own in figures if own.get("system") == "plain"}
    pipelines = [own for own in figures if own.get("system") != "plain"]
    measured = {key for own in pipelines for row in own["rows"] for key in row["scores"]}
    known = [key for key, (_, task, _) in SCORES.items() if key in measured or task in plain]
    # Where it is known: what is lost against the same pipeline's full depth.
    lost = any("losses" in row for own in pipelines for row in own["rows"])
    columns = interleave([SCORES[key][0] for key in known], ["lost" for _ in known if lost])
    header = ["system", "dev score", *columns, *COSTS]
    rows: list[list[str]] = []
    notes: set[str] = set()
    for task, own in plain.items():
        scores = {key: own["test"] for key, (_, of, _) in SCORES.items() if of == task}
        kind = SCORES[next(iter(scores))][2]
        rows.append(
            [
                f"{PLAIN}, {task}",
                percent(own["dev"][kind]),
                *interleave(
                    [percent(scores[key][kind]) if scores.get(key) else "" for key in known],
                    ["" for _ in known if lost],
                ),
                "",
                "",
                number(own["words_per_second"], ",.0f"),
                "",
            ]
        )
    for own in pipelines:
        stage = "stage 2" if "self_sampling" in own["pipeline"] else "stage 1"
        for row in own["rows"]:
            rows.append(
                [
                    f"{stage}, {setting_name(row)}",
                    percent(row.get("dev_score")),
                    *interleave(
                        [percent(row["scores"].get(key)) for key in known],
                        [loss(row, key) for key in known if lost],
                    ),
                    number(row["exit_layer_mean"], ".2f"),
                    number(row["exit_speedup"], ".2f", "×"),
                    number(row.get("words_per_second"), ",.0f"),
                    number(row.get("wall_speedup"), ".2f", "×"),
                ]
            )
        if not any("words_per_second" in row for row in own["rows"]):
            continue
        if lost:
            notes.add(
                "Lost: against full depth of the same pipeline, with a 95 % interval (bootstrap "
                "over documents)."
            )
        notes.add(
            f"Timed on {own['words']:,} test words with {own['machine']['threads']} threads of "
            f"{own['machine']['cpu']}, torch {own['versions']['torch']}."
        )
    return header, rows, sorted(notes)


def replace_block(page: Path, name: str, content: str) -> None:
    """Put content between the lines `<!-- NAME: begin -->` and `<!-- NAME: end -->` of a page."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    text = page.read_text(encoding="utf8")
    if begin not in text or end not in text:
        msg.fail(f"{page} has no lines '{begin}' and '{end}'", exits=1)
    before, rest = text.split(begin, 1)
    after = rest.split(end, 1)[1]
    write_bytes(page, f"{before}{begin}\n{content}\n{end}{after}".encode())


def setting_name(row: dict[str, Any]) -> str:
    """What a point is: full depth, or a kind of exit at a speed."""
    if row["exit"] is None:
        return row["point"].replace("full", "full depth", 1)
    kind = "sentence" if "SentenceExit" in row["exit"]["@misc"] else "token"
    return f"{kind} exit {row['point'].removeprefix(f'{kind}-')}"


def interleave(scores: list[str], losses: list[str]) -> list[str]:
    """Each score with its loss behind it, or the scores alone if there are no losses."""
    return [cell for pair in zip(scores, losses, strict=False) for cell in pair] or scores


def loss(row: dict[str, Any], key: str) -> str:
    """What a row lost of a score, with the interval of 95 %."""
    if row["exit"] is None or key not in row.get("losses", {}):
        return ""
    value, low, high = (100 * x for x in row["losses"][key])
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def percent(score: float | None) -> str:
    return number(score and 100 * score, ".2f")


def number(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"


def mean_and_spread(values: Sequence[float], form: str = ".2f") -> str:
    """Mean and standard deviation, in points of 100; of one value the value."""
    text = f"{100 * fmean(values):{form}}"
    return f"{text} ± {100 * stdev(values):.2f}" if len(values) > 1 else text


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    typer.run(report_cli)
