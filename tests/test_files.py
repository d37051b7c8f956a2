"""Nothing is lost: what is replaced, what is refused, and what a killed command leaves."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import spacy
from conftest import run_cli

from spacy_earlyexit import files
from spacy_earlyexit.files import check_output, put, replacing, restore, write_bytes


def pipeline(folder: Path, content: str = "old") -> Path:
    folder.mkdir(parents=True)
    for name in ("config.cfg", "meta.json", "weights"):
        (folder / name).write_text(content)
    return folder


def content(folder: Path) -> str:
    return (folder / "weights").read_text()


@pytest.fixture(params=["one step", "two renames"])
def way(request, monkeypatch):
    if request.param == "two renames":
        monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    return request.param


# --- what is refused -----------------------------------------------------------------------


def test_only_a_pipeline_is_replaced(tmp_path):
    """A folder of other files was gone."""
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter").write_text("years of work")
    for force in (False, True):
        with pytest.raises(ValueError, match="something else than a pipeline"):
            check_output(other, force)
    old = pipeline(tmp_path / "old")
    with pytest.raises(ValueError, match="--force"):
        check_output(old, False)
    check_output(old, True)
    (tmp_path / "empty").mkdir()
    check_output(tmp_path / "empty", False)
    check_output(tmp_path / "new" / "deeper", False)


def test_a_file_as_output(tmp_path):
    (tmp_path / "file").write_text("here")
    with pytest.raises(ValueError, match="file' is a file"):
        check_output(tmp_path / "file", True)


def test_inside_or_around_what_is_read(tmp_path):
    source = pipeline(tmp_path / "around" / "source")
    for output in (source / "ner" / "new", tmp_path / "around"):
        with pytest.raises(ValueError, match="lies inside of .*source"):
            check_output(output, True, source)
    check_output(source, True, source)


def test_the_folder_of_the_shell_and_volumes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for output in (Path("."), tmp_path, tmp_path.parent, Path("/proc")):
        with pytest.raises(ValueError, match="can't be replaced|something else"):
            check_output(output, True)


def test_where_nothing_can_be_written(monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise OSError(30, "Read-only file system", str(tmp_path / "tmpfile"))

    monkeypatch.setattr(files.tempfile, "TemporaryFile", fail)
    with pytest.raises(OSError, match="new' can't be written: Read-only file system"):
        check_output(tmp_path / "new", False)


def test_a_full_disk_names_the_output(tmp_path):
    old = pipeline(tmp_path / "old")
    with pytest.raises(OSError, match="old' can't be written: No space left") as caught:
        with replacing(old) as folder:
            folder.mkdir()
            raise OSError(28, "No space left on device", str(folder / "weights"))
    assert ".tmp" not in str(caught.value)
    assert content(old) == "old" and os.listdir(tmp_path) == ["old"]


# --- what is replaced ----------------------------------------------------------------------


def test_the_new_one_takes_the_place_of_the_old_one(tmp_path, way):
    old = pipeline(tmp_path / "old")
    for _ in range(2):
        with replacing(old) as folder:
            pipeline(folder, "new")
            assert content(old) != "none", "until the end it is there"
        assert content(old) == "new" and os.listdir(tmp_path) == ["old"]
    with replacing(tmp_path / "first") as folder:
        pipeline(folder, "first")
    assert content(tmp_path / "first") == "first"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, SystemExit])
def test_an_error_between_the_two_renames(tmp_path, monkeypatch, error):
    monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    old = pipeline(tmp_path / "old")
    rename = Path.rename

    def interrupted(self, target):
        if self.name == "new":
            raise error("in between")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(error):
        with replacing(old) as folder:
            pipeline(folder, "new")
    assert content(old) == "old" and os.listdir(tmp_path) == ["old"]


def test_the_system_has_one_step():
    if sys.platform != "linux":
        pytest.skip("renameat2 is of Linux")
    assert files._exchange(Path("/nowhere/a"), Path("/nowhere/b")) is False


# --- kills ---------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from spacy_earlyexit import files

where, step, signal_number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where it was ignored
if step != "exchange":
    files._exchange = lambda a, b: False
rename = Path.rename

def killed(self, target):
    done = rename(self, target)
    if self.name == step:
        os.kill(os.getpid(), signal_number)
    return done

Path.rename = killed
with files.replacing(where) as folder:
    folder.mkdir()
    for name in ("config.cfg", "meta.json", "weights"):
        (folder / name).write_text("new")
    if step == "exchange":
        files._exchange(folder, where)
        os.kill(os.getpid(), signal_number)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", ["old", "new", "exchange"])
def test_a_kill_in_between_loses_nothing(tmp_path, step, number):
    """Behind the first rename, behind the second one, and behind the one step."""
    old = pipeline(tmp_path / "old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(old), step, str(int(number))])
    assert done.returncode != 0
    restore(old)
    assert content(old) == ("old" if step == "old" else "new")
    with replacing(old) as folder:
        pipeline(folder, "newer")
    assert content(old) == "newer"


@pytest.mark.slow
def test_the_next_command_finds_what_a_kill_left(stored, tmp_path):
    """The old pipeline lies in a hidden folder beside its place."""
    import shutil

    old = shutil.copytree(stored, tmp_path / "old")
    hidden = tmp_path / ".old.abcd.tmp"
    hidden.mkdir()
    old.rename(hidden / "replaced")
    code, out = run_cli("info", old)
    assert code == 0, out
    assert spacy.load(old).pipe_names == ["transformer", "ner"]


def test_a_failing_rename_is_undone(tmp_path, way):
    old = pipeline(tmp_path / "old")
    with pytest.raises(OSError):
        put(tmp_path / "missing", old, tmp_path / "replaced")
    assert content(old) == "old"


def test_a_file_is_written_in_full_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "deep" / "file"
    write_bytes(file, b"old")

    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(file, b"new")
    assert file.read_bytes() == b"old" and os.listdir(file.parent) == ["file"]
