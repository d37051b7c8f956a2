"""Score and time a trained pipeline at full depth and at several exit settings."""

import platform
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import spacy
import torch
import typer
from spacy.training import Corpus
from wasabi import msg

from spacy_earlyexit.calibration import Probe, find_threshold
from spacy_earlyexit.criteria import ExitCriterion, SentenceExit, TokenExit
from spacy_earlyexit.evaluation import compare_settings, find_transformer
from spacy_earlyexit.files import write_json


def evaluate_cli(
    pipeline: Annotated[Path, typer.Argument(help="Trained pipeline", exists=True)],
    test_path: Annotated[Path, typer.Argument(help="Test data (.spacy)", exists=True)],
    dev_path: Annotated[
        Path, typer.Option("--dev", help="Dev data (.spacy): thresholds are searched on it")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file for the figures")],
    speedups: Annotated[str, typer.Option(help="MAC speed-ups, with commas")] = "2,3,4",
    window: Annotated[int, typer.Option(help="Window of token exit")] = 2,
    repeats: Annotated[int, typer.Option(help="Timed rounds (medians)")] = 5,
    limit: Annotated[int, typer.Option(help="First documents only, 0 for all")] = 0,
    raw_text: Annotated[bool, typer.Option(help="One more row: from the text, not tokens")] = False,
) -> None:
    """Thresholds for each speed-up are searched on dev; scores and times are of test."""
    figures = evaluate(
        pipeline,
        test_path,
        dev_path,
        speedups=[float(s) for s in speedups.split(",")],
        window=window,
        repeats=repeats,
        limit=limit,
        raw_text=raw_text,
    )
    write_json(output, figures)
    msg.good(f"Saved the figures to {output}")


def evaluate(
    pipeline: Path,
    test_path: Path,
    dev_path: Path,
    *,
    speedups: list[float],
    window: int = 2,
    repeats: int = 5,
    limit: int = 0,
    raw_text: bool = False,
) -> dict[str, Any]:
    """See evaluate_cli.

    RETURNS (Dict[str, Any]): A header (machine, versions) and the rows of compare_settings, each
        with the dev score of its setting, but for that of the raw text.
    """
    nlp = spacy.load(pipeline)
    try:
        transformer = find_transformer(nlp)
    except ValueError as error:
        msg.fail(str(error), exits=1)
    # As in training: gold tokens, or those of the text, such as characters.
    gold_preproc = nlp.config["corpora"]["dev"].get("gold_preproc", True)
    dev, test = (
        list(Corpus(path, gold_preproc=gold_preproc, limit=limit)(nlp))
        for path in (dev_path, test_path)
    )
    settings: dict[str, ExitCriterion | None] = {"full depth": None}
    dev_scores = {"full depth": Probe(transformer, dev)(None)}
    rules: dict[str, Callable[[float], ExitCriterion]] = {
        "token exit": partial(TokenExit, window=window),
        "sentence exit": SentenceExit,
    }
    for rule, criterion in rules.items():
        probe = Probe(transformer, dev, criterion)
        for speedup in speedups:
            name = f"{rule} {speedup:g}x"
            try:
                found = find_threshold(probe, speedup)
            except ValueError as error:  # out of reach: the other rows still stand
                msg.warn(f"{name} left out: {error}")
                continue
            dev_scores[name], settings[name] = found, found.criterion
            msg.info(f"{name}: {found.criterion}, from dev")
    rows = compare_settings(nlp, transformer, test, settings, repeats=repeats)
    for row in rows:
        on_dev = dev_scores[row["setting"]]
        row.update(dev_score=on_dev.score, dev_speedup=on_dev.speedup)
    if raw_text:
        texts = list(Corpus(test_path, gold_preproc=False, limit=limit)(nlp))
        rows += compare_settings(nlp, transformer, texts, {"full depth, raw text": None}, repeats=0)
    return {
        "pipeline": str(pipeline),
        "test": test_path.name,
        "documents": len(test),
        "words": sum(len(eg.predicted) for eg in test),
        "window": window,
        "machine": {"cpu": cpu_name(), "threads": torch.get_num_threads()},
        "versions": {name: version(name) for name in ("spacy", "torch", "spacy-earlyexit")},
        "rows": rows,
    }


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    typer.run(evaluate_cli)
