"""The runner of experiments: what it trains, what it shares, what it does not do again."""

import json
from dataclasses import replace

import pytest
import spacy
import srsly
from conftest import ROOT, load_script, make_examples
from spacy.tokens import DocBin
from typer.testing import CliRunner

from spacy_earlyexit.calibration.measuring import Measurement

script = load_script("experiments")
runner = CliRunner()
SHORT = {"training.max_steps": 2, "training.eval_frequency": 2}


@pytest.fixture
def run(encoder, tmp_path):
    """Runs a plan of three experiments on the six sentences."""
    nlp = spacy.blank("en")
    corpus = str(tmp_path / "tiny.spacy")
    DocBin(docs=[eg.reference for eg in make_examples(nlp)]).to_disk(corpus)
    weights = {f"training.score_weights.{key}_acc": None for key in ("tag", "pos")}
    plan = {
        "corpora": {
            "tiny": {
                "settings": {
                    "paths.train": corpus,
                    "paths.dev": corpus,
                    "nlp.pipeline": ["transformer", "ner"],
                    **weights,
                },
                "stage1": {**SHORT, "training.score_weights.ents_f": 1.0},
                "stage2": SHORT,
            }
        },
        "experiments": {
            "first": {"corpus": "tiny"},
            "special": {
                "corpus": "tiny",
                "stage2": {"components.transformer.model.special_share": 0.25},
            },
            "linear": {
                "corpus": "tiny",
                "stage1": {"components.transformer.loss.layer_weights": "linear"},
            },
        },
    }
    srsly.write_yaml(tmp_path / "plan.yml", plan)
    folders = ["--output", str(tmp_path / "results"), "--models", str(tmp_path / "models")]

    def call(*args):
        plan_path = str(tmp_path / "plan.yml")
        return runner.invoke(
            script.app, ["run", "--encoder", encoder, "--plan", plan_path, *folders, *args]
        )

    return call


@pytest.mark.slow
def test_runs_what_has_no_result_and_shares_stage_one(run, tmp_path):
    done = run("--only", "first")
    assert done.exit_code == 0, done.output
    (first,) = (tmp_path / "models" / "tiny").glob("joint-*/model-last")
    made = (first / "meta.json").stat().st_mtime_ns
    done = run()
    assert done.exit_code == 0, done.output
    assert "first-0.json is there" in " ".join(done.output.split())
    assert (first / "meta.json").stat().st_mtime_ns == made
    models = sorted(path.name.rpartition("-")[0] for path in first.parent.parent.iterdir())
    assert models == ["joint", "joint", "self-sampling"], "linear trains a stage 1 of its own"
    results = {path.stem: srsly.read_json(path) for path in (tmp_path / "results").iterdir()}
    assert set(results) == {"first-0", "special-0", "linear-0"}
    assert results["special-0"]["stage2"] == {"components.transformer.model.special_share": 0.25}
    for result in results.values():
        assert result["rows"][0]["setting"] == "full depth"
        assert result["rows"][0]["dev_speedup"] == 1.0
        assert result["mixed_precision"] is False
    trained = next((tmp_path / "models" / "tiny").glob("self-sampling-*"))
    config = spacy.util.load_config(trained / "model-last" / "config.cfg")
    assert config["components"]["transformer"]["model"]["special_share"] == 0.25

    layers = runner.invoke(
        script.app, ["layers", str(trained / "model-last"), "--dev", str(tmp_path / "tiny.spacy")]
    )
    assert layers.exit_code == 0, layers.output
    header, _, row = layers.output.strip().splitlines()
    assert header.split() == ["pipeline", "task", "1", "2", "3", "4"]
    assert row.split()[1] == "ner" and len(row.split()) == 6

    rules = ["rules", str(trained / "model-last"), "--dev", str(tmp_path / "tiny.spacy")]
    printed = runner.invoke(script.app, [*rules, "--depths", "1,0.75,0.5", "--every", "1,2"])
    assert printed.exit_code == 0, printed.output
    header, _, full, *points = printed.output.strip().splitlines()
    assert header.split()[-3:] == ["ents_f", "expected", "error"]
    assert full.split()[:3] == ["full", "depth", "1.00×"]
    assert points and {row.split()[1] for row in points} <= {"2", "3", "4"}
    assert {row.split()[2] for row in points} <= {"1", "2"}

    halting = ["--depths", "1", "--schedules", "constant,linear", "--temperatures"]
    halting.append("none,fitted,ner=0.7")
    printed = runner.invoke(script.app, [*rules, *halting, str(trained / "model-last")])
    assert printed.exit_code == 0, printed.output
    header, _, full, *points = (row.split() for row in printed.output.strip().splitlines())
    assert header[:5] == ["point", "schedule", "temperatures", "last", "layer"]
    assert {row[1] for row in points} <= {"constant", "linear"}
    assert {row[2] for row in points} == {"none", "fitted", "ner=0.7"}
    assert [row[0] for row in points] == sorted(row[0] for row in points)
    for kind in ("warm", "ner=warm"):
        wrong = runner.invoke(script.app, [*rules, "--temperatures", kind])
        assert wrong.exit_code == 1 and "expected none, fitted, TASK=NUMBER" in wrong.output

    page = tmp_path / "page.md"
    page.write_text("a\n<!-- experiments: begin -->\nold\n<!-- experiments: end -->\nb\n")
    of_plan = ["--results", str(tmp_path / "results"), "--plan", str(tmp_path / "plan.yml")]
    table = runner.invoke(script.app, ["table", *of_plan, "--page", str(page)])
    assert table.exit_code == 0, table.output
    text = page.read_text()
    assert text.startswith("a\n<!--") and text.endswith("-->\nb\n") and "old" not in text
    assert text.count("| ents_f |") == 3
    some = ["table", *of_plan, "--only"]
    table = runner.invoke(script.app, [*some, "special,first"])
    names = [line.split()[0] for line in table.output.strip().splitlines()[2:]]
    assert names == ["special", "first"]
    table = runner.invoke(script.app, [*some, "special,none"])
    assert table.exit_code == 1 and "no result of none" in table.output


def test_unknown_experiment(run):
    done = run("--only", "other,first")
    assert done.exit_code == 1 and "no experiment other" in " ".join(done.output.split())


def test_table_says_what_is_lost():
    rows = [
        {"setting": "full depth", "ents_f": 0.75, "tag_acc": 0.95},
        {"setting": "2x", "ents_f": 0.74, "tag_acc": 0.955},
        {"setting": "4x", "ents_f": 0.7, "tag_acc": 0.9},
    ]
    header, table = script.table([{"name": "x", "seed": 1, "rows": rows}])
    assert header[3:] == ["full depth", "2×", "3×", "4×", "5×"]
    assert table == [
        ["x", "1", "ents_f", "75.00", "-1.00", "", "-5.00", ""],
        ["x", "1", "tag_acc", "95.00", "+0.50", "", "-5.00", ""],
    ]
    other = [{"setting": "full depth", "ents_f": 0.77}, {"setting": "2x", "ents_f": 0.78}]
    rows = [{key: value for key, value in row.items() if key != "tag_acc"} for row in rows]
    results = [{"name": "x", "seed": i, "rows": own} for i, own in enumerate([rows, other])]
    # 4x is left out where not every seed gets there
    expected = ["x", "2", "ents_f", "76.00 ± 1.41", "+0.00 ± 1.41", "", "", ""]
    assert script.table(results)[1] == [expected]
    expected = ["x", "2", "ents_f", "76.00 ± 1.41", "76.00 ± 2.83", "", "", ""]
    assert script.table(results, absolute=True)[1] == [expected]


def test_rows_that_the_plan_no_longer_has_are_history(tmp_path):
    for name in ("now", "then"):
        rows = [{"setting": "full depth", "ents_f": 0.5}]
        srsly.write_json(tmp_path / f"{name}-0.json", {"name": name, "seed": 0, "rows": rows})
    plan = tmp_path / "plan.yml"
    srsly.write_yaml(plan, {"experiments": {"now": {}}})
    shown = runner.invoke(script.app, ["table", "--results", str(tmp_path), "--plan", str(plan)])
    assert shown.exit_code == 0, shown.output
    now, then = shown.output.strip().splitlines()[2:]
    assert now.startswith("now  ") and then.startswith("then (history)  ")


def test_the_page_has_every_result():
    """Rows whose settings are gone stay, marked."""
    shown = (ROOT / "docs" / "experiments.md").read_text("utf8")
    plan = srsly.read_yaml(ROOT / "configs" / "experiments.yml")["experiments"]
    for path in (ROOT / "metrics" / "experiments").glob("*.json"):
        name = srsly.read_json(path)["name"]
        assert f"| {name if name in plan else f'{name} (history)'} |" in shown


def test_the_plan_names_settings_that_exist():
    """Every setting of the shipped plan stands over one of the configs."""
    plan = srsly.read_yaml(ROOT / "configs" / "experiments.yml")
    for own in plan["experiments"].values():
        corpus = plan["corpora"][own["corpus"]]
        for stage, config in corpus.get("configs", script.CONFIGS).items():
            settings = {**corpus["settings"], **corpus[stage], **own.get(stage, {})}
            overrides = json.loads(json.dumps(settings))
            loaded = spacy.util.load_config(ROOT / "configs" / config, overrides=overrides)
            for path, value in settings.items():
                node = loaded
                for key in path.split("."):
                    node = node[key]
                assert node == value


def test_rules_show_the_error_of_each_of_several_tasks(tmp_path, monkeypatch):
    full = Measurement(None, 0.8, 1.0, 6.0, {"tag_acc": 0.9}, {}, 0.2, {"tag": 0.1, "ner": 0.4})
    two_seeds = iter([full, replace(full, task_errors={"tag": 0.3, "ner": 0.6})])
    monkeypatch.setattr(script, "_rules", lambda *_: {("full depth", *[""] * 5): next(two_seeds)})
    printed = runner.invoke(script.app, ["rules", "a", "b", "--dev", str(tmp_path)])
    assert printed.exit_code == 0, printed.output
    header, _, row = printed.output.strip().splitlines()
    assert header.split("  ")[-1].strip() == "that of ner" and "that of tag" in header
    assert row.split()[-3:] == ["20.00", "20.00", "50.00"]
