"""Finished pipelines on the packed engine: what components get and say is the same."""

import copy
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import spacy
from conftest import load_script, make_encoder, make_nlp, run_cli
from spacy.tokens import DocBin
from spacy_transformers import Transformer
from spacy_transformers.layers import TransformerModel
from test_convert import annotations
from test_families import CASES, make_family
from test_listeners import LISTENER, STOCK, make_examples

from spacy_earlyexit import accelerate
from spacy_earlyexit.conversion import agreement
from spacy_earlyexit.conversion.agreement import compare, differing
from spacy_earlyexit.pipeline.transformer import EarlyExitTransformer

TEXTS = [
    "Anna isn't in New York, she said: it's odd.",
    "I cannot, don't and won't  go\n\nto Berlin\tor the  York!",
    "they-said 12,5% of #them in the veryverylongandodd ...",
    "York",
    "\n",
    " ",
    "in New York " * 12,
]
GETTERS = {
    "whole": {"@span_getters": "spacy-transformers.doc_spans.v1"},
    "overlapping": {
        "@span_getters": "spacy-transformers.strided_spans.v1",
        "window": 9,
        "stride": 6,
    },
    "side by side": {
        "@span_getters": "spacy-transformers.strided_spans.v1",
        "window": 7,
        "stride": 7,
    },
}


def with_transformer(path, spans, factories=()):
    """An untrained pipeline of spacy-transformers."""
    spacy.util.fix_random_seed(0)
    nlp = spacy.blank("en")
    model = {"name": str(path), "get_spans": spans, "tokenizer_config": {"use_fast": True}}
    nlp.add_pipe("transformer", config={"model": model})
    for factory in factories:
        config = {"min_action_freq": 1} if factory == "parser" else {}
        nlp.add_pipe(factory, config={"model": {"tok2vec": LISTENER}, **config})
    nlp.initialize(lambda: make_examples(nlp))
    return nlp


def rows_by_token(doc):
    """The rows of every token, in the order of the text, and how many each has."""
    data = doc._.trf_data
    hidden = data.model_output.last_hidden_state
    places = np.asarray(data.align.data).reshape(-1)
    return hidden.reshape(-1, hidden.shape[-1])[places], np.asarray(data.align.lengths)


@pytest.mark.parametrize("getter", GETTERS)
@pytest.mark.parametrize("case", ["bert", "roberta", "electra", "distilbert"])
def test_components_get_the_rows_of_spacy_transformers(tmp_path, case, getter):
    assert case in CASES
    make_family(tmp_path / "encoder", case)
    nlp = with_transformer(tmp_path / "encoder", GETTERS[getter])
    # what is longer than the encoder takes is an error there
    texts = TEXTS[:-1] if getter == "whole" else TEXTS
    expected = [rows_by_token(doc) for doc in nlp.pipe(texts)]
    assert accelerate(nlp) is nlp
    transformer = nlp.get_pipe("transformer")
    assert isinstance(transformer, EarlyExitTransformer) and transformer.tasks == []
    transformer.record = ["trf_data"]
    for batch_size in (1, 3, 64):
        docs = list(nlp.pipe(texts, batch_size=batch_size))
        for (rows, lengths), doc in zip(expected, docs, strict=True):
            own_rows, own_lengths = rows_by_token(doc)
            np.testing.assert_array_equal(own_lengths, lengths, err_msg=doc.text)
            np.testing.assert_allclose(own_rows, rows, atol=2e-5, err_msg=doc.text)


@pytest.mark.slow
def test_real_text_in_the_pieces_of_a_real_encoder(shared):
    """A Unigram tokenizer; documents of several windows."""
    getter = {"@span_getters": "spacy-transformers.strided_spans.v1", "window": 96, "stride": 72}
    nlp = with_transformer(shared / "encoder", getter)
    read = load_script("conllu").read_blocks
    lines = load_script("corpora").read_lines(shared / "data" / "ewt" / "dev.conllu")
    blocks = list(read(lines))[:120]
    texts = [c.content.removeprefix("# text = ") for b in blocks for c in b.comments]
    texts = [text for text in texts if not text.startswith("#")]
    texts = [" ".join(texts[i : i + 30]) for i in range(0, len(texts), 30)]
    expected = [rows_by_token(doc) for doc in nlp.pipe(texts)]
    accelerate(nlp).get_pipe("transformer").record = ["trf_data"]
    for (rows, lengths), doc in zip(expected, nlp.pipe(texts), strict=True):
        own_rows, own_lengths = rows_by_token(doc)
        np.testing.assert_array_equal(own_lengths, lengths)
        np.testing.assert_allclose(own_rows, rows, atol=1e-4)
        assert len(doc) > 150


def test_an_empty_doc_is_no_error(tmp_path):
    """It is one in spacy-transformers."""
    path = make_encoder(tmp_path / "encoder")
    nlp = accelerate(with_transformer(path, GETTERS["whole"], ["tagger", "ner"]))
    docs = list(nlp.pipe(["", "York", ""]))
    assert [len(doc) for doc in docs] == [0, 1, 0] and docs[1][0].tag_
    assert len(nlp("")) == 0


@pytest.mark.slow
def test_all_stock_components_say_the_same(tmp_path):
    path = make_encoder(tmp_path / "encoder")
    nlp = with_transformer(path, GETTERS["overlapping"], STOCK)
    examples = make_examples(nlp)
    rng = np.random.default_rng(0)
    for name in STOCK:
        for node in nlp.get_pipe(name).model.walk():  # spaCy's output layers begin with zeros
            if node.has_param("W") and not node.get_param("W").any():
                node.set_param("W", rng.normal(size=node.get_param("W").shape).astype("f"))
    nlp.to_disk(tmp_path / "before")
    original = spacy.load(tmp_path / "before")
    accelerate(nlp).to_disk(tmp_path / "after")
    after = spacy.load(tmp_path / "after")
    assert after.pipe_names == original.pipe_names
    texts = [eg.text for eg in examples] + TEXTS
    rows = compare({"a": original, "b": nlp, "c": after}, texts, repeats=0)
    assert [row["differ"] for row in rows] == [0, 0, 0]
    a, c = original(texts[0]), after(texts[0])
    assert a.cats == pytest.approx(c.cats, abs=1e-4)


def test_it_is_saved_without_the_encoder_it_came_from(stock, tmp_path):
    nlp = spacy.load(stock)
    expected = annotations(nlp)
    accelerate(nlp).to_disk(tmp_path / "fast")
    assert annotations(nlp) == expected
    loaded = spacy.load(tmp_path / "fast")
    assert annotations(loaded) == expected
    block = loaded.config["components"]["transformer"]
    assert block["factory"] == "earlyexit_transformer" and block["model"]["pieces"] == "spans"
    config = json.loads((tmp_path / "fast" / "meta.json").read_text())
    assert config["pipeline"] == ["sentencizer", "transformer", "tagger", "parser", "ner"]


def test_int8_says_nearly_the_same(stock):
    nlp = accelerate(spacy.load(stock), precision="int8")
    assert nlp.get_pipe("transformer").precision == "int8"
    docs = list(nlp.pipe(TEXTS[:3]))
    assert differing(list(spacy.load(stock).pipe(TEXTS[:3])), docs) <= sum(map(len, docs)) / 4


def test_training_goes_on(stock):
    nlp = accelerate(spacy.load(stock))
    before = nlp.get_pipe("transformer").to_bytes(exclude=["cfg"])
    losses = nlp.update(make_examples(nlp), sgd=nlp.resume_training(), exclude=["sentencizer"])
    assert losses["ner"] >= 0
    assert nlp.get_pipe("transformer").to_bytes(exclude=["cfg"]) != before


@pytest.mark.parametrize("reload", [False, True])
def test_components_with_a_transformer_of_their_own(tmp_path, reload):
    path = make_encoder(tmp_path / "encoder")
    nlp = with_transformer(path, GETTERS["overlapping"], ["tagger", "ner"])
    optimizer = nlp.resume_training()
    optimizer.learn_rate = 2e-3
    for _ in range(20):
        nlp.update(make_examples(nlp), sgd=optimizer)
    nlp.replace_listeners("transformer", "ner", ["model.tok2vec"])
    nlp.to_disk(tmp_path / "before")
    original = spacy.load(tmp_path / "before")
    if reload:
        nlp = spacy.load(tmp_path / "before")
    accelerate(nlp).to_disk(tmp_path / "after")
    assert not any(isinstance(node, TransformerModel) for node in nlp.get_pipe("ner").model.walk())
    systems = {"a": original, "b": nlp, "c": spacy.load(tmp_path / "after")}
    rows = compare(systems, TEXTS[:4], repeats=0)
    assert [row["differ"] for row in rows] == [0, 0, 0]


def test_it_is_evaluated_at_full_depth_and_has_nothing_to_calibrate(stock, tmp_path):
    accelerate(spacy.load(stock)).to_disk(tmp_path / "fast")
    nlp = spacy.blank("en")
    DocBin(docs=[eg.reference for eg in make_examples(nlp)]).to_disk(tmp_path / "dev.spacy")
    code, out = run_cli("evaluate", tmp_path / "fast", tmp_path / "dev.spacy", "--repeats", "0")
    assert code == 0 and "tag_acc" in out and "4.00 1.00x" in out
    args = (tmp_path / "fast", tmp_path / "dev.spacy", "--output", tmp_path / "out")
    code, out = run_cli("calibrate", *args)
    assert code == 1 and "Traceback" not in out and not (tmp_path / "out").exists()


def test_nothing_to_accelerate():
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    with pytest.raises(ValueError, match=r"no transformer of .* only sentencizer \(sentencizer\)"):
        accelerate(nlp)


def test_tasks_need_pieces_of_tokens(tmp_path):
    path = make_encoder(tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"`tasks` has to be \[\] where pieces"):
        make_nlp(str(path), model={"pieces": "spans"})
    with pytest.raises(ValueError, match="`pieces` has to be one of tokens, spans"):
        make_nlp(str(path), model={"pieces": "words"})


def test_an_encoder_that_is_not_supported(stock, monkeypatch):
    nlp = spacy.load(stock)
    nlp.get_pipe("transformer").model.transformer.config.model_type = "gpt2"
    with pytest.raises(ValueError, match="gpt2"):
        accelerate(nlp)
    assert isinstance(nlp.get_pipe("transformer"), Transformer), "nothing was changed"


def test_a_precision_that_there_is_not(stock):
    nlp = spacy.load(stock)
    with pytest.raises(ValueError, match="`precision` has to be one of float32, int8"):
        accelerate(nlp, precision="int4")
    assert isinstance(nlp.get_pipe("transformer"), Transformer), "nothing was changed"


def test_copies(stock):
    nlp = accelerate(spacy.load(stock))
    expected = annotations(nlp)
    for other in (copy.deepcopy(nlp), pickle.loads(pickle.dumps(nlp))):
        assert annotations(other) == expected


PROCESSES = """
import sys, spacy
if __name__ == "__main__":
    nlp = spacy.load(sys.argv[1])
    texts = ["Anna isn't in New York.", "York"]
    tags = [[token.tag_ for token in doc] for doc in nlp.pipe(texts)]
    assert [[token.tag_ for token in doc] for doc in nlp.pipe(texts, n_process=2)] == tags
"""


@pytest.mark.slow
def test_processes(stock, tmp_path):
    """No threads of the tokenizer, which would not survive a fork."""
    accelerate(spacy.load(stock)).to_disk(tmp_path / "fast")
    (tmp_path / "run.py").write_text(PROCESSES, encoding="utf8")
    command = [sys.executable, tmp_path / "run.py", tmp_path / "fast"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "fork" not in done.stderr, done.stderr


def test_differing_counts_tokens():
    nlp = spacy.blank("en")
    one, other = nlp("a b c"), nlp("a b c")
    assert differing([one], [other]) == 0
    other[1].tag_ = "X"
    assert differing([one], [other]) == 1
    other.cats = {"good": 0.4, "bad": 0.6}
    one.cats = {"good": 0.6, "bad": 0.4}
    assert differing([one], [other]) == 3
    one.cats = {"good": 0.3, "bad": 0.7}
    other.spans["sc"] = [other[0:1]]
    assert differing([one], [other]) == 3


# The command


def test_command(stock, tmp_path, monkeypatch):
    short = [text for text in TEXTS if text.strip()][:4]  # the encoder takes 64 pieces
    monkeypatch.setattr(agreement, "TEXTS", short)
    code, out = run_cli("accelerate", stock, "--output", tmp_path / "fast", "--repeats", "1")
    assert code == 0, out
    assert "words of built-in texts" in out and "Saved the pipeline to" in out
    assert "accelerated 0 " in out
    assert annotations(spacy.load(tmp_path / "fast")) == annotations(spacy.load(stock))
    code, out = run_cli("accelerate", stock, "--output", tmp_path / "fast")
    assert code == 1 and "--force" in out
    code, out = run_cli("info", tmp_path / "fast")
    assert code == 0 and "None: it was accelerated" in " ".join(out.split())


def test_command_reads_texts(stock, tmp_path):
    nlp = spacy.blank("en")
    DocBin(docs=[nlp("Anna lives in New York.")]).to_disk(tmp_path / "a.spacy")
    (tmp_path / "a.txt").write_text("Anna lives in New York.\n\n", encoding="utf8")
    (tmp_path / "a.jsonl").write_text('{"text": "Anna lives in New York."}\n', encoding="utf8")
    for name in ("a.spacy", "a.txt", "a.jsonl"):
        args = ("--texts", tmp_path / name, "--repeats", "0", "--force")
        code, out = run_cli("accelerate", stock, "--output", tmp_path / "fast", *args)
        assert code == 0 and f"6 words of {name}" in out
    (tmp_path / "b.jsonl").write_text('{"body": "x"}\n', encoding="utf8")
    (tmp_path / "b.txt").write_text("\n", encoding="utf8")
    for name, message in (("b.jsonl", 'object with a "text"'), ("b.txt", "no words")):
        args = ("--texts", tmp_path / name, "--force")
        code, out = run_cli("accelerate", stock, "--output", tmp_path / "other", *args)
        assert code == 1 and message in out
    assert not (tmp_path / "other").exists()
