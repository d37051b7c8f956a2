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


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project's files, with a corpus and an encoder at hand."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "project.yml", folder)
    for name in ("scripts", "configs"):
        shutil.copytree(ROOT / name, folder / name)
    write_corpus(folder / "mirror" / "wnut17")
    make_encoder(folder / "encoder", n_layers=6)
    return folder


@pytest.mark.slow
def test_workflow_runs_from_data_to_report(project, capfd, monkeypatch):
    """Every command of the workflow, real training and files included."""
    monkeypatch.chdir(project)
    project_run(
        project,
        "wnut17",
        overrides={
            "vars.name": "few",
            "vars.encoder": str(project / "encoder"),
            "vars.mirror": str(project / "mirror"),
            "vars.stage1_steps": 30,
            "vars.stage2_steps": 4,
            "vars.eval_frequency": 10,
            "vars.learn_rate": 0.003,
            "vars.limit": 6,
            "vars.repeats": 1,
        },
    )
    out = capfd.readouterr().out
    assert "| plain fine-tuned encoder (Hugging Face) |" in out
    assert "| stage 1, full depth |" in out and "| stage 2, full depth |" in out
    figures = json.loads((project / "metrics" / "few_self_sampling.json").read_text())
    full, *faster = figures["rows"]
    assert full["exit_speedup"] == 1.0 and full["exit_layer_mean"] == 6.0
    assert full["words_per_second"] > 0
    assert [row["exit_speedup"] > 1.0 for row in faster] == [True] * len(faster) and faster
    for stage in ("joint", "self_sampling"):
        assert (project / "training" / "few" / stage / "model-best" / "config.cfg").is_file()


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
    assert len(project["commands"]) >= 8
    for command in project["commands"]:
        assert command["help"], command["name"]
        deps = [dep for dep in command.get("deps", []) if dep.startswith(("scripts", "configs"))]
        assert all((ROOT / dep).is_file() for dep in deps), command["name"]
        for line in command["script"]:
            used = [word for word in line.split() if word.startswith(("scripts/", "configs/"))]
            assert set(used) <= set(deps), f"{command['name']} uses {used} but depends on {deps}"
    named = {name for steps in project["workflows"].values() for name in steps}
    assert named <= {command["name"] for command in project["commands"]}
