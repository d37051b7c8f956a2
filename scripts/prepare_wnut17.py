"""Put the WNUT-17 corpus into a folder as train.iob, dev.iob and test.iob."""

import shutil
from pathlib import Path
from typing import Annotated

import typer
from wasabi import msg

from spacy_earlyexit.files import write_bytes

# The corpus's own file names (leondz/emerging_entities_17).
RAW = {"train": "wnut17train.conll", "dev": "emerging.dev.conll", "test": "emerging.test.annotated"}


def prepare_cli(
    raw: Annotated[Path, typer.Argument(help="Folder with the corpus's own files")],
    output: Annotated[Path, typer.Argument(help="Folder for the .iob files")],
    mirror: Annotated[str, typer.Option(help="Folder with a ready wnut17/train.iob, …")] = "",
) -> None:
    """Copy from a local mirror, if one is named; else tidy up the fetched assets."""
    try:
        prepare(raw, output, Path(mirror) / "wnut17" if mirror else None)
    except FileNotFoundError as error:
        msg.fail(str(error), exits=1)
    msg.good(f"WNUT-17 is in {output}")


def prepare(raw: Path, output: Path, mirror: Path | None = None) -> None:
    """See prepare_cli.

    RAISES (FileNotFoundError): If the files are in neither place; names what to do.
    """
    for part, name in RAW.items():
        source = mirror / f"{part}.iob" if mirror else raw / name
        if not source.is_file():
            raise FileNotFoundError(
                f"There is no {source}. Run `python -m spacy project assets` (needs the network), "
                "or name a local copy: --vars.mirror FOLDER, which holds wnut17/train.iob, …"
            )
        target = output / f"{part}.iob"
        if mirror:
            output.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        else:
            write_bytes(target, tidy(source.read_bytes()))


def tidy(raw: bytes) -> bytes:
    """Lines end in a newline only, and lines of nothing but whitespace part sentences."""
    return b"\n".join(line.rstrip() for line in raw.split(b"\n"))


if __name__ == "__main__":
    typer.run(prepare_cli)
