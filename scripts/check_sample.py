"""Prove that the sample corpus is well-formed, and count what is in it."""

import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from wasabi import msg, table

PARTS = ("train", "dev", "test")
TYPES = ("PERSON", "ORG", "LOC", "PRODUCT", "EVENT")
UPOS = frozenset(
    "ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X".split()
)
MIN_SENTENCES = 600

COLUMNS = ("ID", "FORM", "LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC")
UNUSED = (2, 4, 5, 6, 7, 8)
COMMENTS = ["newdoc id", "sent_id", "text"]
COMMENT = re.compile(rf"# ({'|'.join(COMMENTS)}) = (.+)")
DOCUMENT = re.compile(r"[a-z]+-[0-9]{2}")
MISC = re.compile(r"_|SpaceAfter=No|NE=([^|]+)(\|SpaceAfter=No)?")
LABEL = re.compile(rf"[BI]-({'|'.join(TYPES)})")

app = typer.Typer(add_completion=False)


class SampleError(ValueError):
    """What is wrong with the corpus, and in which file and line."""

    def __init__(self, path: Path, line: int, problem: str) -> None:
        super().__init__(f"{path}:{line}: {problem}")


class Line(NamedTuple):
    number: int
    content: str


class Word(NamedTuple):
    form: str
    label: str
    space_after: bool


class Sentence(NamedTuple):
    document: str
    words: list[Word]
    line: int


class Name(NamedTuple):
    type: str
    text: str


class Counts(NamedTuple):
    documents: int
    sentences: int
    words: int
    names: Counter[str]
    unseen: float | None
    """Share of the name mentions whose name is not in train (None for train itself)."""


@app.command()
def check_sample_cli(
    folder: Annotated[Path, typer.Argument(help="Folder with train, dev and test.conllu")],
) -> None:
    """Check the sample corpus and print its counts; stop at the first error."""
    try:
        counts = check_sample(folder)
    except OSError as err:
        msg.fail(f"{err.filename}: {err.strerror}", exits=1)
    except SampleError as err:
        msg.fail(str(err), exits=1)
    else:
        print_counts(counts)


def check_sample(folder: Path) -> dict[str, Counts]:
    """Return the counts of each part, or raise SampleError at the first fault."""
    paths = {part: folder / f"{part}.conllu" for part in PARTS}
    seen: dict[str, str] = {}
    parts = {part: read_part(path, seen) for part, path in paths.items()}
    total = sum(map(len, parts.values()))
    if total < MIN_SENTENCES:
        last = PARTS[-1]
        raise SampleError(
            paths[last],
            parts[last][-1].line,
            f"the corpus ends after {total} sentences, it needs {MIN_SENTENCES}",
        )
    known = {name.text for sent in parts["train"] for name in find_names(sent.words)}
    return {
        part: count_part(sents, None if part == "train" else known) for part, sents in parts.items()
    }


def read_part(path: Path, seen: dict[str, str]) -> list[Sentence]:
    """`seen` tells where each document and each text of this and earlier parts was."""
    documents: dict[str, list[Sentence]] = {}
    document = ""
    for block in read_blocks(path):
        comments = parse_comments(path, block)
        first = block[0].number
        rows = block[len(comments) :]
        if "newdoc id" in comments:
            document = comments["newdoc id"]
            if not DOCUMENT.fullmatch(document):
                raise SampleError(path, first, f"a document is genre-NN, not {document!r}")
            note_unique(seen, document, path, first)
            documents[document] = []
        elif not document:
            raise SampleError(path, first, "the first sentence needs a newdoc id")
        # Unique over all parts, because the documents are.
        sent_id = f"{document}-{len(documents[document]) + 1}"
        id_line, text_line = (line.number for line in block[len(comments) - 2 : len(comments)])
        if comments["sent_id"] != sent_id:
            raise SampleError(
                path, id_line, f"expected sent_id {sent_id}, found {comments['sent_id']!r}"
            )
        words = parse_rows(path, rows)
        if not words:
            raise SampleError(path, text_line, "no words follow this text")
        text = "".join(word.form + " " * word.space_after for word in words).rstrip()
        if text != comments["text"]:
            raise SampleError(path, text_line, f"the words make up {text!r}")
        note_unique(seen, text.casefold(), path, text_line)
        documents[document].append(Sentence(document, words, first))
    for document, sents in documents.items():
        if len(sents) == 1:
            raise SampleError(path, sents[0].line, f"{document} has only one sentence")
    return list(chain.from_iterable(documents.values()))


def note_unique(seen: dict[str, str], key: str, path: Path, line: int) -> None:
    if key in seen:
        raise SampleError(path, line, f"{key!r} is already in {seen[key]}")
    seen[key] = f"{path}:{line}"


def read_blocks(path: Path) -> Iterator[list[Line]]:
    """Yield the lines of each sentence: its comments and its words, then a blank line."""
    block: list[Line] = []
    for line in read_lines(path):
        if line.content:
            block.append(line)
        elif block:
            yield block
            block = []
        else:
            raise SampleError(path, line.number, "a blank line without a sentence before it")
    if block:
        raise SampleError(path, block[-1].number, "no blank line after the last sentence")


def read_lines(path: Path) -> Iterator[Line]:
    for number, line in enumerate(path.read_bytes().removesuffix(b"\n").split(b"\n"), start=1):
        try:
            yield Line(number, line.decode("utf-8"))
        except UnicodeDecodeError as err:
            raise SampleError(path, number, f"not UTF-8: {err.reason}") from err


def parse_comments(path: Path, block: list[Line]) -> dict[str, str]:
    comments: dict[str, str] = {}
    for line in block:
        if not line.content.startswith("#"):
            break
        match = COMMENT.fullmatch(line.content)
        if not match or match[1] in comments:
            raise SampleError(path, line.number, f"unexpected comment {line.content!r}")
        comments[match[1]] = match[2]
    if list(comments) not in (COMMENTS, COMMENTS[1:]):
        raise SampleError(
            path,
            block[0].number,
            "a sentence begins with the comments newdoc id (where a document begins), "
            f"sent_id and text, this one with {', '.join(comments) or 'none'}",
        )
    return comments


def parse_rows(path: Path, rows: list[Line]) -> list[Word]:
    words: list[Word] = []
    for row in rows:
        columns = row.content.split("\t")
        if len(columns) != len(COLUMNS):
            raise SampleError(path, row.number, f"expected 10 columns, found {len(columns)}")
        if columns[0] != str(len(words) + 1):
            raise SampleError(
                path, row.number, f"expected ID {len(words) + 1}, found {columns[0]!r}"
            )
        form, upos, misc = columns[1], columns[3], columns[9]
        if not form or any(map(str.isspace, form)):
            raise SampleError(path, row.number, f"FORM is empty or has a space: {form!r}")
        if upos not in UPOS:
            raise SampleError(path, row.number, f"UPOS {upos!r} is not in Universal Dependencies")
        for column in UNUSED:
            if columns[column] != "_":
                raise SampleError(
                    path, row.number, f"{COLUMNS[column]} must be _, not {columns[column]!r}"
                )
        match = MISC.fullmatch(misc)
        if not match:
            raise SampleError(
                path, row.number, f"MISC is _, NE=..., SpaceAfter=No or both, not {misc!r}"
            )
        label = match[1] or "O"
        if match[1]:
            check_label(path, row.number, label, words[-1].label if words else "O")
        words.append(Word(form, label, not misc.endswith("SpaceAfter=No")))
    return words


def check_label(path: Path, number: int, label: str, previous: str) -> None:
    """Check a label against IOB2 and against the label of the word before it."""
    if not LABEL.fullmatch(label):
        raise SampleError(
            path, number, f"NE is B- or I- and one of {', '.join(TYPES)}, not {label!r}"
        )
    if label.startswith("I-") and label[2:] != previous[2:]:
        raise SampleError(path, number, f"{label} follows {previous}, not a {label[2:]} word")


def find_names(words: list[Word]) -> list[Name]:
    """Names are told apart by their words alone, regardless of case."""
    spans: list[list[Word]] = []
    for word in words:
        if word.label.startswith("B-"):
            spans.append([word])
        elif word.label.startswith("I-"):
            spans[-1].append(word)
    return [
        Name(span[0].label[2:], " ".join(word.form for word in span).casefold()) for span in spans
    ]


def count_part(sents: list[Sentence], known: set[str] | None) -> Counts:
    names = [name for sent in sents for name in find_names(sent.words)]
    unseen = None
    if known is not None and names:
        unseen = sum(name.text not in known for name in names) / len(names)
    return Counts(
        documents=len({sent.document for sent in sents}),
        sentences=len(sents),
        words=sum(len(sent.words) for sent in sents),
        names=Counter(name.type for name in names),
        unseen=unseen,
    )


def print_counts(counts: dict[str, Counts]) -> None:
    header = ("part", "documents", "sentences", "words", *TYPES, "names", "not in train")
    rows: list[list[str]] = []
    totals: Counter[int] = Counter()
    for part, c in counts.items():
        figures = [c.documents, c.sentences, c.words, *(c.names[type_] for type_ in TYPES)]
        figures.append(c.names.total())
        totals.update(dict(enumerate(figures)))
        unseen = "-" if c.unseen is None else f"{100 * c.unseen:.1f} %"
        rows.append([part, *map(str, figures), unseen])
    footer = ["all", *(str(totals[i]) for i in range(len(header) - 2)), ""]
    aligns = ("l", *"r" * (len(header) - 1))
    print(table(rows, header=header, footer=footer, aligns=aligns, divider=True))


if __name__ == "__main__":
    app()
