"""The shipped project, run with few steps on a tiny encoder and corpus."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, TEXTS, make_encoder
from weasel.cli.run import project_run


def write_corpus(folder):
    folder.mkdir(parents=True)
    for part in ("train", "dev", "test"):
        lines = []
        for text, ents in TEXTS * 3:
            words = text.split()
            tags = ["O"] * len(words)
            for start, end, label in ents:
                tags[start:end] = [f"B-{label}"] + [f"I-{label}"] * (end - start - 1)
            lines += [f"{word}\t{tag}" for word, tag in zip(words, tags, strict=True)] + [""]
        (folder / f"{part}.iob").write_text("\n".join(lines), encoding="utf8")


CHINESE = "我/O 在/O 台北市/B-LOC 的/O 圖書館/O 拍照/O"


def write_chinese(folder):
    folder.mkdir(parents=True)
    pairs = [pair.split("/") for pair in CHINESE.split()]
    lines = [f"# text = {''.join(word for word, _ in pairs)}"]
    lines += [f"{word}\t{label}" for word, label in pairs] + [""]
    for part in ("train", "dev", "test"):
        (folder / f"{part}.iob").write_text("\n".join(lines * 12), encoding="utf8")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project's files, with small corpora and an encoder at hand."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "project.yml", folder)
    for name in ("scripts", "configs", "assets/sample"):
        shutil.copytree(ROOT / name, folder / name)
    write_corpus(folder / "mirror" / "wnut17")
    write_chinese(folder / "mirror" / "gsd_zh")
    make_encoder(folder / "encoder", n_layers=6, characters="我在台北市的圖書館拍照")
    return folder


def run(project, workflow, **overrides):
    settings = {
        "vars.encoder": str(project / "encoder"),
        "vars.sample_encoder": str(project / "encoder"),
        "vars.mirror": str(project / "mirror"),
        "vars.learn_rate": 0.0003,
        "vars.limit": 6,
        "vars.repeats": 1,
        **{f"vars.{name}": value for name, value in overrides.items()},
    }
    project_run(project, workflow, overrides=settings)


def check_figures(project, name):
    figures = json.loads((project / "metrics" / f"{name}_self_sampling.json").read_text())
    full, *faster = figures["rows"]
    assert full["exit_speedup"] == 1.0 and full["exit_layer_mean"] == 6.0
    assert full["words_per_second"] > 0
    assert [row["exit_speedup"] > 1.0 for row in faster] == [True] * len(faster) and faster
    assert {"token", "sentence"} == {
        "sentence" if row["point"].startswith("sentence-") else "token" for row in faster
    }
    for stage in ("joint", "self_sampling"):
        assert (project / "training" / name / stage / "model-best" / "config.cfg").is_file()


@pytest.mark.slow
def test_demo_runs_once_and_shows_what_it_did(project, capfd, monkeypatch):
    """`all` on the sample: real training and files; a second run only shows the results again."""
    monkeypatch.chdir(project)
    few = {"sample": {"stage1": 40, "stage2": 2, "rate2": 3e-5, "evaluate": 20, "finalists": 2}}
    run(project, "all", **few)
    out = capfd.readouterr().out
    assert "stage 2, full depth" in out and "nlp = spacy.load(" in out
    assert "NER tags exit layer MACs words/s time" in " ".join(out.split())
    assert "UserWarning" not in out
    check_figures(project, "sample")
    best = project / "training" / "sample" / "self_sampling" / "model-best" / "meta.json"
    before = best.stat().st_mtime_ns
    run(project, "all", **few)
    again = capfd.readouterr().out
    assert "nlp = spacy.load(" in again and "Training pipeline" not in again
    assert best.stat().st_mtime_ns == before


@pytest.mark.slow
def test_wnut17_runs_from_data_to_figures(project, capfd, monkeypatch):
    """One task only, and the plain peer."""
    monkeypatch.chdir(project)
    few = {"stage1": 30, "stage2": 4, "evaluate": 10, "plain_epochs": 5, "dropout": 0.1}
    run(project, "wnut17", wnut17=few)
    check_figures(project, "wnut17")
    subprocess.run([sys.executable, "scripts/report.py", "wnut17"], cwd=project, check=True)
    out = capfd.readouterr().out
    assert "Hugging Face, ner" in out
    assert "stage 1, full depth" in out and "stage 2, full depth" in out


@pytest.mark.slow
def test_gsd_zh_runs_from_data_to_figures(project, capfd, monkeypatch):
    """Raw Chinese text: words and names, the plain peer, and what gives way where they cross."""
    monkeypatch.chdir(project)
    steps = {"stage1": 30, "stage2": 4, "evaluate": 10, "plain_epochs": 8, "wins": "names"}
    run(project, "gsd-zh", gsd_zh=steps)
    check_figures(project, "gsd_zh")
    subprocess.run([sys.executable, "scripts/report.py", "gsd_zh"], cwd=project, check=True)
    out = capfd.readouterr().out
    assert "NER words exit layer" in " ".join(out.split())
    assert "Hugging Face, seg" in out
    assert "stage 1, full depth" in out and "stage 2, full depth" in out
    assert [line.split()[:2] for line in out.splitlines() if line.startswith(("names ", "words "))]


@pytest.mark.slow
def test_package_of_the_sample_installs_and_loads(project, capfd, monkeypatch):
    """What `spacy package` makes names this package, and loads by its name."""
    monkeypatch.chdir(project)
    if not (project / "training" / "sample" / "self_sampling").is_dir():
        run(
            project,
            "all",
            sample={"stage1": 40, "stage2": 2, "rate2": 3e-5, "evaluate": 20, "finalists": 2},
        )
    run(project, "package")
    (archive,) = (project / "packages").glob("*/dist/*.tar.gz")
    folder = archive.parent.parent
    assert "spacy-earlyexit" in (folder / "meta.json").read_text()
    code = "import en_earlyexit_sample as m; print(m.load()('Berlin')._.exit_layers)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == [6]


def test_report_names_figures_of_another_format(tmp_path):
    (tmp_path / "ewt_joint.json").write_text(json.dumps({"rows": []}))
    script = [sys.executable, "scripts/report.py", "ewt", "--metrics", str(tmp_path)]
    result = subprocess.run(script, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert "ewt_joint.json" in result.stdout and "ewt-evaluate" in result.stdout


def test_missing_corpus_names_the_setting(project):
    """Without network and mirror the first command says what to do, and fails."""
    script = [sys.executable, "scripts/prepare_wnut17.py", "assets/wnut17", "corpus/none"]
    result = subprocess.run(
        script, cwd=project, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}
    )
    assert result.returncode == 1
    assert "--vars.mirror" in result.stdout + result.stderr
    assert not (project / "corpus" / "none").exists()


def test_every_command_has_help_and_existing_scripts():
    import srsly

    project = srsly.read_yaml(ROOT / "project.yml")
    assert project["commands"][-1]["name"] == "clean"
    for command in project["commands"]:
        assert command["help"], command["name"]
        deps = [dep for dep in command.get("deps", []) if dep.startswith(("scripts", "configs"))]
        assert all((ROOT / dep).is_file() for dep in deps), command["name"]
        for line in command["script"]:
            used = [word for word in line.split() if word.startswith(("scripts/", "configs/"))]
            assert set(used) <= set(deps), f"{command['name']} uses {used} but depends on {deps}"
    named = {name for steps in project["workflows"].values() for name in steps}
    assert named <= {command["name"] for command in project["commands"]}
