"""Writing files and folders so that nothing half-written is left behind, and nothing is lost."""

import ctypes
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import Errors

# What is moved away lies here inside of a temporary folder, until the new one is in place.
_REPLACED = "replaced"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux, see renameat2(2)


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
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(Errors.E083.format(path=path, error=error.strerror or error)) from None


def check_output(output: Path, force: bool, source: str | Path | None = None) -> None:
    """Before long work: whether a folder can be the output. What an earlier command left half done
    is restored.

    output (Path): The folder. It need not be there.
    force (bool): Whether a pipeline that is there may be replaced. Nothing else ever is.
    source (Optional[Union[str, Path]]): What is read; the output may be the same folder, but not
        inside of it or around it.
    RAISES (ValueError, OSError): If it can't.
    """
    restore(output)
    if output.exists() and not output.is_dir():
        raise ValueError(Errors.E084.format(path=output))
    here = output.absolute().resolve()
    if source is not None and Path(source).is_dir():
        read = Path(source).absolute().resolve()
        if here != read and (here in read.parents or read in here.parents):
            raise ValueError(Errors.E085.format(path=output, source=source))
    if output.is_dir():
        cwd = Path.cwd().resolve()
        if here == cwd or here in cwd.parents or os.path.ismount(here):
            raise ValueError(Errors.E086.format(path=output))
        if any(output.iterdir()) and not is_pipeline(output):
            raise ValueError(Errors.E087.format(path=output))
        if any(output.iterdir()) and not force:
            raise ValueError(Errors.E027.format(path=output))
    check_writable(output)


def is_pipeline(folder: Path) -> bool:
    """RETURNS (bool): Whether a folder holds a pipeline."""
    return (folder / "config.cfg").is_file() and (folder / "meta.json").is_file()


@contextmanager
def beside(output: Path) -> Iterator[Path]:
    """A folder beside the output, so that a rename brings the result in place; removed at the end,
    whatever happens. Errors name the output, not this folder.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".tmp", dir=output.parent))
    try:
        yield folder
    except OSError as error:
        if str(folder) in str(error):
            reason = error.strerror or str(error)
            raise OSError(Errors.E083.format(path=output, error=reason)) from error
        raise
    finally:
        _restore_from(folder, output)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """A folder to write a pipeline to, which then takes the place of the output; on failure the
    output stays as it was. See check_output, which has to be asked first.
    """
    with beside(output) as folder:
        yield folder / "new"
        put(folder / "new", output, folder / _REPLACED)


def put(new: Path, output: Path, old: Path) -> None:
    """Rename a folder to the output, in one step where the system has one. Else what is there is
    moved away first, and back on failure.

    new, output (Path): The folder, and what it will be.
    old (Path): Where what is there is moved to, in the folder of `beside`, named "replaced".
    """
    if not output.exists():
        new.rename(output)
        return
    if _exchange(new, output):
        return
    output.rename(old)
    try:
        new.rename(output)
    except BaseException:
        if not output.exists():
            old.rename(output)
        raise


def restore(output: Path) -> None:
    """Bring back a folder that a killed command had moved away, if nothing took its place.

    output (Path): The folder.
    """
    if not output.exists() and output.parent.is_dir():
        for folder in sorted(output.parent.glob(f".{output.name}.*.tmp")):
            _restore_from(folder, output)


def _restore_from(folder: Path, output: Path) -> None:
    if not output.exists() and (folder / _REPLACED).is_dir():
        (folder / _REPLACED).rename(output)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two folders in one step. RETURNS (bool): Whether this system and file system can."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    paths = (os.fsencode(a.absolute()), os.fsencode(b.absolute()))
    return renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0
