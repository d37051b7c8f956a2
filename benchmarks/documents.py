"""Long documents: how far the speed-up of single sentences carries over, and cost per word."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import spacy
import torch
import typer
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Corpus, Example
from spacy.util import registry
from systems import train_plain
from wasabi import msg

from spacy_earlyexit.cli.tables import print_table
from spacy_earlyexit.evaluation.benchmark import header, peak_memory
from spacy_earlyexit.evaluation.scores import measure_points
from spacy_earlyexit.files import write_json
from spacy_earlyexit.pipeline.finding import bare_doc, find_transformer

# WNUT-17 has single sentences, of which documents have to be made.
JOINED_WORDS = 300
LENGTHS = (100, 1_000, 10_000, 50_000)

app = typer.Typer(add_completion=False)
PipelinePath = Annotated[str, typer.Argument(help="Folder of a calibrated pipeline")]
TestPath = Annotated[Path, typer.Argument(help="Test data (.spacy)")]
Point = Annotated[str, typer.Option(help="Operating point")]
Output = Annotated[Path | None, typer.Option("--json", help="File for the figures")]


@app.command("speedup")
def speedup_cli(
    pipeline: PipelinePath,
    test: TestPath,
    point: Point = "3x",
    words: Annotated[
        int, typer.Option(help="Join sentences to so many words; 0: the data's own documents")
    ] = JOINED_WORDS,
    repeats: Annotated[int, typer.Option(help="Timed rounds", min=1)] = 3,
    limit: Annotated[int, typer.Option(help="First documents only, 0 for all")] = 0,
    output: Output = None,
) -> None:
    """The same point on single sentences and on documents of them, whole or by sentences."""
    nlp = spacy.load(pipeline)
    transformer = find_transformer(nlp)
    sentences = list(Corpus(test, gold_preproc=True, limit=limit)(nlp))
    documents = join(sentences, words) if words else as_they_are(nlp, test, limit)
    forms: dict[str, tuple[Sequence[Example], dict[str, Any]]] = {
        "single sentences": (sentences, {"@span_getters": "spacy-transformers.doc_spans.v1"}),
        "documents": (documents, {"@span_getters": "spacy-transformers.doc_spans.v1"}),
        "documents, by sentence": (
            documents,
            {"@span_getters": "spacy-transformers.sent_spans.v1"},
        ),
    }
    rows: list[dict[str, Any]] = []
    for name, (examples, getter) in forms.items():
        transformer.model.layers[0].attrs["get_spans"] = registry.resolve({"g": getter})["g"]
        settings = {"full": None, point: point}
        full, fast = measure_points(nlp, transformer, examples, settings, repeats=repeats)
        rows.append(
            {
                "form": name,
                "documents": len(examples),
                "scores_full": full["scores"],
                "scores": fast["scores"],
                "mac_speedup": fast["exit_speedup"],
                "wall_speedup": fast["wall_speedup"],
                "words_per_second": fast["words_per_second"],
            }
        )
        rows[-1]["mac_ratio"] = rows[-1]["mac_speedup"] / rows[0]["mac_speedup"]
        rows[-1]["wall_ratio"] = rows[-1]["wall_speedup"] / rows[0]["wall_speedup"]
    scores = list(rows[0]["scores"])
    msg.divider(f"{pipeline}, {point}, {test}")
    print_table(
        [
            (
                row["form"],
                f"{row['documents']:,}",
                *(f"{100 * row['scores_full'][key]:.2f}" for key in scores),
                *(f"{100 * row['scores'][key]:.2f}" for key in scores),
                f"{row['mac_speedup']:.2f}x ({row['mac_ratio']:.2f})",
                f"{row['wall_speedup']:.2f}x ({row['wall_ratio']:.2f})",
                f"{row['words_per_second']:,.0f}",
            )
            for row in rows
        ],
        ["", "docs", *(f"{key}, full" for key in scores), *scores, "MACs", "wall-clock", "words/s"],
        "l" + "r" * (4 + 2 * len(scores)),
    )
    if output is not None:
        figures = {"pipeline": pipeline, "point": point, "test": test.name, "words": words}
        write_json(output, {**header(torch.get_num_threads()), **figures, "rows": rows})


@app.command("length")
def length_cli(
    pipeline: PipelinePath,
    test: TestPath,
    point: Point = "3x",
    repeats: Annotated[int, typer.Option(help="Timed rounds", min=1)] = 3,
    longest: Annotated[int, typer.Option(help="Leave out longer documents")] = LENGTHS[-1],
    output: Output = None,
) -> None:
    """Time per word of one document, by its length, and the memory that it takes."""
    nlp = spacy.load(pipeline)
    nlp.max_length = 10**8
    find_transformer(nlp).exit = point
    words = [token.text for eg in Corpus(test, gold_preproc=True)(nlp) for token in eg.predicted]
    rows: list[dict[str, Any]] = []
    for length in (n for n in LENGTHS if n <= longest):
        own = (words * (length // len(words) + 1))[:length]
        seconds = [_seconds(nlp, own) for _ in range(repeats + 1)][1:]
        rows.append(
            {
                "words": length,
                "microseconds_per_word": 1e6 * sorted(seconds)[repeats // 2] / length,
                "peak_mb": peak_memory(),
            }
        )
    base = next((r["microseconds_per_word"] for r in rows if r["words"] == 1_000), None)
    print_table(
        [
            (
                f"{row['words']:,}",
                f"{row['microseconds_per_word']:,.0f}",
                f"{row['microseconds_per_word'] / base:.2f}" if base else "",
                f"{row['peak_mb']:,.0f}",
            )
            for row in rows
        ],
        ["words", "µs per word", "to 1,000 words", "peak MB so far"],
        "rrrr",
    )
    if output is not None:
        figures = {"pipeline": pipeline, "point": point, "rows": rows}
        write_json(output, {**header(torch.get_num_threads()), **figures})


def _seconds(nlp: Language, words: list[str]) -> float:
    doc = Doc(nlp.vocab, words=words)
    start = time.perf_counter()
    nlp(doc)
    return time.perf_counter() - start


def as_they_are(nlp: Language, test: Path, limit: int) -> list[Example]:
    """The documents of the data, with its tokens and sentence boundaries."""
    references = [eg.reference for eg in Corpus(test, limit=limit)(nlp)]
    return [Example(bare_doc(gold), gold) for gold in references]


def join(sentences: Sequence[Example], words: int) -> list[Example]:
    """Documents of about so many words, with the sentences' boundaries and gold."""
    joined = []
    parts = [eg.reference for eg in sentences]
    for group in train_plain.by_words(range(len(parts)), parts, words):
        gold = Doc.from_docs([parts[i] for i in group])
        lengths = [len(parts[i]) for i in group]
        starts = set(np.cumsum([0, *lengths[:-1]]).tolist())
        for token in gold:
            token.is_sent_start = token.i in starts
        joined.append(Example(bare_doc(gold), gold))
    return joined


if __name__ == "__main__":
    app()
