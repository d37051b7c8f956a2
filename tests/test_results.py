"""The runner of the results table: what it runs, what it does not do again, what it shows."""

import json

import pytest
from conftest import load_script
from typer.testing import CliRunner

script = load_script("results")
runner = CliRunner()


def of_pipeline(full, **points):
    """What evaluate returns, of one score."""
    rows = [("full", full), *((name.replace("_", "-"), score) for name, score in points.items())]
    filled = dict.fromkeys(script.KEPT)
    return {
        "pipeline": "p",
        "rows": [
            {
                **filled,
                "point": point,
                "scores": {"ents_f": score},
                "exit_speedup": 1.0 if point == "full" else 1.9,
                "tasks": {"much": "more"},
            }
            for point, score in rows
        ],
    }


@pytest.fixture
def calls(monkeypatch):
    """Instead of trainings, a list of what would have been trained."""
    made = []

    def project_run(root, command, overrides):
        made.append((command, overrides["vars.seed"]))

    def train_plain(train, dev, encoder, *, layers, seed, task, max_steps, head_scale, **settings):
        made.append((f"{task} {layers}", seed))
        assert max_steps == 640 and head_scale == 100 and not settings["characters"]
        return {"test": {"f": 0.5 - 0.01 * (12 - (layers or 12))}}

    def evaluate(pipeline, test, *, gold_preproc, repeats):
        made.append((f"evaluate {pipeline.parent.name}", gold_preproc))
        return of_pipeline(
            0.5, **{"2x": 0.49, "sentence_2x": 0.48, "single_3x": 0.4, "lossless": 0.5}
        )

    monkeypatch.setattr(script, "project_run", project_run)
    monkeypatch.setattr(script.train_plain, "train_plain", train_plain)
    monkeypatch.setattr(script.train_plain, "read_docs", lambda path: [])

    def keep_for_benchmark(pipeline, folder, seed):
        made.append((f"keep {pipeline.parent.name} of {folder}", seed))

    monkeypatch.setattr(script, "evaluate", evaluate)
    monkeypatch.setattr(script, "keep_for_benchmark", keep_for_benchmark)
    return made


def test_runs_what_has_no_result_yet(calls, tmp_path):
    args = ["run", "--encoder", "e", "--corpora", "wnut17", "--results", str(tmp_path)]
    assert runner.invoke(script.app, [*args, "--seeds", "1"]).exit_code == 0
    stages = ["joint", "self-sampling", "calibrate"]
    assert calls == [
        ("wnut17-corpus", 1),
        *((f"ner {layers}", 1) for layers in (None, 6, 4, 3)),
        *((f"wnut17-{step}", 1) for step in stages),
        ("evaluate joint", True),
        ("evaluate self_sampling", True),
        ("keep self_sampling of wnut17", 1),
    ]
    written = json.loads((tmp_path / "wnut17-joint-1.json").read_text())
    assert written["seed"] == 1 and "tasks" not in written["rows"][0]
    calls.clear()
    (tmp_path / "wnut17-cut4-ner-1.json").unlink()
    assert runner.invoke(script.app, [*args, "--seeds", "1"]).exit_code == 0
    assert calls == [("wnut17-corpus", 1), ("ner 4", 1)]
    calls.clear()
    (tmp_path / "wnut17-cut4-ner-1.json").unlink()
    assert runner.invoke(script.app, [*args, "--seeds", "1", "--no-peers"]).exit_code == 0
    assert calls == [("wnut17-corpus", 1)]
    assert runner.invoke(script.app, ["run", "--encoder", "e", "--corpora", "x"]).exit_code == 1


def test_everything_runs_on_the_gpu_that_is_asked_for(calls, tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr(script, "setup_gpu", lambda gpu_id, **settings: used.append(gpu_id))
    trained = script.project_run

    def project_run(root, command, overrides):
        used.append(overrides["vars.gpu"])
        trained(root, command, overrides)

    monkeypatch.setattr(script, "project_run", project_run)
    args = ["run", "--encoder", "e", "--corpora", "wnut17", "--results", str(tmp_path)]
    assert runner.invoke(script.app, [*args, "--seeds", "1", "--gpu-id", "3"]).exit_code == 0
    # Its own process, where peers are trained; the corpus, and three steps of ours.
    assert used == [3] * 5


def test_keeps_a_pipeline_for_the_benchmark(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "ROOT", tmp_path)
    pipeline = tmp_path / "calibrated"
    for content in ("old", "new"):
        pipeline.mkdir(exist_ok=True)
        (pipeline / "meta.json").write_text(content)
        script.keep_for_benchmark(pipeline, "ewt", 2)
    folder = tmp_path / "training" / "benchmarks" / "ewt"
    assert [path.name for path in folder.iterdir()] == ["ours-2"]
    assert (folder / "ours-2" / "meta.json").read_text() == "new" and pipeline.exists()


def test_takes_what_the_benchmark_has_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "ROOT", tmp_path)
    assert script.of_benchmark("ewt", "tag", 4) is None
    trained = tmp_path / "training" / "benchmarks" / "ewt" / "cut-4"
    trained.mkdir(parents=True)
    (trained / "metrics.json").write_text(json.dumps({"task": "tag", "test": {"acc": 0.9}}))
    assert script.of_benchmark("ewt", "tag", 4) == {"task": "tag", "test": {"acc": 0.9}}
    assert script.of_benchmark("ewt", "ner", 4) is None, "it was trained for tags"


def test_table_has_mean_and_spread_over_seeds(tmp_path):
    for seed, more in ((0, 0.0), (1, 0.02)):
        plain = {"test": {"f": 0.4 + more}}
        for name, result in (
            (f"wnut17-plain-ner-{seed}", plain),
            (f"wnut17-cut6-ner-{seed}", plain),
            (
                f"wnut17-self_sampling-{seed}",  # points for single texts are not in the table
                of_pipeline(0.5, **{"2x": 0.45 + more, "single_3x": 0.4}),
            ),
        ):
            (tmp_path / f"{name}.json").write_text(json.dumps(result))
    (tmp_path / "ewt-plain-tag-0.json").write_text(json.dumps({"test": {"acc": 0.9}}))
    page = tmp_path / "page.md"
    page.write_text("Above\n<!-- results all: begin -->\nold\n<!-- results all: end -->\nBelow\n")
    picture = tmp_path / "results.svg"
    args = ["table", "--results", str(tmp_path), "--page", str(page), "--plot", str(picture)]
    run = runner.invoke(script.app, args)
    assert run.exit_code == 0, run.output
    text = page.read_text()
    assert text.startswith("Above\n") and text.endswith("Below\n") and "old" not in text
    lines = text.splitlines()
    cut = "cut and fine-tuned | 41.00 ± 1.41 | 41.00 ± 1.41 (2.00×) |  |  | 2 |"
    assert f"| WNUT-17 | entities, F1 | {cut}" in lines
    ours = "stage 2, token exit | 50.00 ± 0.00 | 46.00 ± 1.41 (1.90×) |  |  | 2 |"
    assert f"| WNUT-17 | entities, F1 | {ours}" in lines
    assert "| EWT | tags, accuracy | cut and fine-tuned | 90.00 |  |  |  | 1 |" in lines
    assert picture.read_text().count("<svg") == 1


def test_losses_are_means_over_seeds_with_their_intervals(tmp_path):
    for seed, loss in ((0, [0.01, -0.01, 0.03]), (1, [0.02, 0.0, 0.06])):
        result = of_pipeline(0.5, **{"2x": 0.49})
        result["rows"][1]["losses"] = {"ents_f": loss}
        (tmp_path / f"wnut17-self_sampling-{seed}.json").write_text(json.dumps(result))
    (tmp_path / "wnut17-plain-ner-0.json").write_text(json.dumps({"test": {"f": 0.5}}))
    page = tmp_path / "page.md"
    page.write_text("<!-- results losses: begin -->\n<!-- results losses: end -->\n")
    args = ["losses", "--results", str(tmp_path), "--page", str(page)]
    assert runner.invoke(script.app, args).exit_code == 0
    ours = "| WNUT-17 | entities, F1 | stage 2, token exit | 1.50 (-0.50 to 4.50) |  |  | 2 |"
    lines = page.read_text().splitlines()
    assert ours in lines and len(lines) == 5, "nothing else has losses"


def test_says_when_there_is_nothing(tmp_path):
    run = runner.invoke(script.app, ["table", "--results", str(tmp_path)])
    assert run.exit_code == 1 and "scripts/results.py run" in " ".join(run.output.split())
