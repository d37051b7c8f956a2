"""Real documents: whether `nlp(text)` on raw, whole documents keeps what gold sentences promise,
what a word of a long document costs, and what becomes of entities where a text is cut otherwise.
"""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, NamedTuple

import spacy
import torch
import typer
from spacy.cli import project_run
from spacy.language import Language
from spacy.tokens import Doc, DocBin
from spacy.training import Example
from systems import train_plain  # noqa: F401 (it finds the scripts)
from wasabi import msg

from spacy_earlyexit import Search, calibrate
from spacy_earlyexit.cli.tables import print_table
from spacy_earlyexit.evaluation.benchmark import header, peak_memory
from spacy_earlyexit.evaluation.scores import evaluate, read_examples
from spacy_earlyexit.evaluation.statistics import count_hits
from spacy_earlyexit.files import replacing, write_json
from spacy_earlyexit.pipeline.finding import bare_doc, find_transformer

from report import markdown_table, replace_block  # isort: skip

ROOT = Path(__file__).parent.parent
ROWS = ROOT / "metrics" / "documents"
RESULTS = ROOT / "benchmarks" / "results" / "documents.json"
# Each regime is one recipe for training, calibration and evaluation.
REGIMES = {
    "sentences": {"vars.gold": "true", "vars.gold_flag": "--gold-preproc"},
    "documents": {"vars.gold": "false", "vars.gold_flag": ""},
}
SEARCH = Search(speedups=(2.0, 3.0, 4.0), max_losses=(), temperatures=(False,))
LENGTHS = (500, 5_000, 50_000)
GROUP = 3  # sentences of what stands for a paragraph

app = typer.Typer(add_completion=False)
Encoder = Annotated[str, typer.Option(help="Hub name or folder of a Hugging Face encoder")]
PipelinePath = Annotated[str, typer.Argument(help="Folder of a calibrated pipeline")]
TestPath = Annotated[Path, typer.Argument(help="Test data (.spacy)", exists=True)]
Point = Annotated[str, typer.Option(help="Operating point")]
Output = Annotated[Path | None, typer.Option("--json", help="File for the figures")]


class Corpus(NamedTuple):
    """tag (Optional[str]): The score of its tags, tag_acc or pos_acc.
    own (bool): Whether its workflow has an encoder of its own.
    """

    tag: str | None
    own: bool = False


CORPORA = {
    "ewt": Corpus("tag_acc"),
    "wnut17": Corpus(None),
    "sample": Corpus("pos_acc", own=True),
}


@app.command("run")
def run_cli(
    encoder: Encoder,
    mirror: Annotated[str, typer.Option(help="Folder with the corpora; network")] = "",
    corpora: Annotated[str, typer.Option(help="Names, with commas")] = ",".join(CORPORA),
    seeds: Annotated[str, typer.Option(help="With commas")] = "0,1,2",
    repeats: Annotated[int, typer.Option(help="Timed rounds (medians)", min=1)] = 3,
    rows: Annotated[Path, typer.Option(help="Folder of the figures of each seed")] = ROWS,
    output: Annotated[Path, typer.Option("--json", help="File for all rows")] = RESULTS,
) -> None:
    """Train both regimes, and score and time them on test. What has figures is not made again."""
    for seed in seeds.split(","):
        for name in corpora.split(","):
            if name not in CORPORA:
                msg.fail(f"{name} is none of {', '.join(CORPORA)}", exits=1)
            for regime, own in REGIMES.items():
                path = rows / f"{name}-{regime}-{seed}.json"
                if path.exists():
                    msg.info(f"{path.name} is there")
                    continue
                msg.divider(path.stem)
                common = {"vars.encoder": encoder, "vars.mirror": mirror, "vars.seed": seed}
                pipeline = train(name, regime, seed, common | own)
                write_json(path, measure(name, regime, pipeline, repeats))
                write_json(output, {**header(torch.get_num_threads()), "rows": means(rows)})
    print_rows(json.loads(output.read_text(encoding="utf8"))["rows"])


def train(name: str, regime: str, seed: str, common: dict[str, Any]) -> Path:
    """Both stages by the commands of project.yml, then points at 2x, 3x and 4x.

    common (Dict): Overrides of `vars`.
    RETURNS (Path): The calibrated pipeline; one that is there is taken.
    """
    path = ROOT / "training" / "documents" / f"{name}-{regime}-{seed}"
    if path.exists():
        msg.info(f"{path.relative_to(ROOT)} is there")
        return path
    steps = ["encoder"] if CORPORA[name].own else []
    for step in [*steps, *(f"{name}-{part}" for part in ("corpus", "joint", "self-sampling"))]:
        project_run(ROOT, step, overrides=common)
    nlp = spacy.load(ROOT / "training" / name / "self_sampling" / "model-last")
    dev = ROOT / "corpus" / name / "dev.spacy"
    examples = read_examples(nlp, dev, gold_preproc=regime == "sentences")
    calibrate(nlp, examples, SEARCH, progress=True)
    with replacing(path) as folder:
        nlp.to_disk(folder)
    return path


def measure(name: str, regime: str, pipeline: Path, repeats: int) -> dict[str, Any]:
    """Scores and speeds on test, in the regime that the pipeline was trained in.

    RETURNS (Dict[str, Any]): rows, one per point, and where they were measured.
    """
    nlp = spacy.load(pipeline)
    test = ROOT / "corpus" / name / "test.spacy"
    examples = read_examples(nlp, test, gold_preproc=regime == "sentences")
    found = evaluate(nlp, examples, repeats=repeats, progress=True)
    tag = CORPORA[name].tag
    rows = [
        {
            "corpus": name,
            "regime": regime,
            "point": row["point"],
            "ents_f": 100 * row["scores"]["ents_f"],
            "tag_acc": 100 * aligned_tags(nlp, examples, row["point"], tag) if tag else None,
            "mac_speedup": row["exit_speedup"],
            "wall_speedup": row["wall_speedup"],
            "words_per_second": row["words_per_second"],
        }
        for row in found["rows"]
    ]
    return {"machine": found["machine"], "versions": found["versions"], "rows": rows}


def aligned_tags(nlp: Language, examples: Sequence[Example], point: str, tag: str) -> float:
    """RETURNS (float): The accuracy of tags on tokens that are gold tokens, too. spaCy's own score
    counts a token that is cut otherwise as wrong, which no tagger can help.
    """
    with find_transformer(nlp).use(point):
        docs = list(nlp.pipe(bare_doc(eg.predicted) for eg in examples))
    pairs = zip(docs, examples, strict=True)
    counts = count_hits([Example(doc, eg.reference) for doc, eg in pairs])[tag].sum(axis=0)
    return float(counts[0] / max(counts[1], 1))


def means(folder: Path) -> list[dict[str, Any]]:
    """RETURNS (List[Dict[str, Any]]): Rows with means over the seeds, and how many there are."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        for row in json.loads(path.read_text(encoding="utf8"))["rows"]:
            groups.setdefault((row["corpus"], row["regime"], row["point"]), []).append(row)
    order = {name: i for i, name in enumerate([*CORPORA, *REGIMES])}
    found = []
    for corpus, regime, point in sorted(
        groups, key=lambda key: (order[key[0]], key[2] != "full", key[2], -order[key[1]])
    ):
        own = groups[corpus, regime, point]
        figures = {
            key: fmean(row[key] for row in own) if own[0][key] is not None else None
            for key in own[0]
            if key not in ("corpus", "regime", "point")
        }
        found.append(
            {"corpus": corpus, "regime": regime, "point": point, **figures, "seeds": len(own)}
        )
    return found


COLUMNS = ("corpus", "point", "text", "F1", "tags", "MACs", "wall-clock", "words/s", "seeds")


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["corpus"],
        row["point"],
        row["regime"],
        f"{row['ents_f']:.2f}",
        "" if row["tag_acc"] is None else f"{row['tag_acc']:.2f}",
        f"{row['mac_speedup']:.2f}x",
        f"{row['wall_speedup']:.2f}x",
        f"{row['words_per_second']:,.0f}",
        str(row["seeds"]),
    )


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    print_table([cells(row) for row in rows], COLUMNS, "lllrrrrrr")


@app.command("table")
def table_cli(
    source: Annotated[Path, typer.Option("--json", help="What run wrote")] = RESULTS,
    page: Annotated[Path | None, typer.Option(help="Replace the table in this file")] = None,
    corpora: Annotated[str, typer.Option(help="Names, with commas")] = ",".join(CORPORA),
) -> None:
    """Print the table, and put it into a page."""
    rows = json.loads(source.read_text(encoding="utf8"))["rows"]
    rows = [row for row in rows if row["corpus"] in corpora.split(",")]
    print_rows(rows)
    if page is not None:
        table = [
            [cell.replace("x", "×") if i > 4 else cell for i, cell in enumerate(cells(row))]
            for row in rows
        ]
        replace_block(page, "documents", markdown_table(list(COLUMNS), table))


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
    docs = list(DocBin().from_disk(test).get_docs(nlp.vocab))
    words = [token.text for doc in docs for token in doc]
    rows: list[dict[str, Any]] = []
    for length in (n for n in LENGTHS if n <= longest):
        own = (words * (length // len(words) + 1))[:length]
        times = max(10_000 // length, 1)
        seconds = [_seconds(nlp, own, times) for _ in range(repeats + 1)][1:]
        rows.append(
            {
                "words": length,
                "microseconds_per_word": 1e6 * sorted(seconds)[repeats // 2] / length,
                "peak_mb": peak_memory(),
            }
        )
    base = rows[0]["microseconds_per_word"]
    print_table(
        [
            (
                f"{row['words']:,}",
                f"{row['microseconds_per_word']:,.0f}",
                f"{row['microseconds_per_word'] / base:.2f}",
                f"{row['peak_mb']:,.0f}",
            )
            for row in rows
        ],
        ["words", "µs per word", f"to {LENGTHS[0]} words", "peak MB so far"],
        "rrrr",
    )
    if output is not None:
        figures = {"pipeline": pipeline, "point": point, "rows": rows}
        write_json(output, {**header(torch.get_num_threads()), **figures})


def _seconds(nlp: Language, words: list[str], times: int) -> float:
    """RETURNS (float): Seconds per document, one after the other."""
    docs = [Doc(nlp.vocab, words=words) for _ in range(times)]
    start = time.perf_counter()
    for doc in docs:
        nlp(doc)
    return (time.perf_counter() - start) / times


@app.command("forms")
def forms_cli(
    pipeline: PipelinePath,
    test: TestPath,
    points: Annotated[str, typer.Option(help="Operating points, with commas")] = "full,2x,4x",
    limit: Annotated[int, typer.Option(help="First documents only, 0 for all")] = 0,
    output: Output = None,
) -> None:
    """The same raw text as whole documents, as groups of sentences and as sentences: the share of
    entities that only one of the two has.
    """
    nlp = spacy.load(pipeline)
    docs = list(DocBin().from_disk(test).get_docs(nlp.vocab))[: limit or None]
    rows: list[dict[str, Any]] = []
    for point in points.split(","):
        with find_transformer(nlp).use(point):
            whole = entities(nlp, docs, lambda doc: [(0, len(doc.text))])
            groups = entities(nlp, docs, lambda doc: _cuts(doc, GROUP))
            sentences = entities(nlp, docs, lambda doc: _cuts(doc, 1))
        differ = {"groups": _differ(whole, groups), "sentences": _differ(whole, sentences)}
        rows.append({"point": point, "entities": len(whole), **differ})
    print_table(
        [
            (r["point"], f"{r['entities']:,}", f"{r['groups']:.1%}", f"{r['sentences']:.1%}")
            for r in rows
        ],
        ["point", "entities", f"{GROUP} sentences", "sentences"],
        "lrrr",
    )
    if output is not None:
        figures = {"pipeline": pipeline, "test": test.name, "rows": rows}
        write_json(output, {**header(torch.get_num_threads()), **figures})


def _cuts(doc: Doc, group: int) -> list[tuple[int, int]]:
    """RETURNS (List[Tuple[int, int]]): Characters of so many gold sentences at a time."""
    sents = list(doc.sents)
    parts = [sents[i : i + group] for i in range(0, len(sents), group)]
    return [(part[0].start_char, part[-1].end_char) for part in parts]


def entities(
    nlp: Language, docs: Iterable[Doc], cut: Callable[[Doc], list[tuple[int, int]]]
) -> set[tuple[int, int, int, str]]:
    """RETURNS (Set): Document, first and last-plus-one character, and label of each entity."""
    found = set()
    pieces = [
        (i, start, doc.text[start:end]) for i, doc in enumerate(docs) for start, end in cut(doc)
    ]
    for (i, start, _), doc in zip(pieces, nlp.pipe(text for *_, text in pieces), strict=True):
        found |= {(i, start + e.start_char, start + e.end_char, e.label_) for e in doc.ents}
    return found


def _differ(one: set[Any], other: set[Any]) -> float:
    return len(one ^ other) / max(len(one) + len(other), 1)


if __name__ == "__main__":
    app()
