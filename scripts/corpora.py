"""What the scripts that read corpora share.

Not called corpus: with a folder of that name, which the project makes, ruff takes the module for
one of the package's own and wants the imports in another order than without.
"""

import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from wasabi import msg

if TYPE_CHECKING:
    from spacy.tokens import Doc

LABEL = re.compile(r"O|[BI]-\S+")


class CorpusError(ValueError):
    """What is wrong with a corpus, and in which file and line."""

    def __init__(self, path: Path, line: int, problem: str) -> None:
        super().__init__(f"{path}:{line}: {problem}")


class Line(NamedTuple):
    number: int
    content: str


@contextmanager
def fail_cleanly() -> Iterator[None]:
    """Turn errors that the user can mend into a message and exit code 1."""
    try:
        yield
    except OSError as err:
        msg.fail(f"{err.filename}: {err.strerror}" if err.filename else str(err), exits=1)
    except (ImportError, ValueError) as err:  # spaCy raises ImportError for an unknown language
        msg.fail(str(err), exits=1)


def read_lines(path: Path) -> Iterator[Line]:
    """Yield the lines of a file that may have a byte order mark and line ends of Windows."""
    for number, content in read_raw_lines(path):
        if number == 1:
            content = content.removeprefix("\ufeff")
        yield Line(number, content.removesuffix("\r"))


def read_raw_lines(path: Path) -> Iterator[Line]:
    # Not str.splitlines, which also splits at characters that a word may contain (U+0085, U+2028).
    for number, line in enumerate(path.read_bytes().removesuffix(b"\n").split(b"\n"), start=1):
        try:
            yield Line(number, line.decode("utf-8"))
        except UnicodeDecodeError as err:
            raise CorpusError(path, number, f"not UTF-8: {err.reason} at byte {err.start}") from err


def check_label(path: Path, line: int, label: str, previous: str) -> None:
    """Check an IOB2 label, also against that of the word before ("O" at a sentence's start)."""
    if not LABEL.fullmatch(label):
        raise CorpusError(path, line, f"expected a label O, B-x or I-x, found {label!r}")
    if label.startswith("I-") and label[2:] != previous[2:]:
        raise CorpusError(path, line, f"{label} follows {previous}, not a {label[2:]} word")


def find_spaces(path: Path, words: Iterable[Line], text: Line) -> list[bool]:
    """Tell for each word whether whitespace follows it in the text."""
    spaces = []
    rest = text.content.strip()
    for line, word in words:
        if not rest.startswith(word):
            raise CorpusError(
                path,
                line,
                f"the word {word!r} does not match the text of line {text.number}, "
                f"which goes on with {rest[:20]!r}",
            )
        after = rest.removeprefix(word)
        rest = after.lstrip()
        spaces.append(len(rest) < len(after))
    if rest:
        raise CorpusError(path, text.number, f"the words end before the text, at {rest[:20]!r}")
    return spaces


def check_there(folder: Path, names: Iterable[str], example: str) -> None:
    """RAISES (FileNotFoundError): If a file is missing; names what to do.

    example (str): What a mirror holds.
    """
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"There is no {folder / name}. Run `python -m spacy project assets` (needs the "
                f"network), or name a local copy: --vars.mirror FOLDER, which holds {example}"
            )


def copy_files(mirror: Path, output: Path, names: Sequence[str]) -> None:
    """RAISES (FileNotFoundError): If a file is missing; names what to do."""
    check_there(mirror, names, f"{mirror.name}/{names[0]}, …")
    output.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(mirror / name, output / name)


def write_docs(path: Path, docs: Iterable["Doc"]) -> None:
    # Not at the top: check_sample.py needs no spaCy and starts many times faster without it.
    from spacy.tokens import DocBin

    from spacy_earlyexit.files import write_bytes

    write_bytes(path, DocBin(docs=docs, store_user_data=False).to_bytes())


def describe_entities(docs: Sequence["Doc"]) -> str:
    if not any(doc.has_annotation("ENT_IOB") for doc in docs):
        return "entities not annotated"
    entities = Counter(ent.label_ for doc in docs for ent in doc.ents)
    per_label = ", ".join(f"{label} {entities[label]}" for label in sorted(entities))
    return f"{entities.total()} entities ({per_label or 'none'})"
