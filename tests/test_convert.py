"""python -m spacy earlyexit convert: a spacy-transformers pipeline gets exits."""

import shutil

import numpy as np
import pytest
import spacy
from conftest import TEXTS, make_encoder, run_cli
from spacy.language import Language
from spacy.tokens import Doc, DocBin, Span
from spacy.training import Example
from test_families import make_family
from wasabi import Printer

import spacy_earlyexit.cli.convert as command
import spacy_earlyexit.conversion.convert as module
from spacy_earlyexit.cli.convert import print_rows, summary
from spacy_earlyexit.conversion.convert import (
    convert,
    find_stock,
    swap,
    train_all,
    train_offramps,
)
from spacy_earlyexit.conversion.own_labels import (
    check_labels,
    fill,
    hard_cats,
    prepare,
    read,
    tokens_of,
)
from spacy_earlyexit.files import put
from spacy_earlyexit.model.architecture import settings_of
from spacy_earlyexit.pipeline.finding import find_transformer

LISTENER = {
    "@architectures": "spacy-transformers.TransformerListener.v1",
    "grad_factor": 1.0,
    "pooling": {"@layers": "reduce_mean.v1"},
}
TAGS = {"Anna": "NNP", "in": "IN", "is": "VBZ", ".": "."}
SETTINGS = {"batch_words": 20, "seed": 0, "gpu_id": -1}


def make_docs(vocab, *, tags=True, ents=True, heads=True):
    docs = []
    for text, spans in TEXTS:
        words = text.split()
        annotation = {}
        if tags:
            annotation["tags"] = [TAGS.get(word, "NN") for word in words]
        if ents:
            annotation["ents"] = ["O"] * len(words)
            for start, end, label in spans:
                annotation["ents"][start:end] = [f"B-{label}"] + [f"I-{label}"] * (end - start - 1)
        if heads:
            annotation["heads"] = [0, *range(len(words) - 1)]
            annotation["deps"] = ["ROOT"] + ["obj"] * (len(words) - 1)
        docs.append(Doc(vocab, words=words, **annotation))
    return docs


def write(path, docs):
    DocBin(docs=docs).to_disk(path)
    return path


def make_stock(encoder, factories=("tagger", "parser", "ner"), steps=30, spans="doc_spans"):
    """A pipeline with spacy-transformers' transformer, over-fitted on the six sentences."""
    spacy.util.fix_random_seed(0)
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    model = {
        "name": encoder,
        "get_spans": {"@span_getters": f"spacy-transformers.{spans}.v1"},
        "transformer_config": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    }
    nlp.add_pipe("transformer", config={"model": model})
    for factory in factories:
        config = {"min_action_freq": 1} if factory == "parser" else {}
        nlp.add_pipe(factory, config={"model": {"tok2vec": LISTENER}, **config})
    examples = [Example(tokens_of(doc), doc) for doc in make_docs(nlp.vocab)]
    for example in examples:
        example.reference.cats = {"short": float(len(example.reference) < 4), "long": 0.0}
    optimizer = nlp.initialize(lambda: examples)
    optimizer.learn_rate = 2e-3
    for _ in range(steps):
        nlp.update(examples, sgd=optimizer, exclude=["sentencizer"], annotates=["sentencizer"])
    return nlp


@pytest.fixture(scope="module")
def original(stock):
    """Do not change it."""
    return spacy.load(stock)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    vocab = spacy.blank("en").vocab
    write(folder / "train.spacy", make_docs(vocab) * 4 + make_docs(vocab, tags=False, ents=False))
    write(folder / "dev.spacy", make_docs(vocab))
    write(folder / "bare.spacy", make_docs(vocab, tags=False, ents=False, heads=False))
    write(folder / "one.spacy", make_docs(vocab)[:1])
    write(folder / "empty.spacy", [])
    return folder


def annotations(nlp, docs=None):
    docs = docs or [tokens_of(doc) for doc in make_docs(nlp.vocab)]
    return [
        (
            [(token.tag_, token.dep_, token.head.i, token.is_sent_start) for token in doc],
            [(ent.text, ent.label_) for ent in doc.ents],
        )
        for doc in nlp.pipe(docs)
    ]


def rows_of(nlp):
    docs = [tokens_of(doc) for doc in make_docs(nlp.vocab)]
    for doc in nlp.pipe(docs):
        data = doc._.trf_data
        hidden = data.model_output.last_hidden_state
        yield hidden.reshape(-1, hidden.shape[-1])[data.align.dataXd]


def assert_like(nlp, original):
    assert annotations(nlp) == annotations(original)
    for own, theirs in zip(rows_of(nlp), rows_of(original), strict=True):
        np.testing.assert_allclose(own, theirs, atol=1e-5)


# --- the new pipeline ----------------------------------------------------------------------


@pytest.fixture
def swapped(stock, corpora, tmp_path):
    nlp = spacy.load(stock)
    swap(nlp, "transformer", read(corpora / "train.spacy", nlp.vocab), [1.5])
    return nlp


def test_untouched_at_full_depth_before_training(swapped, original):
    assert swapped.pipe_names == original.pipe_names
    transformer = find_transformer(swapped)
    assert transformer.tasks == ["tag", "ner"]
    assert transformer.cfg["auxiliary"] == []
    assert_like(swapped, original)


def test_another_family_gives_the_same_rows(corpora, tmp_path):
    """Rows of first words too, before which RoBERTa's tokenizer puts no space."""
    make_family(tmp_path / "hf", "roberta")
    make_stock(str(tmp_path / "hf"), factories=("tagger",), steps=1).to_disk(tmp_path / "stock")
    original, nlp = spacy.load(tmp_path / "stock"), spacy.load(tmp_path / "stock")
    docs = read(corpora / "train.spacy", nlp.vocab)
    swap(nlp, find_stock(nlp), docs, [1.5])
    texts = [doc.text for doc in make_docs(nlp.vocab)]
    for own, theirs in zip(nlp.pipe(texts), original.pipe(texts), strict=True):
        rows, expected = (doc._.trf_data.model_output.last_hidden_state for doc in (own, theirs))
        # the original pads to the longest text
        np.testing.assert_allclose(rows, expected[:, : rows.shape[1]], atol=1e-5)


@pytest.mark.slow
def test_what_each_stage_changes(swapped, original, corpora, tmp_path, capfd):
    for part in ("train", "dev"):
        shutil.copy(corpora / "dev.spacy", tmp_path / f"{part}.spacy")

    def changed(nlp):
        return [
            name
            for name in ("tagger", "parser", "ner")
            if nlp.get_pipe(name).model.to_bytes() != original.get_pipe(name).model.to_bytes()
        ]

    before = find_transformer(swapped).model.to_bytes()
    nlp = train_offramps(swapped, steps=2, folder=tmp_path, **SETTINGS)
    transformer = find_transformer(nlp)
    assert transformer.model.to_bytes() != before
    assert transformer.self_sampling is None
    assert changed(nlp) == []
    assert_like(nlp, original)
    nlp = train_all(nlp, steps=2, learn_rate=1e-3, folder=tmp_path, **SETTINGS)
    assert find_transformer(nlp).self_sampling is not None
    assert changed(nlp) == ["tagger", "parser", "ner"]
    own, theirs = (next(rows_of(pipeline)) for pipeline in (nlp, original))
    assert not np.allclose(own, theirs, atol=1e-5)


def test_the_stored_name_is_that_of_the_original(swapped, original, tmp_path):
    name = original.config["components"]["transformer"]["model"]["name"]
    assert settings_of(find_transformer(swapped).model).name == name
    swapped.to_disk(tmp_path / "saved")
    assert str(tmp_path) not in (tmp_path / "saved" / "config.cfg").read_text()
    block = spacy.load(tmp_path / "saved").config["components"]["transformer"]
    assert block["model"]["name"] == name
    assert block["model"]["get_spans"] == {"@span_getters": "spacy-transformers.doc_spans.v1"}


@pytest.mark.slow
def test_sentences_for_the_span_getter_come_from_the_front(tmp_path, corpora, capfd):
    """The data have no sentence boundaries, the sentencizer finds them in training too."""
    encoder = make_encoder(tmp_path / "encoder")
    make_stock(str(encoder), ["ner"], steps=2, spans="sent_spans").to_disk(tmp_path / "pipeline")
    vocab = spacy.blank("en").vocab
    train = write(tmp_path / "train.spacy", make_docs(vocab, heads=False) * 2)
    convert(
        tmp_path / "pipeline",
        train,
        tmp_path / "new",
        stage1_steps=1,
        stage2_steps=1,
        speedups=[1.5],
        point="full",
        repeats=0,
    )
    nlp = spacy.load(tmp_path / "new")
    assert [sent.text for sent in nlp("New York. Anna met Bob.").sents] == [
        "New York.",
        "Anna met Bob.",
    ]


# --- the data ------------------------------------------------------------------------------


def test_missing_layers_are_filled(original):
    nlp = original
    gold = make_docs(nlp.vocab)
    for doc in gold:
        for token in doc:
            token.tag_ = "XX"
    docs = gold[:2] + make_docs(nlp.vocab, tags=False, ents=False, heads=False)[2:]
    before = [doc.to_bytes() for doc in docs]
    filled, counts = fill(nlp, docs)
    assert [doc.to_bytes() for doc in docs] == before
    assert {t.tag_ for doc in filled[:2] for t in doc} == {"XX"}
    expected = annotations(nlp, [tokens_of(doc) for doc in docs[2:]])
    found = [
        (
            [(token.tag_, token.dep_, token.head.i, token.is_sent_start) for token in doc],
            [(ent.text, ent.label_) for ent in doc.ents],
        )
        for doc in filled[2:]
    ]
    assert found == expected
    assert counts == {"TAG": 4, "DEP": 4, "ENT_IOB": 4}  # the parse brings the sentences
    assert not filled[0].has_annotation("POS")  # nothing predicts it


def test_gold_sentences_are_kept(original):
    nlp = original
    words = "Berlin is nice New York".split()
    doc = Doc(nlp.vocab, words=words, sent_starts=[True, False, False, True, False])
    (filled,), counts = fill(nlp, [doc])
    assert filled.has_annotation("DEP")
    assert [sent.text for sent in filled.sents] == ["Berlin is nice", "New York"]


@Language.component("test_convert_cats")
def set_cats(doc):
    doc.cats = {"a": 0.3, "b": 0.6}
    return doc


def test_categories_and_spans_are_filled():
    nlp = spacy.blank("en")
    nlp.add_pipe("test_convert_cats")
    ruler = nlp.add_pipe("span_ruler", config={"spans_key": "found"})
    ruler.add_patterns([{"label": "CITY", "pattern": "Berlin"}])
    bare, own = nlp.make_doc("Berlin is nice"), nlp.make_doc("Berlin is nice")
    own.cats = {"a": 1.0}
    own.spans["found"] = [Span(own, 1, 2, label="VERB")]
    docs, counts = fill(nlp, [bare, own])
    assert counts == {"cats": 1, "spans['found']": 1}
    assert [doc.cats for doc in docs] == [{"a": 0.0, "b": 1.0}, {"a": 1.0}]
    found = [[(span.text, span.label_) for span in doc.spans["found"]] for doc in docs]
    assert found == [[("Berlin", "CITY")], [("is", "VERB")]]


def test_predicted_categories_become_gold_by_the_components_rule():
    nlp = spacy.blank("en")
    for name, labels in {"textcat": ["a", "b"], "textcat_multilabel": ["c", "d"]}.items():
        pipe = nlp.add_pipe(name)
        for label in labels:
            pipe.add_label(label)
    pipe.cfg["threshold"] = 0.7
    cats = {"a": 0.3, "b": 0.45, "c": 0.6, "d": 0.8, "e": 0.6}
    assert hard_cats(nlp, cats) == {"a": 0.0, "b": 1.0, "c": 0.0, "d": 1.0, "e": 1.0}


@pytest.mark.parametrize("labels", ["fill", "gold", "own"])
def test_where_labels_come_from(original, tmp_path, labels, capsys):
    nlp = original
    docs = make_docs(nlp.vocab, tags=False)
    for doc in docs:
        doc.set_ents([Span(doc, 0, 1, label="PER")])
    path = write(tmp_path / "data.spacy", docs)
    prepare(nlp, "transformer", path, path, tmp_path, labels=labels, seed=0, msg=Printer())
    own = annotations(nlp)
    for part in ("train", "dev"):
        docs = read(tmp_path / f"{part}.spacy", nlp.vocab)
        if labels == "gold":
            assert not any(doc.has_annotation("TAG") for doc in docs)
        else:
            assert [[t.tag_ for t in doc] for doc in docs] == [[t[0] for t in d] for d, _ in own]
        ents = [[(e.text, e.label_) for e in doc.ents] for doc in docs]
        if labels == "own" and part == "train":
            assert ents == [e for _, e in own]
        else:
            assert ents == [[(doc[0].text, "PER")] for doc in docs]
    out = " ".join(capsys.readouterr().out.split())
    assert ("compare with the original" in out) == (labels != "gold")


def test_a_tenth_is_held_out(original, corpora, tmp_path, capsys):
    nlp = original
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        path = corpora / "train.spacy"
        prepare(nlp, "transformer", path, None, folder, labels="gold", seed=1, msg=Printer())
    sizes = [len(read(tmp_path / "a" / f"{part}.spacy", nlp.vocab)) for part in ("train", "dev")]
    assert sizes == [27, 3]
    assert "3 of the 30 training documents held out" in capsys.readouterr().out
    for part in ("train.spacy", "dev.spacy"):
        assert (tmp_path / "a" / part).read_bytes() == (tmp_path / "b" / part).read_bytes()


def test_labels_that_a_head_does_not_know(original):
    nlp = original
    (doc,) = make_docs(nlp.vocab)[:1]
    check_labels(nlp, "transformer", [doc], "x.spacy")
    doc[0].tag_ = "NEW"
    with pytest.raises(ValueError, match=r"'x.spacy'.*'tagger' does not know: NEW\..*--labels own"):
        check_labels(nlp, "transformer", [doc], "x.spacy")
    doc[0].tag_ = "NN"
    doc.set_ents([Span(doc, 0, 1, label="ORG")])
    with pytest.raises(ValueError, match="'ner' does not know: ORG.*LOC, PER"):
        check_labels(nlp, "transformer", [doc], "x.spacy")


# --- what is refused -----------------------------------------------------------------------


def test_pipelines_without_the_stock_transformer(stock, original):
    nlp = spacy.blank("en")
    nlp.add_pipe("earlyexit_transformer")
    with pytest.raises(ValueError, match=r"already: earlyexit_transformer \(earlyexit_tr"):
        find_stock(nlp)
    nlp = spacy.blank("en")
    with pytest.raises(ValueError, match="found 0.*has: nothing"):
        find_stock(nlp)
    nlp.add_pipe("sentencizer")
    with pytest.raises(ValueError, match=r"found 0.*sentencizer \(sentencizer\)"):
        find_stock(nlp)
    nlp = spacy.load(stock)
    nlp.add_pipe("transformer", name="second")
    with pytest.raises(ValueError, match="found 2.*second"):
        find_stock(nlp)
    assert find_stock(original) == "transformer"


def test_pipelines_in_which_nothing_listens(stock):
    nlp = spacy.load(stock, exclude=["tagger", "parser"])
    nlp.replace_listeners("transformer", "ner", ["model.tok2vec"])
    with pytest.raises(ValueError, match="No enabled component listens.*replace_listeners: ner"):
        find_stock(nlp)
    nlp.remove_pipe("ner")
    with pytest.raises(ValueError, match="replace_listeners: none of them"):
        find_stock(nlp)


def test_another_family(stock):
    nlp = spacy.load(stock)
    nlp.get_pipe("transformer").model.transformer.config.model_type = "gpt2"
    with pytest.raises(ValueError, match="of 'transformer'.*family 'gpt2'"):
        find_stock(nlp)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"labels": "silver"}, "`labels` has to be one of fill, gold, own"),
        ({"speedups": [0.5]}, "`speedups` has to be numbers > 1"),
        ({"speedups": []}, "`speedups`"),
        ({"point": "5x"}, "`point` has to be one of full, 2x, 3x, 4x, but is '5x'"),
        ({"learn_rate": 0.0}, "`learn_rate` has to be > 0"),
        ({"train_path": "empty.spacy"}, "0 to train with, 0 for dev"),
        ({"train_path": "one.spacy"}, "0 to train with, 1 for dev"),
        ({"dev_path": "empty.spacy"}, "30 to train with, 0 for dev"),
    ],
)
def test_settings_and_data_that_do_not_fit(stock, corpora, tmp_path, settings, message):
    settings = {"train_path": "train.spacy", **settings}
    for key in ("train_path", "dev_path"):
        if key in settings:
            settings[key] = corpora / settings[key]
    with pytest.raises(ValueError, match=message):
        convert(stock, output=tmp_path / "new", **settings)
    assert list(tmp_path.iterdir()) == []


def test_errors_of_the_command(stock, corpora, tmp_path):
    train = corpora / "train.spacy"
    code, out = run_cli("convert", tmp_path / "none", train, "-o", tmp_path / "new")
    assert code == 1 and "none" in out
    code, out = run_cli("convert", stock, train, "-o", tmp_path / "new", "--speedups", "2;3")
    assert code == 1 and "numbers with commas between them" in out
    code, out = run_cli("convert", stock, train, "-o", tmp_path / "new", "--repeats", "-1")
    assert code == 2 and "--repeats" in out
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("here")
    for path, problem in (
        (tmp_path / "full", "else than a pipeline"),
        (tmp_path / "full" / "file", "is a file"),
    ):
        code, out = run_cli("convert", stock, train, "-o", path, "--force")
        assert code == 1 and problem in out
    assert (tmp_path / "full" / "file").read_text() == "here"


# --- the whole -----------------------------------------------------------------------------


def test_nothing_is_left_when_it_fails(stock, corpora, tmp_path, monkeypatch, capfd):
    """A kept pipeline stays as it was; one that was trained is kept, even if it can't be timed."""
    (tmp_path / "kept").mkdir()
    for name in ("config.cfg", "meta.json"):
        (tmp_path / "kept" / name).write_text("here")

    def fail(*args, **kwargs):
        raise RuntimeError("on purpose")

    monkeypatch.setattr(module, "train_offramps", lambda nlp, **kwargs: nlp)
    with monkeypatch.context() as patch:
        patch.setattr(module, "put", fail)  # the very last step
        with pytest.raises(RuntimeError, match="on purpose"):
            convert(stock, corpora / "train.spacy", tmp_path / "kept", force=True, stage2_steps=0)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept" / "meta.json").read_text() == "here"
    monkeypatch.setattr(module, "compare", fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        convert(stock, corpora / "train.spacy", tmp_path / "kept", force=True, stage2_steps=0)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert find_transformer(spacy.load(tmp_path / "kept")).label_data


def test_what_is_replaced_comes_back_if_the_rename_fails(tmp_path):
    (tmp_path / "output").mkdir()
    with pytest.raises(OSError):
        put(tmp_path / "missing", tmp_path / "output", tmp_path / "old")
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


ROWS = [
    {
        "system": "original",
        "scores": {"ents_f": 0.9, "tag_acc": 0.8},
        "exit_layer_mean": 4.0,
        "exit_speedup": 1.0,
        "words_per_second": 1000.0,
        "spread": [900.0, 1100.0],
        "wall_speedup": 1.0,
        "in_force": False,
    },
    {
        "system": "2x",
        "scores": {"ents_f": 0.895, "tag_acc": 0.81},
        "exit_layer_mean": 1.5,
        "exit_speedup": 2.01,
        "words_per_second": 1850.0,
        "spread": [1800.0, 1900.0],
        "wall_speedup": 1.85,
        "in_force": True,
    },
]


def test_table_and_summary(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    print_rows(ROWS)
    out = " ".join(capsys.readouterr().out.split())
    assert "ents_f tag_acc exit layer MAC speed-up words/s wall-clock speed-up" in out
    assert "original 90.00 80.00 4.00 1.00x 1,000 1.00x" in out
    assert "2x (in force) 89.50 81.00 1.50 2.01x 1,850 1.85x" in out
    assert summary(ROWS) == (
        "At 2x, against the original: 2.01x fewer MACs, 1.85x as fast (1,000 -> 1,850 words/s); "
        "ents_f -0.50, tag_acc +1.00"
    )
    untimed = [
        {k: v for k, v in row.items() if k not in ("words_per_second", "wall_speedup", "spread")}
        for row in ROWS
    ]
    print_rows(untimed)
    assert "words/s" not in capsys.readouterr().out
    assert summary(untimed).startswith("At 2x, against the original: 2.01x fewer MACs; ents_f")


@pytest.mark.slow
def test_the_command(stock, original, corpora, tmp_path, monkeypatch):
    printed = {}
    monkeypatch.setattr(command, "print_rows", lambda rows: printed.update(rows=rows))
    code, out = run_cli(
        "convert",
        *(stock, corpora / "train.spacy", "--output", tmp_path / "new"),
        *("--dev", corpora / "dev.spacy", "--stage1-steps", 24, "--stage2-steps", 4),
        *("--learn-rate", 1e-3, "--batch-words", 60, "--speedups", 1.5, "--point", "1.5x"),
        *("--repeats", 1, "--seed", 3),
    )
    assert code == 0, out
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert "TAG of 6, ENT_IOB of 6" in out
    assert "At 1.5x, against the original:" in out
    rows = printed["rows"]
    assert [row["system"] for row in rows] == ["original", "full depth", "1.5x"]
    assert [row["in_force"] for row in rows] == [False, False, True]
    assert (
        rows[0]["exit_layer_mean"]
        == rows[1]["exit_layer_mean"]
        == 4.0
        > (rows[2]["exit_layer_mean"])
    )
    assert {"tag_acc", "dep_las", "ents_f"} <= set(rows[0]["scores"])
    assert all(row["words_per_second"] > 0 for row in rows)

    nlp = spacy.load(tmp_path / "new")
    transformer = find_transformer(nlp)
    assert list(transformer.points) == ["1.5x"] and transformer.exit == "1.5x"
    told = nlp.meta["earlyexit"]["transformer"]
    assert told["exit"] == "1.5x" and list(told["points"]) == ["1.5x"]
    assert nlp.pipe_names == original.pipe_names
    assert transformer.listening_components == ["tagger", "parser", "ner"]
    doc = nlp("Anna Smith lives in New York .")
    assert doc.has_annotation("DEP") and doc.has_annotation("TAG")
    assert min(doc._.exit_layers) >= 1
    assert sum(len(set(doc._.exit_layers) - {4}) for doc in nlp.pipe(t for t, _ in TEXTS))
    # Nothing of how it was made stays in the config.
    for section in ("corpora", "paths"):
        assert nlp.config[section] == original.config[section]
    assert nlp.config["training"]["optimizer"] == original.config["training"]["optimizer"]
    assert str(tmp_path) not in (tmp_path / "new" / "config.cfg").read_text()


@pytest.mark.slow
def test_a_point_out_of_reach_leaves_full_depth(stock, original, corpora, tmp_path, capfd):
    rows = convert(
        stock,
        corpora / "train.spacy",
        tmp_path / "new",
        stage1_steps=1,
        stage2_steps=0,
        speedups=[50],
        point="50x",
        repeats=0,
        labels="own",
        progress=True,
    )
    assert "'50x' was not reached" in " ".join(capfd.readouterr().out.split())
    assert [(row["system"], row["in_force"]) for row in rows] == [
        ("original", False),
        ("full depth", True),
    ]
    assert rows[0]["scores"] == rows[1]["scores"]
    nlp = spacy.load(tmp_path / "new")
    assert find_transformer(nlp).exit is None
    assert_like(nlp, original)
