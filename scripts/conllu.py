"""Read CoNLL-U, the format of Universal Dependencies, and name the line of what is wrong in it."""

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from corpora import CorpusError, Line

UPOS = frozenset(
    "ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X".split()
)
COMMENT = re.compile(r"#\s*(newdoc id|sent_id|text)\s*=\s*(.*)")
COLUMNS = ("ID", "FORM", "LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC")


class Block(NamedTuple):
    """The lines of one sentence."""

    comments: list[Line]
    rows: list[Line]

    @property
    def line(self) -> int:
        return (self.comments or self.rows)[0].number


class Row(NamedTuple):
    """A word, or what else has a row: a multiword token (ID 1-2), an empty node (ID 1.1)."""

    line: int
    id: str
    form: str
    lemma: str
    upos: str
    xpos: str
    feats: str
    head: str
    deprel: str
    deps: str
    misc: str


class Token(NamedTuple):
    """A piece of the text: a word, or a multiword token with the words that it stands for."""

    row: Row
    words: list[Row]


def read_blocks(lines: Iterable[Line]) -> Iterator[Block]:
    """Group lines by the blank ones between them; the last sentence may do without."""
    block = Block([], [])
    for line in lines:
        if not line.content:
            if any(block):
                yield block
            block = Block([], [])
        elif line.content.startswith("#") and not block.rows:
            block.comments.append(line)
        else:
            block.rows.append(line)
    if any(block):
        yield block


def parse_comments(block: Block) -> dict[str, str]:
    matches = (COMMENT.fullmatch(line.content) for line in block.comments)
    return {match[1]: match[2] for match in matches if match}


def find_sent_id(
    path: Path, block: Block, comments: Mapping[str, str], seen: Container[str]
) -> str:
    sent_id = comments.get("sent_id")
    if sent_id is None:
        raise CorpusError(path, block.line, "the sentence has no sent_id")
    if sent_id in seen:
        raise CorpusError(path, block.line, f"a second sentence with sent_id {sent_id}")
    return sent_id


def parse_rows(path: Path, block: Block) -> list[Row]:
    """Split the rows of a sentence and check all but MISC, which is the business of the caller."""
    rows: list[Row] = []
    words = empty_nodes = 0
    # The last multiword token, and the ID of its last word.
    multiword, end = 0, 0
    for number, content in block.rows:
        row = parse_row(path, number, content)
        first_and_last = re.fullmatch(rf"{words + 1}-([1-9][0-9]{{0,5}})", row.id)
        if row.id == str(words + 1):
            words, empty_nodes = words + 1, 0
        elif row.id == f"{words}.{empty_nodes + 1}":
            empty_nodes += 1
        elif first_and_last and int(first_and_last[1]) > words + 1 and end <= words:
            multiword, end = number, int(first_and_last[1])
        else:
            raise CorpusError(path, number, f"expected ID {words + 1}, found {row.id!r}")
        rows.append(row)
    if not words:
        last = (block.rows or block.comments)[-1]
        raise CorpusError(path, last.number, "no words follow this line")
    if end > words:
        raise CorpusError(
            path, multiword, f"this ends with word {end}, but the sentence with {words}"
        )
    return rows


def parse_row(path: Path, number: int, content: str) -> Row:
    columns = content.split("\t")
    if len(columns) != len(COLUMNS):
        raise CorpusError(path, number, f"expected {len(COLUMNS)} columns, found {len(columns)}")
    for name, column in zip(COLUMNS, columns, strict=True):
        if not column.strip():
            raise CorpusError(path, number, f"{name} is empty")
    row = Row(number, *columns)
    # Inside a word there may be spaces, in numbers for example.
    if row.form != row.form.strip():
        raise CorpusError(path, number, f"FORM begins or ends with a space: {row.form!r}")
    if row.upos not in UPOS and row.upos != "_":
        raise CorpusError(path, number, f"UPOS {row.upos!r} is not in Universal Dependencies")
    return row


def group_tokens(rows: list[Row]) -> list[Token]:
    """Return what the text consists of; empty nodes, which are not in it, are left out."""
    tokens: list[Token] = []
    end = 0
    for row in rows:
        if "-" in row.id:
            tokens.append(Token(row, []))
            end = int(row.id.partition("-")[2])
        elif "." not in row.id:
            if int(row.id) > end:
                tokens.append(Token(row, []))
            tokens[-1].words.append(row)
    return tokens


def find_misc(row: Row, key: str) -> list[str]:
    """Return the values that MISC has for a key: one or none, unless there is a mistake."""
    pairs = [pair.partition("=") for pair in row.misc.split("|")]
    return [value for name, _, value in pairs if name == key]
