"""Writing files so that nothing half-written is left behind."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import Errors


def write_bytes(path: Path, data: bytes) -> None:
    """Write beside the path and rename, so that a failure leaves what was there before.

    path (Path): The file; its folder is made if need be.
    data (bytes): The content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_bytes(data)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """See write_bytes; data as indented JSON."""
    write_bytes(path, (json.dumps(data, indent=2) + "\n").encode("utf8"))


def check_writable(path: Path) -> None:
    """Before long work: whether a file or folder could be written beside the path.

    path (Path): What is to be written. Nothing is made yet.
    RAISES (OSError): If it could not.
    """
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    with tempfile.TemporaryFile(dir=folder):
        pass


def check_output(output: Path, force: bool) -> None:
    """RAISES (ValueError, OSError): If something is there that must not be replaced, or the output
    could not be written.
    """
    free = force or not any(output.iterdir()) if output.is_dir() else not output.exists()
    if not free:
        raise ValueError(Errors.E030.format(path=output))
    check_writable(output)


@contextmanager
def beside(output: Path) -> Iterator[Path]:
    """A folder beside the output, so that a rename brings the result in place; removed at the end,
    whatever happens.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".tmp", dir=output.parent)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder)


def put(new: Path, output: Path, old: Path) -> None:
    """Rename a folder to the output; what is there is moved away first, and back on failure."""
    replaces = output.exists()
    if replaces:
        output.rename(old)
    try:
        new.rename(output)
    except OSError:
        if replaces:
            old.rename(output)
        raise
