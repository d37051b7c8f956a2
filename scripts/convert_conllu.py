"""Turn CoNLL-U with parts of speech and named entities into spaCy's binary training format."""

import re
from itertools import chain
from pathlib import Path
from typing import Annotated, NamedTuple

import spacy
import typer
from conllu import Block, Row, Token, find_misc, group_tokens, parse_rows, read_blocks
from corpora import (
    CorpusError,
    Line,
    check_label,
    describe_entities,
    fail_cleanly,
    find_spaces,
    read_lines,
    write_docs,
)
from spacy.tokens import Doc
from spacy.vocab import Vocab

NEWDOC = re.compile(r"#\s*newdoc(\s.*)?")
TEXT = re.compile(r"#\s*text\s*=(.*)")

app = typer.Typer(add_completion=False)


class Word(NamedTuple):
    row: Row
    label: str | None
    space_after: bool


class Sentence(NamedTuple):
    line: int
    newdoc: bool
    words: list[Word]
    joined: int
    """Words without SpaceAfter=No that no space follows in the text."""


class Converted(NamedTuple):
    docs: list[Doc]
    joined: int


@app.command()
def convert_conllu_cli(
    input_path: Annotated[Path, typer.Argument(help="CoNLL-U, with names as NE=B-PER in MISC")],
    output_path: Annotated[Path, typer.Argument(help="The .spacy file to write")],
    lang: Annotated[str, typer.Option(help="Language code of the text")] = "en",
    docs: Annotated[bool, typer.Option("--docs", help="One Doc per # newdoc")] = False,
) -> None:
    """Convert UPOS, XPOS and named entities of CoNLL-U to one Doc per sentence, or document."""
    with fail_cleanly():
        converted = convert_conllu(input_path, output_path, lang, docs)
        # Not msg.good, which folds at 80 characters.
        typer.echo(f"{output_path}: {describe(converted)}")


def convert_conllu(
    input_path: Path, output_path: Path, lang: str = "en", by_document: bool = False
) -> Converted:
    """Write the content of `input_path` to `output_path` and return it."""
    vocab = spacy.blank(lang).vocab
    blocks = read_blocks(read_lines(input_path))
    sents = [parse_sentence(input_path, block) for block in blocks]
    if not sents:
        raise CorpusError(input_path, 1, "no sentence in this file")
    # A sentence without names is annotated all the same, if the corpus is.
    with_entities = any(word.label is not None for sent in sents for word in sent.words)
    groups = group_by_document(input_path, sents) if by_document else [[sent] for sent in sents]
    docs = [make_doc(vocab, group, with_entities) for group in groups]
    write_docs(output_path, docs)
    return Converted(docs, sum(sent.joined for sent in sents))


def parse_sentence(path: Path, block: Block) -> Sentence:
    tokens = group_tokens(parse_rows(path, block))
    spaces = ["No" not in find_misc(token.row, "SpaceAfter") for token in tokens]
    joined = 0
    matches = ((line.number, TEXT.fullmatch(line.content)) for line in block.comments)
    text = next((Line(number, match[1]) for number, match in matches if match), None)
    if text:
        joined = correct_spaces(path, tokens, spaces, text)
    words: list[Word] = []
    for token, space in zip(tokens, spaces, strict=True):
        # "don't" gets its own spelling back from "do" and "n't", but "zum" is not "zudem".
        inner_space = "".join(row.form for row in token.words) != token.row.form
        for row in token.words:
            label = parse_label(path, row, words[-1].label if words else None)
            words.append(Word(row, label, space if row is token.words[-1] else inner_space))
    newdoc = any(NEWDOC.fullmatch(line.content) for line in block.comments)
    return Sentence(block.line, newdoc, words, joined)


def correct_spaces(path: Path, tokens: list[Token], spaces: list[bool], text: Line) -> int:
    """Check what MISC says of spaces with the text, and count the spaces that had to be removed.

    The text is right where it has no space and SpaceAfter=No is missing: corpora whose multiword
    tokens were dropped (do, n't) have lost that. The opposite is a mistake.
    """
    removed = 0
    forms = [Line(token.row.line, token.row.form) for token in tokens]
    found = find_spaces(path, forms, text)
    # The text ends with the sentence: whether a space follows the last token, only MISC can say.
    for i, token in enumerate(tokens[:-1]):
        if found[i] and not spaces[i]:
            raise CorpusError(
                path,
                token.row.line,
                f"SpaceAfter=No, but in the text of line {text.number} "
                f"a space follows {token.row.form!r}",
            )
        removed += spaces[i] and not found[i]
        spaces[i] = found[i]
    return removed


def parse_label(path: Path, row: Row, previous: str | None) -> str | None:
    labels = find_misc(row, "NE")
    if not labels:
        return None
    if len(labels) > 1:
        raise CorpusError(path, row.line, f"more than one NE: {row.misc!r}")
    check_label(path, row.line, labels[0], previous or "O")
    return labels[0]


def group_by_document(path: Path, sents: list[Sentence]) -> list[list[Sentence]]:
    groups: list[list[Sentence]] = []
    for sent in sents:
        if sent.newdoc:
            groups.append([])
        elif not groups:
            raise CorpusError(path, sent.line, "no # newdoc before the first sentence")
        groups[-1].append(sent)
    return groups


def make_doc(vocab: Vocab, sents: list[Sentence], with_entities: bool) -> Doc:
    words = list(chain.from_iterable(sent.words for sent in sents))
    return Doc(
        vocab,
        words=[word.row.form for word in words],
        spaces=[*(word.space_after for word in words[:-1]), False],
        # To spaCy, an empty string is no annotation.
        pos=["" if word.row.upos == "_" else word.row.upos for word in words],
        tags=["" if word.row.xpos == "_" else word.row.xpos for word in words],
        # One string per word rather than spans: "O" is annotation, no entry at all is not.
        ents=[word.label or "O" for word in words] if with_entities else None,
        # Also False, so that spaCy knows all sentences and can split the Doc (gold_preproc).
        sent_starts=[i == 0 for sent in sents for i in range(len(sent.words))],
    )


def describe(converted: Converted) -> str:
    docs, joined = converted
    words = list(chain.from_iterable(docs))
    upos = {word.pos_ for word in words} - {""}
    xpos = {word.tag_ for word in words} - {""}
    sents = sum(bool(word.is_sent_start) for word in words)
    note = f"; {joined} spaces left out that # text does not have" if joined else ""
    return (
        f"{len(docs)} documents, {sents} sentences, {len(words)} words, {len(upos)} UPOS tags, "
        f"{len(xpos)} XPOS tags, {describe_entities(docs)}{note}"
    )


if __name__ == "__main__":
    app()
