"""The benchmark: rows of systems in processes of their own, the peers, long documents."""

import json
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import spacy
import srsly
import torch
from conftest import ROOT, make_examples
from spacy.tokens import Doc, DocBin
from spacy.training import Example
from test_cli import run_cli
from typer.testing import CliRunner

from spacy_earlyexit.cli.benchmark import distinct_names
from spacy_earlyexit.evaluation import benchmark as benchmarking
from spacy_earlyexit.evaluation import scores
from spacy_earlyexit.evaluation.benchmark import LATENCY_WORDS, Row, benchmark, peak_memory, table
from spacy_earlyexit.model import encoder_layer
from spacy_earlyexit.model.criteria import TokenExit
from spacy_earlyexit.model.pieces import PieceTokenizer

sys.path.insert(0, str(ROOT / "benchmarks"))
import agreement
import comparisons
import documents
import products
import run as script
import systems

KEYS = {"system", "setting", "corpus", "score", "scores", "tag_acc", "words_per_second", "spread"}
KEYS |= {"mac_speedup", "wall_speedup", "peak_mb", "latency_ms", "batch_size", "seeds"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    nlp = spacy.blank("en")
    gold = [eg.reference for eg in make_examples(nlp)]
    # One sentence of them, which people would feel the latency of: 7 + 3 + 2 + 7 words.
    tokens = [token for doc in [*gold[3:6], gold[0]] for token in doc]
    tags = [f"{t.ent_iob_}-{t.ent_type_}" if t.ent_type else "O" for t in tokens]
    long = Doc(nlp.vocab, words=[token.text for token in tokens], ents=tags)
    assert len(long) in LATENCY_WORDS
    path = tmp_path_factory.mktemp("benchmark") / "tiny.spacy"
    DocBin(docs=[*gold, long]).to_disk(path)
    return path


@pytest.fixture(scope="module")
def pipeline(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("benchmark") / "pipeline"
    transformer = trained.get_pipe("transformer")
    transformer.points["2x"] = {"exit": TokenExit(0.9, 0).to_config()}
    trained.to_disk(path)
    del transformer.points["2x"]
    return path


@pytest.mark.slow
def test_cli_times_points_and_precisions(pipeline, corpus, tmp_path):
    output = tmp_path / "out.json"
    code, out = run_cli(
        *("benchmark", corpus, pipeline, "--points", "full,2x", "--repeats", "2"),
        *("--precisions", "float32,int8", "--threads", "1", "--json", output),
    )
    assert code == 0, out
    results = json.loads(output.read_text())
    assert results["threads"] == 1 and results["repeats"] == 2
    assert {"machine", "versions", "date", "commit"} <= set(results)
    full, fast, *int8 = results["rows"]
    assert all(set(row) == KEYS for row in results["rows"])
    assert [row["setting"] for row in int8] == ["full int8", "2x int8"]
    assert {row["system"] for row in results["rows"]} == {pipeline.name}, "no path"
    assert full["scores"]["ents_f"] == full["score"]
    assert full["score"] > 0.7 and full["tag_acc"] is None, "over-fitted; there are no tags"
    assert full["mac_speedup"] == 1.0 and full["wall_speedup"] == 1.0
    assert fast["mac_speedup"] > 1.0
    for row in results["rows"]:
        low, high = row["spread"]
        assert 0 < low <= row["words_per_second"] <= high
        assert row["peak_mb"] > 100 and row["latency_ms"] > 0
    columns, rows = table(results)
    assert all(len(row) == len(columns) for row in rows)
    assert "2x int8" in out and "words/s" in out


@pytest.mark.parametrize(
    "args,message",
    [
        (["--points", "9x"], "Unknown operating point '9x'"),
        (["--precisions", "int4"], "`precision`"),
        (["--points", ""], "`points` has to be a name"),
        (["--precisions", ","], "`precisions` has to be a name"),
    ],
)
def test_cli_says_what_is_wrong_before_anything_runs(pipeline, corpus, args, message):
    code, out = run_cli("benchmark", corpus, pipeline, *args)
    assert code == 1 and message in " ".join(out.split())


def test_a_system_that_fails_is_named(corpus):
    row = Row("theirs", "fast", "tiny", str(corpus), settings={"path": "/no/such/pipeline"})
    with pytest.raises(RuntimeError, match=r"theirs, fast \(tiny\) failed:[\s\S]*no/such/pipeline"):
        benchmark([row], repeats=1, threads=1)


def test_a_message_needs_no_traceback(pipeline, tmp_path):
    """Data without words; the same pipeline twice is one."""
    path = tmp_path / "space.spacy"
    DocBin(docs=[Doc(spacy.blank("en").vocab, words=["\n"])]).to_disk(path)
    code, out = run_cli("benchmark", path, pipeline, pipeline, "--points", "full")
    assert code == 1 and "no words to evaluate on" in out and "Traceback" not in out


def test_rows_of_one_name_do_not_mix(monkeypatch):
    """Nor do they take their scores for 0 where nothing is predicted."""

    class FakeWorker:
        n_words = 100
        answers = iter((1.0, 2.0))

        def __init__(self, row, limit, threads):
            self.answer = next(self.answers)

        def ask(self, order):
            answers = {"run": self.answer, "one by one": [self.answer], "memory": 1.0}
            return answers.get(order, {"batch_size": None})

        def stop(self):
            pass

    monkeypatch.setattr(benchmarking, "Worker", FakeWorker)
    rows = benchmark([Row("a", "", "tiny", "t.spacy")] * 2, repeats=3, threads=1)["rows"]
    assert [row["words_per_second"] for row in rows] == [100.0, 50.0]
    assert [(row["score"], row["tag_acc"]) for row in rows] == [(None, None)] * 2


def test_scores_are_means_over_seeds_and_times_of_the_first(pipeline, corpus):
    settings = [{"path": str(pipeline), "exit": exit} for exit in ("full", "2x")]
    row = Row("a", "", "tiny", str(corpus), settings=settings[0])
    one, other, both = benchmark(
        [row, replace(row, settings=settings[1]), replace(row, others=settings[1:])],
        repeats=1,
        threads=1,
    )["rows"]
    assert (one["seeds"], both["seeds"]) == (1, 2)
    assert both["score"] == pytest.approx((one["score"] + other["score"]) / 2)
    assert both["mac_speedup"] == one["mac_speedup"] == 1.0 < other["mac_speedup"]


def test_scores_are_of_what_is_predicted():
    vocab = spacy.blank("en").vocab
    gold = Doc(vocab, words=["a", "b"], tags=["X", "Y"], pos=["NOUN", "VERB"], ents=["B-P", "O"])
    tagged = Doc(vocab, words=["a", "b"], tags=["X", "X"])
    assert benchmarking._scores([Example(tagged, gold)]) == {"tag_acc": 0.5}
    cut = Doc(vocab, words=["a", "b", "c"], spaces=[True, False, False])
    joined = Doc(vocab, words=["a", "bc"], spaces=[True, False])
    assert benchmarking._scores([Example(cut, joined)]) == {}


def test_scores_are_those_of_the_components(tmp_path):
    """Also of spaCy's own: dependencies, morphology, lemmas, sentences, categories."""
    nlp = spacy.blank("en")
    for name in ("parser", "morphologizer", "trainable_lemmatizer", "textcat"):
        nlp.add_pipe(name)
    annotations = {"heads": [1, 1], "deps": ["nsubj", "ROOT"], "pos": ["PROPN", "VERB"]}
    annotations |= {"lemmas": ["Anna", "live"], "morphs": ["Number=Sing", ""]}
    doc = Doc(nlp.vocab, words=["Anna", "lives"], **annotations)
    doc.cats = {"A": 1.0, "B": 0.0}
    nlp.get_pipe("trainable_lemmatizer").min_tree_freq = 1
    nlp.initialize(lambda: [Example(nlp.make_doc(doc.text), doc)])
    nlp.to_disk(tmp_path / "stock")
    system = benchmarking.SpacySystem(str(tmp_path / "stock"))
    done = system.run(system.prepare([doc]))
    found = benchmarking._scores([Example(done[0], doc)], system)
    assert {"dep_las", "dep_uas", "pos_acc", "morph_acc", "lemma_acc", "cats_score"} == set(found)
    row = dict.fromkeys(KEYS) | {"spread": [1, 1], "words_per_second": 1, "peak_mb": 1}
    columns, rows = table(
        {"rows": [row | {"score": 0.5, "scores": {"pos_acc": 0.5, "dep_las": 1}}]}
    )
    assert columns[3:6] == ["score", "tags", "dep_las"] and rows[0][3:6] == ["50.00", "", "100.00"]


def test_results_name_folders_without_their_paths(tmp_path):
    paths = [str(tmp_path / path) for path in ("a/best", "b/best", "c", "d/model-best")]
    assert list(distinct_names(paths).values()) == ["a/best", "b/best", "c", "d/model-best"]
    assert list(distinct_names(["en_core_web_sm"]).values()) == ["en_core_web_sm"]


def test_memory_without_proc(monkeypatch):
    """As on Windows, where there is no module `resource` either."""
    monkeypatch.setattr(Path, "read_text", lambda *args, **kwargs: "")
    monkeypatch.setattr(benchmarking.platform, "system", lambda: "Windows")
    assert peak_memory() > 50
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(RuntimeError, match=r"psutil .*\[benchmark\]"):
        peak_memory()


def test_the_processors_name(monkeypatch):
    scores.cpu_name.cache_clear()
    assert scores.cpu_name()
    scores.cpu_name.cache_clear()
    monkeypatch.setitem(sys.modules, "cpuinfo", None)
    assert scores.cpu_name() in (platform.processor(), platform.machine())
    scores.cpu_name.cache_clear()


def test_rows_of_other_corpora_stay_if_measured_alike(tmp_path):
    path = tmp_path / "latest.json"
    assert script.rows_of_others({"rows": [], "commit": "a", "date": "x"}, path) == []
    old, new = {"corpus": "old"}, {"corpus": "new"}
    srsly.write_json(path, {"rows": [old, new], "commit": "a", "date": "x"})
    assert script.rows_of_others({"rows": [new], "commit": "a", "date": "y"}, path) == [old]
    assert script.rows_of_others({"rows": [new], "commit": "b", "date": "y"}, path) == []


def test_memory_is_not_that_of_the_process_before():
    """Which starts the processes of the systems, and may have loaded much."""
    before = bytearray(b"1" * (800 * 2**20))
    command = "from spacy_earlyexit.evaluation.benchmark import peak_memory; print(peak_memory())"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, check=True)
    assert len(before) > 2**29
    assert 100 < float(done.stdout) < 700


@pytest.fixture(scope="module")
def classifier(encoder, corpus, tmp_path_factory):
    """A token classifier as benchmarks/run.py trains it, with its export."""
    pytest.importorskip("onnxruntime", reason="the extra `benchmark` is not installed")
    path = tmp_path_factory.mktemp("benchmark") / "plain"
    docs = systems.train_plain.read_docs(corpus)
    systems.train_plain.train_plain(docs, docs, encoder, epochs=3, learn_rate=5e-3, save=path)
    script.export_onnx(path)
    return path


@pytest.mark.slow
def test_peers_say_what_the_plain_model_says(classifier, corpus):
    docs = systems.train_plain.read_docs(corpus)
    plain = systems.HuggingFace(str(classifier), batch_words=10)
    labels = plain.run(plain.prepare(docs))
    assert [len(own) for own in labels] == [len(doc) for doc in docs]
    alone = [plain.run(plain.prepare([doc]))[0] for doc in docs]
    assert labels == alone, "padding and sorting do not matter"
    onnx = systems.Onnx(str(classifier), batch_words=10)
    assert onnx.run(onnx.prepare(docs)) == labels
    quantised = systems.Onnx(str(classifier), int8=True)
    found = np.concatenate(quantised.run(quantised.prepare(docs)))
    assert np.mean(found == np.concatenate(labels)) > 0.8
    annotated = plain.annotated(docs, labels)
    assert [doc.text for doc in annotated] == [doc.text for doc in docs]


def test_plan_is_complete_and_leaves_out_what_is_not_trained(tmp_path, monkeypatch, capsys):
    plan = srsly.read_yaml(script.PLAN)
    trained = set(plan["train"])
    assert {row["use"] for row in plan["rows"] if "use" in row} == trained
    assert {row["kind"] for row in plan["rows"] if "use" in row} <= set(script.KINDS)
    monkeypatch.setattr(script, "TRAINED", tmp_path / "training" / "benchmarks")
    monkeypatch.setattr(script, "ROOT", tmp_path)
    assert script.plan_rows(plan, "wnut17") == []
    (tmp_path / "training" / "benchmarks" / "wnut17" / "plain").mkdir(parents=True)
    (tmp_path / "training" / "wnut17" / "self_sampling" / "calibrated").mkdir(parents=True)
    rows = script.plan_rows(plan, "wnut17")
    assert not any(row.others for row in rows), "one seed only"
    for seed in plan["seeds"]:
        (script.TRAINED / "wnut17" / f"ours-{seed}").mkdir()
    assert [len(row.others) for row in script.plan_rows(plan, "wnut17")] == [0] * 3 + [2] * 18
    assert [row.system for row in rows] == ["Hugging Face", *["ONNX Runtime"] * 2, *["ours"] * 18]
    assert rows[-5].setting == "sentence-3x int8" and rows[-5].baseline == "ours, full int8"
    assert rows[-3].setting == "single-4x float32" and rows[-3].baseline == "ours, full float32"
    assert rows[-1].setting == "single-4x int8" and rows[-1].baseline == "ours, full int8"
    assert "benchmarks/wnut17/cut-3 is missing" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_train_and_quick_run(encoder, corpus, tmp_path, monkeypatch):
    """What `make benchmark` does behind the workflows, with two steps and 32 documents."""
    pytest.importorskip("onnxruntime", reason="the extra `benchmark` is not installed")
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "TRAINED", tmp_path / "training" / "benchmarks")
    plan = srsly.read_yaml(script.PLAN)
    (tmp_path / "benchmarks").mkdir()
    srsly.write_yaml(tmp_path / "benchmarks" / "plan.yml", plan)
    shutil.copy(ROOT / "project.yml", tmp_path)
    monkeypatch.setattr(script, "PLAN", tmp_path / "benchmarks" / "plan.yml")
    (tmp_path / "corpus" / "wnut17").mkdir(parents=True)
    for part in ("train", "dev", "test"):
        (tmp_path / "corpus" / "wnut17" / f"{part}.spacy").write_bytes(corpus.read_bytes())
    names = [name for name in plan["train"] if name != "cut-6"]  # the encoder has 4 layers
    args = ("--encoder", str(encoder), "--corpora", "wnut17", "--systems", ",".join(names))
    code, out = invoke("train", *args, "--steps", "2")
    assert code == 0, out
    trained = tmp_path / "training" / "benchmarks" / "wnut17"
    assert sorted(path.name for path in trained.iterdir()) == sorted(names)
    nlp = spacy.load(trained / "spacy-transformers" / "model-best")
    assert nlp.pipe_names == ["transformer", "ner"]
    figures = tmp_path / "figures" / "latest.json"
    code, out = invoke("run", "--corpora", "wnut17", "--quick", "--json", str(figures))
    assert code == 0, out
    rows = json.loads(figures.read_text())["rows"]
    assert {row["system"] for row in rows} == {
        row["system"] for row in plan["rows"] if row.get("use") in names
    }
    assert figures.with_suffix(".md").exists() and figures.with_suffix(".svg").exists()


def invoke(*args):
    result = CliRunner().invoke(script.app, args)
    return result.exit_code, f"{result.output}{result.exception or ''}"


def test_table_and_picture_of_results(tmp_path):
    row = dict.fromkeys(KEYS) | {"system": "ours", "setting": "3x float32", "corpus": "c"}
    row |= {"score": 0.5, "words_per_second": 1234.5, "spread": [1000.0, 1300.0], "peak_mb": 900.0}
    row["seeds"] = 3
    results = {
        "machine": {"cpu": "x"},
        "threads": 2,
        "versions": {"torch": "2"},
        "date": "today",
        "commit": "abc",
        "repeats": 5,
        "limit": 640,
        "rows": [row, {**row, "system": "theirs", "tag_acc": 0.9}],
    }
    text = script.markdown(results)
    assert "| c | ours | 3x float32 | 50.00 |  | 1,234 (1,000–1,300) |" in text
    assert "| corpus | what | wanted |" in text and "the first 640 test documents" in text
    assert f"means of 3 seeds of {row['corpus']};" in text
    script.plot(results, tmp_path / "p.svg")
    assert (tmp_path / "p.svg").read_text().count("<svg") == 1


def test_comparisons_take_the_fastest_that_loses_little():
    def row(system, setting, score, words, **more):
        base = {"system": system, "setting": setting, "corpus": "c", "score": score}
        base |= {"words_per_second": words, "peak_mb": 100.0, "latency_ms": 1e4 / words}
        base["tag_acc"] = None
        return base | {"mac_speedup": 2.0, "wall_speedup": 1.0, **more}

    rows = [
        row("spacy-transformers", "", 0.5, 100.0),
        row("Hugging Face", "", 0.5, 200.0),
        row("encoder cut to 6 layers", "", 0.4, 400.0),
        row("ours", "full float32", 0.5, 250.0),
        row("ours", "2x float32", 0.5, 300.0),
        row("ours", "3x float32", 0.495, 550.0),
        row("ours", "4x float32", 0.48, 800.0),
        row("ours", "3x int8", 0.52, 1500.0, latency_ms=None),
    ]
    _, lines = comparisons.comparisons({"rows": rows})
    found = {what: (value, fine) for _, what, _, value, fine in lines}
    assert found["words/s, full depth to spacy-transformers"] == ("2.50×", "yes")
    early = "words/s, early exit in float32 (3x float32) to spacy-transformers"
    assert found[early] == ("5.50×", "no")
    early = "words/s, early exit in int8 (3x int8) to spacy-transformers"
    assert found[early] == ("15.00×", "yes")
    assert found["latency, early exit (3x float32) to spacy-transformers"] == ("0.18×", "yes")
    assert found["wall-clock to MAC speed-up at 2x"] == ("0.50", "no")
    assert not any("ONNX" in what for what in found), "it is not there"
    at_2x = "score at 2x less that of a cut encoder of the same speed"
    assert found[at_2x] == ("+5.00", "yes"), "half way between 50 and 40"
    assert comparisons.comparisons({"rows": rows[:3]})[1] == []
    header, lines = comparisons.brief({"rows": rows})
    assert [line[1] for line in lines] == [
        "spacy-transformers", "Hugging Face",
        "ours, full float32", "ours, 3x float32", "ours, 3x int8",
    ]  # fmt: skip
    assert dict(zip(header, lines[-1], strict=True)) == {
        "corpus": "c", "system": "ours, 3x int8", "score": "52.00", "tags": "", "words/s": "1,500",
        "to spacy-transformers": "15.0×",
    }  # fmt: skip
    assert comparisons.brief({"rows": rows[1:]})[1] == [], "there is nothing to compare with"
    # Where there are tags, they must not be lost either, and cut encoders that tag compare by them.
    tags = [0.9, 0.9, 0.8, 0.9, 0.9, 0.88, 0.9, 0.9]
    rows = [{**own, "tag_acc": acc} for own, acc in zip(rows, tags, strict=True)]
    lines = [line[1:4] for line in comparisons.comparisons({"rows": rows})[1]]
    early = "words/s, early exit in float32 (2x float32) to spacy-transformers"
    assert [early, "≥ 6×", "3.00×"] in lines
    at_2x = "tag accuracy at 2x less that of a cut encoder of the same speed"
    assert [at_2x, "> 0", "+5.00"] in lines


def test_rows_of_documents_are_means_over_seeds(tmp_path, capsys):
    row = {"corpus": "ewt", "regime": "documents", "point": "full", "ents_f": 80.0, "tag_acc": 95.0}
    row |= {"mac_speedup": 1.0, "wall_speedup": 1.0, "words_per_second": 100.0}
    for seed, more in enumerate((0.0, 2.0)):
        fast = {**row, "point": "2x", "regime": "sentences", "tag_acc": None}
        rows = [fast, {**row, "ents_f": 80 + more}]
        (tmp_path / f"ewt-{seed}.json").write_text(json.dumps({"rows": rows}))
    full, fast = documents.means(tmp_path)
    assert (full["point"], full["ents_f"], full["seeds"]) == ("full", 81.0, 2)
    assert fast["tag_acc"] is None
    (tmp_path / "all.json").write_text(json.dumps({"rows": [full, fast]}))
    page = tmp_path / "page.md"
    page.write_text("<!-- documents: begin -->\n<!-- documents: end -->\n")
    documents.table_cli(tmp_path / "all.json", page)
    line = "| ewt | full | documents | 81.00 | 95.00 | 1.00× | 1.00× | 100 | 2 |"
    assert line in page.read_text()
    assert all(len(line) <= 80 for line in capsys.readouterr().out.splitlines())


def test_documents_are_measured_once(pipeline, corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(documents, "ROOT", tmp_path)
    monkeypatch.setattr(documents, "CORPORA", {"tiny": documents.Corpus(None)})
    (tmp_path / "corpus" / "tiny").mkdir(parents=True)
    shutil.copy(corpus, tmp_path / "corpus" / "tiny" / "test.spacy")
    for regime in documents.REGIMES:  # as an earlier run trained them
        shutil.copytree(pipeline, tmp_path / "training" / "documents" / f"tiny-{regime}-0")
    args = ("encoder", "", "tiny", "0", 1, tmp_path / "rows", tmp_path / "all.json")
    documents.run_cli(*args)
    rows = json.loads((tmp_path / "all.json").read_text())["rows"]
    assert {(row["regime"], row["point"]) for row in rows} == {
        (regime, point) for regime in documents.REGIMES for point in ("full", "2x")
    }
    assert all(row["seeds"] == 1 and row["ents_f"] > 0 and row["tag_acc"] is None for row in rows)
    before = (tmp_path / "all.json").read_text()
    documents.run_cli(*args)
    assert (tmp_path / "all.json").read_text() == before
    assert "tiny-documents-0.json is there" in capsys.readouterr().out


@pytest.mark.slow
def test_long_documents(pipeline, corpus, tmp_path, capsys):
    documents.length_cli(str(pipeline), corpus, "2x", 1, 5_000, tmp_path / "length.json")
    rows = json.loads((tmp_path / "length.json").read_text())["rows"]
    assert [row["words"] for row in rows] == [500, 5_000]
    assert "to 500 words" in capsys.readouterr().out


def test_entities_of_the_same_text_cut_otherwise(pipeline, tmp_path):
    nlp = spacy.load(pipeline)
    doc = Doc.from_docs([eg.reference for eg in make_examples(nlp)])
    lengths = [len(eg.reference) for eg in make_examples(nlp)]
    starts = {sum(lengths[:i]) for i in range(len(lengths))}
    for token in doc:
        token.is_sent_start = token.i in starts
    DocBin(docs=[doc]).to_disk(tmp_path / "docs.spacy")
    documents.forms_cli(str(pipeline), tmp_path / "docs.spacy", "full,2x", 0, tmp_path / "f.json")
    rows = json.loads((tmp_path / "f.json").read_text())["rows"]
    assert [row["point"] for row in rows] == ["full", "2x"]
    assert all(0 <= row["sentences"] <= 1 and row["entities"] for row in rows)
    whole = documents.entities(nlp, [doc], lambda doc: [(0, len(doc.text))])
    assert whole == documents.entities(nlp, [doc], lambda doc: documents._cuts(doc, 99))


@pytest.mark.slow
def test_shares_of_the_time(pipeline, corpus, monkeypatch, capsys):
    """The budget cuts the documents that were read ahead into batches."""
    batches = []
    engine = products.run

    def counted(*args, **settings):
        batches.append(1)
        return engine(*args, **settings)

    monkeypatch.setattr(products, "run", counted)
    monkeypatch.setattr(encoder_layer, "run", engine)  # the command puts a clock around it

    def prints(**settings):
        batches.clear()
        products.shares_cli(str(pipeline), corpus, points="full,2x", repeats=1, **settings)
        return capsys.readouterr().out, len(batches)

    out, n_batches = prints(ahead=100)
    full, faster = [line for line in out.splitlines() if line.startswith(("full", "2x"))]
    assert full.count("1.00x") == 3 and faster.count("(") == 2
    assert n_batches == 4, "two points, warmed up and timed once, everything in one batch"
    n_docs = len(DocBin().from_disk(corpus))
    assert prints(ahead=100, budget=1)[1] == 4 * n_docs
    assert prints(ahead=1)[1] == 4 * n_docs
    asked = []
    encode = PieceTokenizer.encode
    monkeypatch.setattr(
        PieceTokenizer, "encode", lambda *args: asked.append(len(args[1])) or encode(*args)
    )
    prints(ahead=100)
    assert len(asked) == 1, "words are new once"
    prints(ahead=100, new_words=True)
    assert asked == [asked[0]] * 5, "in every run"


def test_labels_are_those_of_hugging_face_with_the_same_weights(pipeline, corpus, monkeypatch):
    command = [str(pipeline), str(corpus)]
    result = CliRunner().invoke(agreement.app, command)
    assert result.exit_code == 0, result.output
    assert re.search(r"\n *ner +\d+ +0 +\d\.\de-0[5-9]\n", result.output), result.output

    def other_weights(name, encoder):
        model = weights(name, encoder)
        with torch.no_grad():
            model.encoder.layer[-1].output.LayerNorm.weight.mul_(-1.0)
        return model

    weights = agreement.hugging_face
    monkeypatch.setattr(agreement, "hugging_face", other_weights)
    result = CliRunner().invoke(agreement.app, command)
    assert re.search(r"\n *ner +\d+ +[1-9]\d* ", result.output), result.output
