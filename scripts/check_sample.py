"""Prove that the sample corpus is well-formed, and count what is in it."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from conllu import Block, Row, parse_rows, read_blocks
from corpora import CorpusError, Line, check_label, read_raw_lines
from wasabi import msg, table

PARTS = ("train", "dev", "test")
TYPES = ("PERSON", "ORG", "LOC", "PRODUCT", "EVENT")
MIN_SENTENCES = 600

UNUSED = ("lemma", "xpos", "feats", "head", "deprel", "deps")
COMMENTS = ["newdoc id", "sent_id", "text"]
COMMENT = re.compile(rf"# ({'|'.join(COMMENTS)}) = (.+)")
DOCUMENT = re.compile(r"[a-z]+-[0-9]{2}")
MISC = re.compile(r"_|SpaceAfter=No|NE=([^|]+)(\|SpaceAfter=No)?")
LABEL = re.compile(rf"[BI]-({'|'.join(TYPES)})")

app = typer.Typer(add_completion=False)


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
    except CorpusError as err:
        msg.fail(str(err), exits=1)
    else:
        print_counts(counts)


def check_sample(folder: Path) -> dict[str, Counts]:
    """Return the counts of each part, or raise CorpusError at the first fault."""
    paths = {part: folder / f"{part}.conllu" for part in PARTS}
    seen: dict[str, str] = {}
    parts = {part: read_part(path, seen) for part, path in paths.items()}
    total = sum(map(len, parts.values()))
    if total < MIN_SENTENCES:
        last = PARTS[-1]
        raise CorpusError(
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
    for block in read_blocks(check_blank_lines(path, read_raw_lines(path))):
        comments = parse_comments(path, block)
        first = block.line
        if "newdoc id" in comments:
            document = comments["newdoc id"]
            if not DOCUMENT.fullmatch(document):
                raise CorpusError(path, first, f"a document is genre-NN, not {document!r}")
            note_unique(seen, document, path, first)
            documents[document] = []
        elif not document:
            raise CorpusError(path, first, "the first sentence needs a newdoc id")
        # Unique over all parts, because the documents are.
        sent_id = f"{document}-{len(documents[document]) + 1}"
        id_line, text_line = (line.number for line in block.comments[-2:])
        if comments["sent_id"] != sent_id:
            raise CorpusError(
                path, id_line, f"expected sent_id {sent_id}, found {comments['sent_id']!r}"
            )
        words = parse_words(path, parse_rows(path, block))
        text = "".join(word.form + " " * word.space_after for word in words).rstrip()
        if text != comments["text"]:
            raise CorpusError(path, text_line, f"the words make up {text!r}")
        note_unique(seen, text.casefold(), path, text_line)
        documents[document].append(Sentence(document, words, first))
    for document, sents in documents.items():
        if len(sents) == 1:
            raise CorpusError(path, sents[0].line, f"{document} has only one sentence")
    return list(chain.from_iterable(documents.values()))


def note_unique(seen: dict[str, str], key: str, path: Path, line: int) -> None:
    if key in seen:
        raise CorpusError(path, line, f"{key!r} is already in {seen[key]}")
    seen[key] = f"{path}:{line}"


def check_blank_lines(path: Path, lines: Iterable[Line]) -> Iterator[Line]:
    """Pass the lines on; there must be exactly one blank line after each sentence."""
    previous = Line(0, "")
    for line in lines:
        if not line.content and not previous.content:
            raise CorpusError(path, line.number, "a blank line without a sentence before it")
        yield line
        previous = line
    if previous.content:
        raise CorpusError(path, previous.number, "no blank line after the last sentence")


def parse_comments(path: Path, block: Block) -> dict[str, str]:
    comments: dict[str, str] = {}
    for line in block.comments:
        match = COMMENT.fullmatch(line.content)
        if not match or match[1] in comments:
            raise CorpusError(path, line.number, f"unexpected comment {line.content!r}")
        comments[match[1]] = match[2]
    if list(comments) not in (COMMENTS, COMMENTS[1:]):
        raise CorpusError(
            path,
            block.line,
            "a sentence begins with the comments newdoc id (where a document begins), "
            f"sent_id and text, this one with {', '.join(comments) or 'none'}",
        )
    return comments


def parse_words(path: Path, rows: list[Row]) -> list[Word]:
    words: list[Word] = []
    for row in rows:
        if not row.id.isdecimal():
            raise CorpusError(path, row.line, f"every row must be a word, not {row.id!r}")
        if any(map(str.isspace, row.form)):
            raise CorpusError(path, row.line, f"FORM is empty or has a space: {row.form!r}")
        if row.upos == "_":
            raise CorpusError(path, row.line, "UPOS '_' is no part of speech")
        for column in UNUSED:
            value = getattr(row, column)
            if value != "_":
                raise CorpusError(path, row.line, f"{column.upper()} must be _, not {value!r}")
        match = MISC.fullmatch(row.misc)
        if not match:
            raise CorpusError(
                path, row.line, f"MISC is _, NE=..., SpaceAfter=No or both, not {row.misc!r}"
            )
        label = match[1] or "O"
        if match[1]:
            if not LABEL.fullmatch(label):
                raise CorpusError(
                    path, row.line, f"NE is B- or I- and one of {', '.join(TYPES)}, not {label!r}"
                )
            check_label(path, row.line, label, words[-1].label if words else "O")
        words.append(Word(row.form, label, not row.misc.endswith("SpaceAfter=No")))
    return words


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
