"""Compare what wins where entities and words cross: see `wins` of earlyexit_segmenter."""

from pathlib import Path
from statistics import fmean
from typing import Annotated

import spacy
import typer
from spacy.training import Corpus
from wasabi import msg

from spacy_earlyexit.evaluation.scores import measure_points
from spacy_earlyexit.pipeline.finding import find_transformer
from spacy_earlyexit.pipeline.segmenter import WINNERS, EarlyExitSegmenter


def compare_cli(
    pipeline: Annotated[Path, typer.Argument(help="Trained pipeline", exists=True)],
    dev_path: Annotated[Path, typer.Argument(help="Dev data (.spacy)", exists=True)],
    limit: Annotated[int, typer.Option(help="First documents only, 0 for all")] = 0,
) -> None:
    """Print the scores of words and entities on dev, at full depth and at each operating point."""
    nlp = spacy.load(pipeline)
    segmenters = [pipe for _, pipe in nlp.pipeline if isinstance(pipe, EarlyExitSegmenter)]
    if len(segmenters) != 1:
        msg.fail(f"{pipeline} needs one earlyexit_segmenter, but has {len(segmenters)}", exits=1)
    transformer = find_transformer(nlp)
    examples = list(Corpus(dev_path, limit=limit)(nlp))
    settings = {"full": None, **{name: name for name in transformer.points}}
    lines = []
    for winner in WINNERS:
        segmenters[0].wins = winner
        for row in measure_points(nlp, transformer, examples, settings, repeats=0):
            scores = [row["scores"].get(key) for key in ("token_f", "ents_f")]
            known = [score for score in scores if score is not None]
            scores.append(fmean(known) if known else None)
            shown = ["" if score is None else f"{100 * score:.2f}" for score in scores]
            lines.append([winner, row["point"], *shown])
    msg.table(
        lines,
        header=["wins", "exit", "segmentation F1", "NER F1", "mean"],
        divider=True,
        aligns=["l", "l", "r", "r", "r"],
    )


if __name__ == "__main__":
    typer.run(compare_cli)
