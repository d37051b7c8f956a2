"""Put the Chinese GSD corpus (words and names) into a folder as train, dev and test.iob."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from corpora import CorpusError, check_there, copy_files, fail_cleanly
from universal_ner import TYPES, read_names
from wasabi import msg

from spacy_earlyexit.files import write_bytes

PARTS = ("train", "dev", "test")
# The corpus's own file names in Universal NER, which has the words of UD Chinese GSD, too.
RAW = {part: f"zh_gsd-ud-{part}.iob2" for part in PARTS}


def prepare_cli(
    raw: Annotated[Path, typer.Argument(help="Folder with the corpus's own files")],
    output: Annotated[Path, typer.Argument(help="Folder for the .iob files")],
    mirror: Annotated[str, typer.Option(help="Folder with a ready gsd_zh/train.iob, …")] = "",
) -> None:
    """Copy from a local mirror, if one is named; else take the columns of the fetched assets."""
    with fail_cleanly():
        if mirror:
            copy_files(Path(mirror) / "gsd_zh", output, [f"{part}.iob" for part in PARTS])
        else:
            for line in prepare(raw, output):
                # Not msg, which folds at 80 characters.
                typer.echo(line)
        msg.good(f"Chinese GSD is in {output}")


def prepare(raw: Path, output: Path) -> list[str]:
    """Write words and names as lines of word<TAB>label, below the text of each sentence.

    raw (Path): Folder with the files of RAW.
    output (Path): Folder for the .iob files.
    RETURNS (List[str]): What was written, a line per file.
    RAISES (FileNotFoundError): If a file is missing; names what to do.
    RAISES (CorpusError): If a file is not what it should be; nothing is written.
    """
    check_there(raw, RAW.values(), "gsd_zh/train.iob, …")
    parts = {part: list(format_sentences(raw / name)) for part, name in RAW.items()}
    notes = []
    for part, sents in parts.items():
        path = output / f"{part}.iob"
        write_bytes(path, "\n".join(sents).encode("utf8"))
        notes.append(f"{path}: {len(sents)} sentences")
    return notes


def format_sentences(path: Path) -> Iterator[str]:
    for sent_id, sent in read_names(path).items():
        if sent.text is None:
            raise CorpusError(path, sent.line, "the sentence has no text")
        yield f"# sent_id = {sent_id}\n# text = {sent.text}\n" + "".join(
            f"{word}\t{label if label[2:] in TYPES else 'O'}\n"
            for word, label in zip(sent.words, sent.labels, strict=True)
        )


if __name__ == "__main__":
    typer.run(prepare_cli)
