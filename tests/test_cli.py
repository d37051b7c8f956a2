"""python -m spacy earlyexit …: what the commands say, and how they fail."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import spacy
from conftest import ROOT, TEXTS, make_encoder, run_cli
from spacy.tokens import Doc, DocBin
from spacy.training import Example
from spacy.util import registry
from transformers import AutoTokenizer

from spacy_earlyexit.cli.debug_data import count_gold, count_units, debug_data
from spacy_earlyexit.cli.info import (
    TRAINED_WITH,
    describe,
    encoder_name,
    format_block,
    format_temperatures,
    info,
    shorten,
)
from spacy_earlyexit.cli.tables import print_table
from spacy_earlyexit.model.architecture import module_of
from spacy_earlyexit.model.criteria import SentenceExit
from spacy_earlyexit.model.pieces import PieceTokenizer, encode_docs
from spacy_earlyexit.pipeline.finding import find_transformer
from spacy_earlyexit.pipeline.tasks import get_task

CONFIG = ROOT / "configs" / "joint.cfg"
UNITS = {"@span_getters": "spacy-earlyexit.text_units.v1", "length": 32, "longest": 128}
POINT = {
    "exit": {"@misc": "spacy-earlyexit.TokenExit.v1", "threshold": 0.123456, "window": 2},
    "dev_score": 0.875,
    "dev_speedup": 3.0123,
    "dev_mean_depth": 1.5,
}


def spacy_cli(*args):
    command = [sys.executable, "-m", "spacy", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True)


# --- info ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline(trained, tmp_path_factory):
    """The over-fitted pipeline with an operating point in force."""
    folder = tmp_path_factory.mktemp("pipelines")
    trained.to_disk(folder / "full")
    nlp = spacy.load(folder / "full")
    transformer = nlp.get_pipe("transformer")
    transformer.points["3x"] = POINT
    transformer.exit = "3x"
    nlp.to_disk(folder / "fast")
    return folder / "fast"


def test_spacy_runs_info_as_json(pipeline, trained, encoder):
    """Through the entry point, in a process of its own: nothing but JSON on stdout."""
    result = spacy_cli("earlyexit", "info", pipeline, "--json")
    assert result.returncode == 0, result.stderr
    module = module_of(trained.get_pipe("transformer").model)
    assert json.loads(result.stdout) == {
        "pipeline": str(pipeline),
        "component": "transformer",
        "enabled": True,
        "components": ["transformer", "ner"],
        "encoder": {
            "name": Path(encoder).name,
            "family": "bert",
            "layers": 4,
            "hidden": 32,
            "heads": 4,
            "positions": 64,
            "parameters": sum(p.numel() for p in module.encoder.parameters()),
            "offramp_parameters": 4 * 5 * (3 * 32 + 1),  # layers, O and B- and I- of two types
            "pieces": "tokens",
            "trained_with": {name: module.settings[name] for name in TRAINED_WITH},
        },
        "span_getter": UNITS,
        "regime": {"tokens": "the pipeline's own", "unit_length": 7.0},
        "tasks": {"ner": {"labels": ["LOC", "PER"], "rules_exit": True}},
        "readers": [{"name": "ner", "factory": "earlyexit_ner", "tasks": ["ner"], "enabled": True}],
        "exit": {"name": "3x", "criterion": POINT["exit"]},
        "points": {"3x": POINT},
        "temperatures": {"ner": [1.0] * 4},
    }


def test_info_tables(pipeline):
    code, out = run_cli("info", pipeline)
    assert code == 0
    for row in (
        "Family bert",
        "Layers 4",
        "Span getter text_units.v1(length=32, longest=128)",
        "tokens the pipeline's own",
        "words of a unit 7",
        "Exit 3x: TokenExit.v1(threshold=0.1235, window=2)",
        "Temperatures not fitted",
        "ner 2 yes LOC, PER",
        "ner earlyexit_ner ner yes",
        "3x (in force) 87.50 3.01x 1.50",
        "3x (in force) TokenExit.v1(threshold=0.1235, window=2)",
        "Trained with",
    ):
        assert row in out


def test_disabled_reader_and_criterion(pipeline):
    nlp = spacy.load(pipeline, disable=["ner"])
    transformer = find_transformer(nlp)
    transformer.exit = SentenceExit(0.25)
    data = describe(nlp)
    assert [(r["name"], r["enabled"]) for r in data["readers"]] == [("ner", False)]
    assert data["exit"] == {"name": None, "criterion": SentenceExit(0.25).to_config()}
    nlp.disable_pipe("transformer")
    assert find_transformer(nlp) is transformer and describe(nlp)["enabled"] is False


def test_consumers_are_those_behind_that_read_this_transformer(trained, encoder):
    assert [pipe.name for pipe in find_transformer(trained).consumers] == ["ner"]
    nlp = spacy.blank("en")
    nlp.add_pipe("earlyexit_ner", name="before")
    transformer = nlp.add_pipe("earlyexit_transformer", name="transformer")
    nlp.add_pipe("earlyexit_ner", name="other", config={"upstream": "another"})
    nlp.add_pipe("earlyexit_ner", name="own", config={"upstream": "transformer"})
    assert [pipe.name for pipe in transformer.consumers] == ["own"]


def test_info_before_initialisation(tmp_path):
    nlp = spacy.blank("en")
    nlp.add_pipe("earlyexit_transformer", name="transformer")
    nlp.to_disk(tmp_path)
    assert info(tmp_path)["encoder"] is None and info(tmp_path)["tasks"] == {}
    code, out = run_cli("info", tmp_path)
    assert code == 0
    assert "no weights" in out and "No component reads the exits" in out and "full depth" in out


def test_info_without_transformer_names_what_is_there(tmp_path):
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer", name="sentences")
    nlp.to_disk(tmp_path)
    code, out = run_cli("info", tmp_path)
    assert code == 1
    assert "no earlyexit_transformer" in out and "sentences (sentencizer)" in out
    with pytest.raises(ValueError, match="only: nothing"):
        find_transformer(spacy.blank("en"))


def test_info_without_pipeline(tmp_path):
    code, out = run_cli("info", tmp_path / "none")
    assert code == 1 and "none" in out


@pytest.mark.parametrize("columns", [None, "60"])
def test_tables_fit_the_terminal_and_cannot_steer_it(columns, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    header = ["point", "ents_f", "tag_acc", "loss", "MAC speed-up", "exit layer", "exit"]
    call = "TokenExit.v1(threshold=0.1235, window=2, tasks=[ner, tag])"
    name = "3x\x1b[31m\x9b1m\u202e 日本"
    print_table([(name, 1.25, 10, 3, "2.00x", 4, call)], header, "lrrrrrl")
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= int(columns or 80)
    assert not set("\x1b\x9b\u202e") & set(out) and "日本" in out
    assert "TokenExit.v1(threshold=0.1235," in out
    print_table([("[red]", "x" * 200)], aligns="ll")
    out = capsys.readouterr().out
    assert "[red]" in out and out.count("x") == 200
    assert max(map(len, out.splitlines())) <= int(columns or 80)


def test_info_does_not_show_where_the_encoder_lay():
    for path in ("/home/me/encoder", "C:\\me\\encoder", "../encoder", "training/a/encoder"):
        assert encoder_name(path) == "encoder"
    assert encoder_name("org/model") == "org/model" and encoder_name("model") == "model"


def test_formats():
    assert format_block(None) == "full depth"
    block = {"@misc": "other.Exit.v1", "threshold": [0.5, 0.25], "strict": True}
    assert format_block(block) == "other.Exit.v1(threshold=[0.5, 0.25], strict=True)"
    block = {"@misc": "spacy-earlyexit.SentenceExit.v1", "threshold": [0.1, 0.1, 0.1, 0.2, 0.2]}
    assert format_block(block) == "SentenceExit.v1(threshold=[0.1, …, 0.2])"
    assert format_temperatures({}) == format_temperatures({"ner": [1.0, 1.0]}) == "not fitted"
    assert format_temperatures({"ner": [1.5, 0.75], "tag": [1, 1]}) == (
        "ner 0.75 to 1.50, tag 1.00 to 1.00"
    )
    assert shorten("abc") == "a, b, c"
    assert shorten("abcde", most=2) == "a, b, … (3 more)"


def test_the_group_is_cheap_to_import():
    """`python -m spacy --help` imports it; the rest of the package and its libraries stay out."""
    heavy = ("transformers", "tokenizers", "spacy_transformers", "safetensors")
    code = (
        "import sys, spacy.cli; before = set(sys.modules); import spacy_earlyexit.cli; "
        f"new = set(sys.modules) - before; print(new & {{'torch', *{heavy}}}, "
        "'spacy_earlyexit.model.architecture' in new, 'spacy_earlyexit.pipeline' in new)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.split() == ["set()", "False", "False"], result.stderr


# --- debug-data ----------------------------------------------------------------------------


def make_doc(vocab, words, ents=(), **settings):
    tags = ["O"] * len(words)
    for start, end, label in ents:
        tags[start:end] = [f"B-{label}"] + [f"I-{label}"] * (end - start - 1)
    return Doc(vocab, words=words, ents=tags, **settings)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """62 training documents, two of them odd; dev has a label of its own and one without gold."""
    vocab = spacy.blank("en").vocab
    folder = tmp_path_factory.mktemp("corpora")
    train = [make_doc(vocab, text.split(), ents) for text, ents in TEXTS * 10]
    train.append(make_doc(vocab, ["abc", "\u200b", "\n", "def", "é", "é"]))
    train.append(make_doc(vocab, ["abcdefghij"] * 12 + ["x" * 70]))
    dev = [make_doc(vocab, text.split(), ents) for text, ents in TEXTS]
    dev.append(make_doc(vocab, ["Acme", "Corp"], [(0, 2, "ORG")]))
    dev.append(Doc(vocab, words=["no", "gold"]))
    bare = [Doc(vocab, words=text.split()) for text, _ in TEXTS]
    for name, docs in {"train": train, "dev": dev, "bare": bare, "empty": []}.items():
        DocBin(docs=docs).to_disk(folder / f"{name}.spacy")
    return folder


@pytest.fixture
def paths(corpora, encoder):
    return {
        "paths.train": str(corpora / "train.spacy"),
        "paths.dev": str(corpora / "dev.spacy"),
        "paths.encoder": encoder,
        "nlp.pipeline": ["transformer", "ner"],
    }


def cli_args(overrides):
    values = {k: v if isinstance(v, str) else json.dumps(v) for k, v in overrides.items()}
    return [part for name, value in values.items() for part in (f"--{name}", value)]


def test_figures(paths, capsys):
    stats = debug_data(CONFIG, config_overrides=paths)
    assert capsys.readouterr().out == ""
    train, dev = stats["train"], stats["dev"]
    assert (train.n_docs, train.n_spaces) == (62, 1)
    assert train.n_words == 10 * sum(len(text.split()) for text, _ in TEXTS) + 5 + 13
    assert (dev.n_docs, dev.n_spaces, dev.n_words) == (8, 0, 34)
    assert train.tasks["ner"].labels == {"LOC": 50, "PER": 30}  # entities, not words
    assert train.tasks["ner"].n_words == train.n_words
    assert (train.tasks["ner"].n_docs_without, dev.tasks["ner"].n_docs_without) == (0, 1)
    assert dev.tasks["ner"].n_words == 32
    assert (train.units.n_units, train.units.n_long) == (62, 1)
    assert train.units.longest == 12 * 10 + 70
    assert train.units.without_pieces == {"\u200b": 1}
    assert train.units.unknown == {"é": 2}
    assert train.units.too_long == {"x" * 70: 1}
    assert (dev.units.n_long, dev.units.n_windows, dev.units.without_pieces) == (0, 0, {})


def test_report(paths, corpora):
    code, out = run_cli("debug-data", CONFIG, *cli_args(paths))
    assert code == 0
    for part in (
        "Pipeline built: transformer, ner",
        "whitespace tokens (not encoded) 1 (0.3%) 0 (0.0%)",
        "units (text_units.v1(length=32, longest=128)) 62 8",
        "1 of 62 units are longer than the 62 pieces",
        "(the longest has 190 pieces)",
        r"'\u200b' (1)",
        "'é' (2)",
        "label train dev ───────────────── LOC 50 5 PER 30 3 ORG 0 1",
        "Low number of examples (fewer than 50) in the train corpus for 1 label of 'ner': "
        "'PER' (30)",  # and not LOC, which occurs 50 times
        "since train lacks them: 'ORG' (1)",
        "5 checks passed",
        "5 warnings",
    ):
        assert part in out, part
    assert " error" not in out.split("Summary")[1]
    _, quiet = run_cli("debug-data", CONFIG, *cli_args(paths), "--ignore-warnings")
    assert "Low number" not in quiet and "LOC 50 5" in quiet


@pytest.mark.parametrize(
    "getter",
    [
        {"@span_getters": "spacy-transformers.doc_spans.v1"},
        {"@span_getters": "spacy-transformers.strided_spans.v1", "window": 8, "stride": 5},
    ],
)
def test_windows_are_those_that_training_cuts(encoder, corpora, getter):
    nlp = spacy.blank("en")
    docs = list(DocBin().from_disk(corpora / "train.spacy").get_docs(nlp.vocab))
    tokenizer = PieceTokenizer.from_transformers(AutoTokenizer.from_pretrained(encoder), "tiny")
    get_spans = registry.resolve({"spans": getter})["spans"]
    for n_positions in (12, 32, 64, 512):
        stats = count_units(docs, tokenizer, get_spans, n_positions)
        cut = encode_docs(docs, tokenizer, get_spans, n_positions)
        assert cut.n_units == stats.n_units - stats.n_long + stats.n_windows
        assert stats.unknown == {"é": 2}  # once each, though spans overlap
        assert bool(stats.n_long) == (n_positions < 512)
    assert count_units([], tokenizer, get_spans, 64).longest == 0


def test_several_tasks_count_words_or_entities():
    nlp = spacy.blank("en")
    gold = [
        Doc(nlp.vocab, words=["dog", " ", "dog", "sees"], tags=["NN", "_SP", "NN", "VB"]),
        make_doc(nlp.vocab, ["New", "York", "Berlin"], [(0, 2, "LOC"), (2, 3, "LOC")]),
        Doc(nlp.vocab, words=["\n"]),
    ]
    examples = [Example(Doc(nlp.vocab, words=[t.text for t in doc]), doc) for doc in gold]
    tasks = {name: get_task(name) for name in ("tag", "ner")}
    stats = count_gold(examples, tasks)
    assert (stats.n_docs, stats.n_words, stats.n_spaces) == (3, 6, 2)
    assert stats.tasks["tag"].labels == {"NN": 2, "VB": 1, "_SP": 0}
    assert (stats.tasks["tag"].n_words, stats.tasks["tag"].n_docs_without) == (3, 1)
    assert stats.tasks["ner"].labels == {"LOC": 2}
    assert (stats.tasks["ner"].n_words, stats.tasks["ner"].n_docs_without) == (3, 1)


def test_words_without_pieces(encoder, shared):
    """An unknown word is none; a bare word-start mark (SentencePiece) is one."""
    for name in (encoder, str(shared / "encoder")):
        tokenizer = PieceTokenizer.from_transformers(AutoTokenizer.from_pretrained(name), name)
        words = ["Anna", "\u200b", "é", "\u200b\u200b", "x"]
        expected = [False, True, False, True, False]
        assert tokenizer.leaves_nothing(words).tolist() == expected
        ids, lengths, _ = tokenizer.encode(words, [True] * len(words))
        unknown = tokenizer.special["unk"]
        firsts = ids[lengths.cumsum() - lengths]
        assert all(firsts[i] == unknown and lengths[i] == 1 for i in (1, 3))
        assert tokenizer.leaves_nothing([]).tolist() == []


def test_tasks_of_the_components_or_the_data(paths):
    assert list(debug_data(CONFIG, config_overrides=paths)["train"].tasks) == ["ner"]
    # Without components: what the data annotates.
    alone = {**paths, "nlp.pipeline": ["transformer"]}
    assert list(debug_data(CONFIG, config_overrides=alone)["train"].tasks) == ["ner"]


def test_no_task_to_be_found(paths, tmp_path):
    docs = [Doc(spacy.blank("en").vocab, words=["a", "b"])]
    DocBin(docs=docs).to_disk(tmp_path / "bare.spacy")
    bare = str(tmp_path / "bare.spacy")
    bad = {**paths, "nlp.pipeline": ["transformer"], "paths.train": bare, "paths.dev": bare}
    code, out = run_cli("debug-data", CONFIG, *cli_args(bad))
    assert code == 1 and "tasks" in out


def test_stage_2_takes_tokenizer_and_labels_from_stage_1(paths, pipeline, corpora):
    """The encoder need not be there; labels that stage 1 lacks are not learned."""
    overrides = {
        **paths,
        "paths.stage1": str(pipeline),
        "paths.train": str(corpora / "dev.spacy"),
    }
    code, out = run_cli("debug-data", ROOT / "configs/self_sampling.cfg", *cli_args(overrides))
    assert code == 0
    assert "a unit holds 62 pieces" in out
    assert "not initialised with, and will not learn: 'ORG' (1)" in out
    assert "since the initialisation lacks them: 'ORG' (1)" in out


def test_many_labels_are_shortened(encoder, tmp_path, paths):
    vocab = spacy.blank("en").vocab
    docs = [make_doc(vocab, ["x"], [(0, 1, f"L{i:02}")]) for i in range(40)]
    DocBin(docs=docs).to_disk(tmp_path / "many.spacy")
    args = cli_args({**paths, "paths.train": str(tmp_path / "many.spacy")})
    _, out = run_cli("debug-data", CONFIG, *args)
    assert "and 13 more (--verbose shows all)" in out  # dev has three of its own
    assert "40 labels of 'ner'" in out and "(28 more)" in out
    _, out = run_cli("debug-data", CONFIG, *args, "--verbose")
    assert "L39 1 0" in out and "--verbose" not in out


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"paths.train": "missing.spacy"}, "missing.spacy"),
        ({"paths.dev": "null"}, "Can't read the dev corpus [corpora.dev]"),
        ({"paths.dev": "empty.spacy"}, "No documents in the dev corpus"),
        ({"paths.encoder": "/no/such/encoder"}, "Can't load the encoder '/no/such/encoder'"),
        ({"nlp.pipeline": '["ner"]'}, "no earlyexit_transformer in this pipeline, only: ner"),
        ({"paths.train": "bare.spacy"}, "1 error"),
        ({"components.transformer.tasks": '["tag"]'}, "needs the task 'ner'"),
        ({"components.transformer.max_batch_items": "0"}, "max_batch_items"),
        ({"training.train_corpus": "corpora.other"}, "Can't read the train corpus [corpora.other]"),
        ({"unknown": "x"}, "--unknown"),
    ],
)
def test_errors_exit_with_a_message(paths, corpora, monkeypatch, overrides, message):
    monkeypatch.chdir(corpora)
    code, out = run_cli("debug-data", CONFIG, *cli_args({**paths, **overrides}))
    assert code == 1
    assert message in out


def test_missing_config(tmp_path):
    code, out = run_cli("debug-data", tmp_path / "none.cfg")
    assert code == 1 and "none.cfg" in out


def test_config_without_transformer(tmp_path):
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    nlp.config.to_disk(tmp_path / "config.cfg")
    code, out = run_cli("debug-data", tmp_path / "config.cfg")
    assert code == 1
    assert "no earlyexit_transformer" in out and "sentencizer" in out


def test_no_gold_for_a_task(paths, corpora):
    overrides = {**paths, "paths.train": str(corpora / "bare.spacy")}
    code, out = run_cli("debug-data", CONFIG, *cli_args(overrides))
    assert code == 1
    assert (
        "None of the 6 training examples has gold annotation for the task 'ner' (doc.ents)" in out
    )


def test_unsupported_family(paths, tmp_path):
    folder = make_encoder(tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    args = cli_args({**paths, "paths.encoder": str(folder)})
    code, out = run_cli("debug-data", CONFIG, *args)
    assert code == 1 and "family 'gpt2'" in out


def test_span_getter_that_needs_sentences(paths):
    """An error, unless a component annotates while training."""
    getter = "components.transformer.model.get_spans.@span_getters"
    overrides = {**paths, getter: "spacy-transformers.sent_spans.v1"}
    config = ROOT / "configs" / "paper_joint.cfg"
    code, out = run_cli("debug-data", config, *cli_args(overrides))
    assert code == 1
    assert "spacy-transformers.sent_spans.v1 can't be applied" in out and "LOC 50 5" in out
    overrides["training.annotating_components"] = '["senter"]'
    code, out = run_cli("debug-data", config, *cli_args(overrides))
    assert code == 0
    assert "Units not checked" in out and "(senter)" in out


@pytest.mark.parametrize("command", ["calibrate", "evaluate", "convert"])
def test_a_gpu_that_is_not_there(command, stored, dev, tmp_path, monkeypatch):
    monkeypatch.setattr("thinc.compat.has_gpu", False)
    output = [] if command == "evaluate" else ["-o", tmp_path / "new"]
    code, out = run_cli(command, stored, dev, *output, "-g", 0)
    assert code == 1 and "There is no GPU for --gpu-id 0" in out
