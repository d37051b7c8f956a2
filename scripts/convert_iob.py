"""Turn a file of `word<TAB>IOB2 label` lines into spaCy's binary training format."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import spacy
import typer
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

COMMENT = re.compile(r"# (text|sent_id) = (.*)")

app = typer.Typer(add_completion=False)


class Row(NamedTuple):
    line: int
    word: str
    label: str


class Sentence(NamedTuple):
    rows: list[Row]
    text: Line | None


@app.command()
def convert_iob_cli(
    input_path: Annotated[Path, typer.Argument(help="File of word<TAB>IOB2 label lines")],
    output_path: Annotated[Path, typer.Argument(help="The .spacy file to write")],
    lang: Annotated[str, typer.Option(help="Language code of the text")] = "en",
    words: Annotated[
        int, typer.Option(help="Join sentences to Docs of so many words; 0: one Doc each", min=0)
    ] = 0,
) -> None:
    """Convert IOB2 lines, with a blank line between sentences, to one Doc per sentence, or to
    documents of neighbouring sentences.
    """
    with fail_cleanly():
        docs = convert_iob(input_path, output_path, lang, words)
        sents = sum(1 for doc in docs for _ in doc.sents)
        kinds = f"{len(docs)} documents, {sents} sentences" if words else f"{sents} sentences"
        # Not msg.good, which folds at 80 characters.
        typer.echo(
            f"{output_path}: {kinds}, {sum(map(len, docs))} words, {describe_entities(docs)}"
        )


def convert_iob(
    input_path: Path, output_path: Path, lang: str = "en", max_words: int = 0
) -> list[Doc]:
    """Write the content of `input_path` to `output_path` and return it.

    max_words (int): Sentences are joined to Docs of at most so many words; 0: a Doc for each.
    """
    vocab = spacy.blank(lang).vocab
    docs = [make_doc(vocab, input_path, sent) for sent in read_sentences(input_path)]
    if not docs:
        raise CorpusError(input_path, 1, "no sentence in this file")
    if max_words:
        docs = list(join(docs, max_words))
    write_docs(output_path, docs)
    return docs


def join(sents: Iterable[Doc], max_words: int) -> Iterator[Doc]:
    """Documents of neighbouring sentences, with a space between them, of at most so many words
    (or of one sentence that has more).
    """
    group: list[Doc] = []
    for sent in sents:
        if group and sum(map(len, group)) + len(sent) > max_words:
            yield join_all(group)
            group = []
        group.append(sent)
    if group:
        yield join_all(group)


def join_all(sents: list[Doc]) -> Doc:
    return Doc(
        sents[0].vocab,
        words=[token.text for sent in sents for token in sent],
        spaces=[bool(token.whitespace_) or token.i == len(s) - 1 for s in sents for token in s],
        ents=[f"{t.ent_iob_}-{t.ent_type_}" if t.ent_type_ else "O" for s in sents for t in s],
        sent_starts=[token.i == 0 for sent in sents for token in sent],
    )


def read_sentences(path: Path) -> Iterator[Sentence]:
    rows: list[Row] = []
    text: Line | None = None
    for number, line in [*read_lines(path), Line(0, "")]:
        comment = None if rows else COMMENT.fullmatch(line)
        # A tweet may begin with the word "#", so only a line without a tab can be a comment.
        if comment and "\t" not in line:
            if comment[1] == "text":
                text = Line(number, comment[2])
        elif line:
            rows.append(parse_row(path, number, line, rows[-1].label if rows else "O"))
        else:
            if rows:
                yield Sentence(rows, text)
            elif text:
                raise CorpusError(path, text.number, "no words follow this text")
            rows, text = [], None


def parse_row(path: Path, number: int, line: str, previous: str) -> Row:
    """Check one line against the label of the word before it ("O" at a sentence's start)."""
    columns = line.split("\t")
    if len(columns) != 2:
        raise CorpusError(
            path, number, f"expected word<TAB>label, found {len(columns)} column(s): {line!r}"
        )
    word, label = columns
    if not word.strip():
        raise CorpusError(path, number, "the word is empty")
    check_label(path, number, label, previous)
    return Row(number, word, label)


def make_doc(vocab: Vocab, path: Path, sent: Sentence) -> Doc:
    words = [row.word for row in sent.rows]
    spaces = [True] * (len(words) - 1) + [False]
    if sent.text:
        spaces = find_spaces(path, [Line(row.line, row.word) for row in sent.rows], sent.text)
    return Doc(
        vocab,
        words=words,
        spaces=spaces,
        # One string per word rather than spans: "O" is annotation, no entry at all is not.
        ents=[row.label for row in sent.rows],
        sent_starts=[i == 0 for i in range(len(words))],
    )


if __name__ == "__main__":
    app()
