"""Turn a file of `word<TAB>IOB2 label` lines into spaCy's binary training format."""

import codecs
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import spacy
import typer
from spacy.tokens import Doc, DocBin
from spacy.vocab import Vocab
from wasabi import msg

from spacy_earlyexit.files import write_bytes

COMMENT = re.compile(r"# (text|sent_id) = (.*)")
LABEL = re.compile(r"O|[BI]-\S+")

app = typer.Typer(add_completion=False)


class IobError(ValueError):
    """What is wrong with the input, and in which file and line."""

    def __init__(self, path: Path, line: int, problem: str) -> None:
        super().__init__(f"{path}:{line}: {problem}")


class Row(NamedTuple):
    line: int
    word: str
    label: str


class Sentence(NamedTuple):
    rows: list[Row]
    text: str | None
    text_line: int


@app.command()
def convert_iob_cli(
    input_path: Annotated[Path, typer.Argument(help="File of word<TAB>IOB2 label lines")],
    output_path: Annotated[Path, typer.Argument(help="The .spacy file to write")],
    lang: Annotated[str, typer.Option(help="Language code of the text")] = "en",
) -> None:
    """Convert IOB2 lines, with a blank line between sentences, to one Doc per sentence."""
    try:
        docs = convert_iob(input_path, output_path, lang)
    except OSError as err:
        msg.fail(f"{err.filename}: {err.strerror}", exits=1)
    except (ImportError, ValueError) as err:  # spaCy raises ImportError for an unknown language
        msg.fail(str(err), exits=1)
    else:
        entities = Counter(ent.label_ for doc in docs for ent in doc.ents)
        per_label = ", ".join(f"{label} {entities[label]}" for label in sorted(entities))
        # Not msg.good, which folds at 80 characters.
        typer.echo(
            f"{output_path}: {len(docs)} sentences, {sum(map(len, docs))} words, "
            f"{entities.total()} entities ({per_label or 'none'})"
        )


def convert_iob(input_path: Path, output_path: Path, lang: str = "en") -> list[Doc]:
    """Write the sentences of `input_path` to `output_path` and return them."""
    vocab = spacy.blank(lang).vocab
    docs = [make_doc(vocab, input_path, sent) for sent in read_sentences(input_path)]
    if not docs:
        raise IobError(input_path, 1, "no sentence in this file")
    write_bytes(output_path, DocBin(docs=docs, store_user_data=False).to_bytes())
    return docs


def read_sentences(path: Path) -> Iterator[Sentence]:
    rows: list[Row] = []
    text, text_line = None, 0
    for number, line in [*read_lines(path), (0, "")]:
        comment = None if rows else COMMENT.fullmatch(line)
        # A tweet may begin with the word "#", so only a line without a tab can be a comment.
        if comment and "\t" not in line:
            if comment[1] == "text":
                text, text_line = comment[2].strip(), number
        elif line:
            rows.append(parse_row(path, number, line, rows[-1].label if rows else "O"))
        else:
            if rows:
                yield Sentence(rows, text, text_line)
            elif text is not None:
                raise IobError(path, text_line, "no words follow this text")
            rows, text = [], None


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    # Not str.splitlines, which also splits at characters that a word may contain (U+0085, U+2028).
    lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            yield number, line.removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError as err:
            raise IobError(path, number, f"not UTF-8: {err.reason} at byte {err.start}") from err


def parse_row(path: Path, number: int, line: str, previous: str) -> Row:
    """Check one line against the label of the word before it ("O" at a sentence's start)."""
    columns = line.split("\t")
    if len(columns) != 2:
        raise IobError(
            path, number, f"expected word<TAB>label, found {len(columns)} column(s): {line!r}"
        )
    word, label = columns
    if not word.strip():
        raise IobError(path, number, "the word is empty")
    if not LABEL.fullmatch(label):
        raise IobError(path, number, f"expected a label O, B-x or I-x, found {label!r}")
    if label.startswith("I-") and label[2:] != previous[2:]:
        raise IobError(
            path, number, f"{label} must follow B-{label[2:]} or {label}, but follows {previous}"
        )
    return Row(number, word, label)


def make_doc(vocab: Vocab, path: Path, sent: Sentence) -> Doc:
    words = [row.word for row in sent.rows]
    if sent.text is None:
        spaces = [True] * (len(words) - 1) + [False]
    else:
        spaces = find_spaces(path, sent.rows, sent.text, sent.text_line)
    return Doc(
        vocab,
        words=words,
        spaces=spaces,
        # One string per word rather than spans: "O" is annotation, no entry at all is not.
        ents=[row.label for row in sent.rows],
        sent_starts=[i == 0 for i in range(len(words))],
    )


def find_spaces(path: Path, rows: list[Row], text: str, text_line: int) -> list[bool]:
    """Tell for each word whether whitespace follows it in the text."""
    spaces = []
    rest = text
    for row in rows:
        if not rest.startswith(row.word):
            raise IobError(
                path,
                row.line,
                f"the word {row.word!r} does not match the text of line {text_line}, "
                f"which goes on with {rest[:20]!r}",
            )
        after = rest.removeprefix(row.word)
        rest = after.lstrip()
        spaces.append(len(rest) < len(after))
    if rest:
        raise IobError(path, text_line, f"the words end before the text does, at {rest[:20]!r}")
    return spaces


if __name__ == "__main__":
    app()
