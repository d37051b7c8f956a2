"""Put the EWT corpus (tags and names) into a folder as train, dev and test.conllu."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from conllu import Row, find_misc, find_sent_id, parse_comments, parse_rows, read_blocks
from corpora import CorpusError, check_there, copy_files, fail_cleanly, read_lines
from universal_ner import TYPES, read_names
from wasabi import msg

from spacy_earlyexit.files import write_bytes

PARTS = ("train", "dev", "test")
# The corpora's own file names: UD English EWT (tags), Universal NER (names).
TAGS = {"dev": "en_ewt-ud-dev.conllu", "test": "en_ewt-ud-test.conllu"}
NAMES = {"dev": "en_ewt-ud-dev.iob2", "test": "en_ewt-ud-test.iob2"}
# UD's dev is all train. Its test is cut at these documents, in the order of their ids.
FIRST_OF_DEV = "email-enronsent23_01"
FIRST_OF_TEST = "newsgroup-groups.google.com_alt.animals_0b4766087b0d36b7_ENG_20031231_183500"


class Tagged(NamedTuple):
    """A sentence of UD, its words only."""

    line: int
    document: str
    sent_id: str
    text: str
    words: list[Row]


class Sentence(NamedTuple):
    tagged: Tagged
    labels: list[str]


class Joined(NamedTuple):
    sentences: list[Sentence]
    differing: list[str]
    """Where the sentences are whose words are not the same in both corpora."""
    unpaired: list[str]
    """And those that only one of them has."""


def prepare_cli(
    raw: Annotated[Path, typer.Argument(help="Folder with the files of the two corpora")],
    output: Annotated[Path, typer.Argument(help="Folder for the .conllu files")],
    mirror: Annotated[str, typer.Option(help="Folder with a ready ewt/train.conllu, …")] = "",
) -> None:
    """Copy from a local mirror, if one is named; else join the fetched assets."""
    with fail_cleanly():
        if mirror:
            copy_files(Path(mirror) / "ewt", output, [f"{part}.conllu" for part in PARTS])
        else:
            for line in prepare(raw, output):
                # Not msg, which folds at 80 characters.
                typer.echo(line)
        msg.good(f"EWT is in {output}")


def prepare(raw: Path, output: Path) -> list[str]:
    """Join tags and names on the sentence ids and write train, dev and test.

    raw (Path): Folder with the files of TAGS and NAMES.
    output (Path): Folder for the .conllu files.
    RETURNS (List[str]): What was written and what was left out, a line each.
    RAISES (FileNotFoundError): If a file is missing; names what to do.
    RAISES (CorpusError): If a file is not what it should be; nothing is written.
    """
    check_there(raw, [*TAGS.values(), *NAMES.values()], "ewt/train.conllu, …")
    parts: dict[str, list[Sentence]] = {part: [] for part in PARTS}
    notes: list[str] = []
    for source in TAGS:
        joined = join(raw / TAGS[source], raw / NAMES[source])
        # Stable: within its document, each sentence keeps its place.
        for sent in sorted(joined.sentences, key=lambda sent: sent.tagged.document):
            parts[find_part(source, sent.tagged.document)].append(sent)
        for places, reason in (
            (joined.differing, "whose words are not the same in both corpora"),
            (joined.unpaired, "that only one corpus has"),
        ):
            if places:
                notes.append(f"left out: {len(places)} sentences {reason}, the first {places[0]}")
    for part, sents in parts.items():
        if not sents:
            raise ValueError(
                f"{raw}: no sentence for {part}.conllu. Are these the files of UD English EWT "
                "and of Universal NER?"
            )
    for part, sents in parts.items():
        path = output / f"{part}.conllu"
        write_bytes(path, "".join(format_sentences(sents)).encode("utf8"))
        words = sum(len(sent.labels) for sent in sents)
        notes.append(f"{path}: {len(sents)} sentences, {words} words")
    return notes


def find_part(source: str, document: str) -> str:
    if source == "dev" or document < FIRST_OF_DEV:
        return "train"
    return "dev" if document < FIRST_OF_TEST else "test"


def join(tags_path: Path, names_path: Path) -> Joined:
    """Pair the sentences by their ids.

    UD goes on to correct its texts, so that a few words are others than when they got their names;
    such a sentence is left out.
    """
    tags, names = read_tags(tags_path), read_names(names_path)
    joined = Joined([], [], [])
    for sent_id, tagged in tags.items():
        place = f"{tags_path}:{tagged.line}"
        if sent_id not in names:
            joined.unpaired.append(place)
        elif [row.form for row in tagged.words] != names[sent_id].words:
            joined.differing.append(f"{place} and {names_path}:{names[sent_id].line}")
        else:
            joined.sentences.append(Sentence(tagged, names[sent_id].labels))
    joined.unpaired.extend(
        f"{names_path}:{named.line}" for sent_id, named in names.items() if sent_id not in tags
    )
    return joined


def read_tags(path: Path) -> dict[str, Tagged]:
    sents: dict[str, Tagged] = {}
    document = ""
    for block in read_blocks(read_lines(path)):
        comments = parse_comments(block)
        document = comments.get("newdoc id", document)
        sent_id = find_sent_id(path, block, comments, sents)
        if not document:
            raise CorpusError(path, block.line, "the first sentence needs a newdoc id")
        if "text" not in comments:
            raise CorpusError(path, block.line, "the sentence has no text")
        words = [row for row in parse_rows(path, block) if row.id.isdecimal()]
        sents[sent_id] = Tagged(block.line, document, sent_id, comments["text"], words)
    return sents


def format_sentences(sents: Iterable[Sentence]) -> Iterator[str]:
    document = ""
    for tagged, labels in sents:
        if tagged.document != document:
            document = tagged.document
            yield f"# newdoc id = {document}\n"
        yield f"# sent_id = {tagged.sent_id}\n# text = {tagged.text}\n"
        for row, label in zip(tagged.words, labels, strict=True):
            misc = [f"NE={label}"] if label[2:] in TYPES else []
            misc += ["SpaceAfter=No"] if "No" in find_misc(row, "SpaceAfter") else []
            columns = [row.id, row.form, row.lemma, row.upos, row.xpos, *"____"]
            yield "\t".join([*columns, "|".join(misc) or "_"]) + "\n"
        yield "\n"


if __name__ == "__main__":
    typer.run(prepare_cli)
