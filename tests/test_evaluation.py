"""Scores and costs of pipelines, and python -m spacy earlyexit evaluate."""

import json
import tracemalloc

import numpy as np
import pytest
import spacy
import torch
from conftest import TEXTS, make_encoder, make_examples, make_nlp, run_cli
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.scorer import Scorer, get_ner_prf
from spacy.tokens import Doc, DocBin
from spacy.training import Example
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from spacy_earlyexit.cli.evaluate import show_loss
from spacy_earlyexit.evaluation import statistics
from spacy_earlyexit.evaluation.scores import FORMAT, evaluate
from spacy_earlyexit.evaluation.statistics import count_hits, paired_losses, resampled_sums
from spacy_earlyexit.model.criteria import TokenExit
from spacy_earlyexit.model.kernels import attention, products
from spacy_earlyexit.pipeline.finding import fresh_docs

N_LAYERS = 4


# --- scores ---------------------------------------------------------------------------------


def with_sentences(nlp):
    """Examples as after an evaluation: the predicted Docs have sentences."""
    examples = make_examples(nlp)
    for eg in examples:
        eg.predicted = Doc(
            nlp.vocab, words=[t.text for t in eg.predicted], sent_starts=[True] * len(eg.predicted)
        )
    return examples


def test_predicted_sentences_are_no_input(encoder):
    """A pipeline that finds sentences has to find them again; what comes in front does."""
    nlp = make_nlp(encoder)
    nlp.add_pipe("sentencizer")
    transformer = nlp.get_pipe("transformer")
    docs = fresh_docs(transformer, with_sentences(nlp))
    assert not any(doc.has_annotation("SENT_START") for doc in docs)
    nlp.remove_pipe("sentencizer")
    # Nobody in this pipeline can have said it.
    docs = fresh_docs(transformer, with_sentences(nlp))
    assert all(doc.has_annotation("SENT_START") for doc in docs)
    nlp.add_pipe("sentencizer", first=True)
    docs = fresh_docs(transformer, with_sentences(nlp))
    assert [len(list(doc.sents)) for doc in docs] == [1] * len(TEXTS)


def test_losses_are_paired_document_by_document():
    """Two settings that differ in one document of many: the interval knows it, and that the
    documents on which both fail say nothing.
    """
    vocab = spacy.blank("en").vocab
    gold = [Doc(vocab, words=["a", "b"], tags=["X", "Y"], ents=["B-P", "O"]) for _ in range(200)]
    wrong = Doc(vocab, words=["a", "b"], tags=["X", "X"], ents=["O", "O"])
    base = [Example(wrong if i < 100 else doc, doc) for i, doc in enumerate(gold)]
    other = [Example(wrong if i < 110 else doc, doc) for i, doc in enumerate(gold)]
    hits = [count_hits(examples) for examples in (base, other)]
    assert hits[0]["tag_acc"][0].tolist() == [1, 2, 2]
    assert hits[0]["ents_f"][[0, 150]].tolist() == [[0, 0, 1], [1, 1, 1]]
    assert hits[0]["pos_acc"].sum() == 0
    losses = paired_losses(*hits, ["tag_acc", "ents_f", "dep_las"])
    assert set(losses) == {"tag_acc", "ents_f"}
    for key, attribute in (("tag_acc", "tag"), ("ents_f", None)):
        scores = [
            Scorer.score_token_attr(eg, attribute)[key] if attribute else get_ner_prf(eg)[key]
            for eg in (base, other)
        ]
        loss, low, high = losses[key]
        assert loss == pytest.approx(scores[0] - scores[1])
        assert 0 < low < loss < high < 2 * loss
    assert paired_losses(hits[0], hits[0], ["ents_f"]) == {"ents_f": [0.0, 0.0, 0.0]}


def test_resamples_are_the_same_in_blocks(monkeypatch):
    """And those of one draw of all, kept or not."""
    counts = np.random.default_rng(1).integers(0, 9, (300, 4))
    draws = np.random.default_rng(0).multinomial(300, [1 / 300] * 300, statistics.RESAMPLES)
    expected = np.concatenate([counts.sum(axis=0)[None], draws @ counts])
    np.testing.assert_array_equal(resampled_sums(counts), expected)
    monkeypatch.setattr(statistics, "BLOCK", 1000)
    monkeypatch.setattr(statistics, "MOST_KEPT", 0)
    np.testing.assert_array_equal(resampled_sums(counts), expected)


def test_resamples_of_many_documents_take_little_memory(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 50)
    monkeypatch.setattr(statistics, "MOST_KEPT", 2**20)
    hits = {"ents_f": np.ones((100_000, 3), dtype=np.int64)}
    tracemalloc.start()
    try:
        assert paired_losses(hits, hits, ["ents_f"]) == {"ents_f": [0.0, 0.0, 0.0]}
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 36 * 2**20, "the draws alone are 38 MB"


def test_hits_are_those_of_the_scorer_where_words_are_cut_differently():
    vocab = spacy.blank("en").vocab
    gold = Doc(vocab, words=["ab", "c", "de"], spaces=[False] * 3, ents=["B-P", "O", "B-Q"])
    words, tags = ["a", "b", "c", "d", "e"], ["B-P", "O", "O", "B-P", "I-P"]
    example = Example(Doc(vocab, words=words, spaces=[False] * 5, ents=tags), gold)
    hits = count_hits([example])["ents_f"]
    assert hits.tolist() == [[1, 2, 2]], "half of a gold word touches it; the label is wrong"
    n_hits, predicted, n_gold = hits[0]
    assert get_ner_prf([example])["ents_f"] == pytest.approx(2 * n_hits / (predicted + n_gold))


@settings(max_examples=100)
@given(st.integers(0, 10_000))
def test_hits_are_those_of_the_scorer_where_gold_is_partial(seed):
    """Words without gold, words cut differently, whitespace: what counts is what spaCy counts."""
    draw = np.random.default_rng(seed)
    vocab = spacy.blank("en").vocab

    def some_doc(tags, ents):
        cuts = np.flatnonzero(np.append(draw.random(9) < 0.7, True)) + 1
        words = ["".join("abc defgh "[i:j]) for i, j in zip([0, *cuts[:-1]], cuts, strict=True)]
        n = len(words)
        doc = Doc(vocab, words=words, spaces=[False] * n, ents=list(draw.choice(ents, n)))
        for token, tag in zip(doc, draw.choice(tags, n), strict=True):
            token.tag_, token.pos_ = str(tag), "NOUN" if tag == "X" else ""
        return doc

    pairs = [
        (some_doc(["X", "Y"], ["O", "B-P", "B-Q"]), some_doc(["X", "Y", ""], ["O", "", "B-P"]))
        for _ in range(4)
    ]
    examples = [Example(*pair) for pair in pairs]
    expected = {
        "ents_f": get_ner_prf(examples)["ents_f"],
        "tag_acc": Scorer.score_token_attr(examples, "tag")["tag_acc"],
        "pos_acc": Scorer.score_token_attr(examples, "pos")["pos_acc"],
        "token_f": Scorer.score_tokenization(examples)["token_f"],
    }
    for key, counts in count_hits(examples).items():
        hits, predicted, gold = counts.sum(axis=0)
        found = 2 * hits / (predicted + gold) if predicted + gold else None
        assert found == (expected[key] and pytest.approx(expected[key])), key


# --- the command ----------------------------------------------------------------------------


def gold_words():
    """Words of each label in the six sentences."""
    counts = {"O": 0, "LOC": 0, "PER": 0}
    for text, ents in TEXTS:
        counts["O"] += len(text.split())
        for start, end, label in ents:
            counts[label] += end - start
            counts["O"] -= end - start
    return counts


def test_evaluate(calibrated, dev, tmp_path):
    _, fast = calibrated
    output = tmp_path / "figures.json"
    args = [fast, dev, "-G", "--repeats", "1", "--output", output, "--raw-text"]
    code, out = run_cli("evaluate", *args, "--plot", tmp_path / "test.svg")
    assert code == 0, out
    assert "Share of words per exit layer" in out and "(ner)" in out
    figures = json.loads(output.read_text())
    points = spacy.load(fast).get_pipe("transformer").points
    assert figures["format"] == FORMAT and figures["pipeline"] == fast.name
    full, *others, raw = figures["rows"]
    assert [full["point"], *(row["point"] for row in others)] == list(points)
    assert raw["point"] == "full, raw text" and "words_per_second" not in raw
    assert full["exit"] is None and full["exit_speedup"] == full["wall_speedup"] == 1.0
    assert full["exit_layer_shares"] == [0.0] * (N_LAYERS - 1) + [1.0]
    for row in (full, *others):
        point = points[row["point"]]
        assert row["exit"] == point["exit"] and row["dev_score"] == point["dev_score"]
        assert row["exit_speedup"] == pytest.approx(point["dev_speedup"])  # same data
        assert row["scores"]["ents_f"] == pytest.approx(point["dev_score"])
        assert row["tasks"]["ner"]["scores"]["ents_f"] == row["scores"]["ents_f"]
        assert sum(row["exit_layer_shares"]) == pytest.approx(1)
        mean = np.dot(row["exit_layer_shares"], np.arange(1, N_LAYERS + 1))
        assert mean == pytest.approx(row["exit_layer_mean"])
        labels = row["tasks"]["ner"]["labels"]
        assert {label: own["words"] for label, own in labels.items()} == gold_words()
        weighted = sum(own["words"] * own["exit_layer_mean"] for own in labels.values())
        assert weighted / figures["words"] == pytest.approx(row["exit_layer_mean"])
        assert row["spread"][0] <= row["words_per_second"] <= row["spread"][1]
        loss, low, high = row["losses"]["ents_f"]
        assert loss == pytest.approx(full["scores"]["ents_f"] - row["scores"]["ents_f"])
        assert low <= high
    assert full["losses"]["ents_f"] == [0.0, 0.0, 0.0]
    assert "Lost against full (too few sentences for intervals)" in " ".join(out.split())
    assert show_loss(0.01, 0.0, 0.02) == "1.00 (0.00 to 2.00)"
    assert show_loss(0.01, 0.0, 0.02, few=True) == "1.00"


def test_evaluate_some_points(calibrated, dev):
    _, fast = calibrated
    name = next(iter(calibrated[0].points))
    rows = evaluate(fast, dev, points=[name], repeats=0)["rows"]
    assert [row["point"] for row in rows] == ["full", name]
    assert "wall_speedup" not in rows[0]
    with pytest.raises(ValueError, match="Unknown operating point '9x'"):
        evaluate(fast, dev, points=["9x"])


def saved(path, *docs):
    DocBin(docs=docs).to_disk(path)
    return path


def test_evaluate_without_gold(trained, tmp_path):
    vocab = spacy.blank("en").vocab
    data = saved(tmp_path / "dev.spacy", Doc(vocab, words=["Anna", "lives"]))
    with pytest.raises(ValueError, match=r"'dev.spacy' has gold for none .*'ner' \(doc.ents\)"):
        evaluate(trained, data, repeats=0)


def test_evaluate_on_other_labels(trained, tmp_path):
    """An error if all are unknown; a warning if some are."""
    vocab = spacy.blank("en").vocab
    other = Doc(vocab, words=["Anna", "lives"], ents=["B-PERSON", "O"])
    some = Doc(vocab, words=["Anna", "lives"], ents=["B-PER", "O"])
    data = saved(tmp_path / "dev.spacy", other)
    unknown = "'ner' .* not know.*: PERSON. It knows: LOC, PER"
    with pytest.raises(ValueError, match=unknown):
        evaluate(trained, data, repeats=0)
    code, out = run_cli("evaluate", saved_pipeline(trained, tmp_path), data)
    assert code == 1 and "PERSON" in out
    with pytest.warns(UserWarning, match=unknown):
        rows = evaluate(trained, saved(tmp_path / "some.spacy", other, some), repeats=0)["rows"]
    assert "ents_f" in rows[0]["scores"]


def saved_pipeline(nlp, tmp_path):
    nlp.to_disk(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def test_evaluate_what_is_in_memory(trained, dev, capfd):
    """The same as from files, without a word, and nothing is changed."""
    before = trained.to_bytes()
    figures = evaluate(trained, make_examples(trained), repeats=0)
    assert trained.to_bytes() == before
    assert capfd.readouterr() == ("", "")
    from_file = evaluate(trained, str(dev), repeats=0)
    assert figures["rows"] == from_file["rows"]
    assert (figures["test"], from_file["test"]) == ("examples", dev.name)


def test_evaluate_nothing(stored, tmp_path):
    DocBin().to_disk(tmp_path / "empty.spacy")
    with pytest.raises(ValueError, match="no words to evaluate on"):
        evaluate(stored, tmp_path / "empty.spacy")
    DocBin(docs=[Doc(spacy.blank("en").vocab, words=["\n"])]).to_disk(tmp_path / "space.spacy")
    for command in ("evaluate", "calibrate"):
        args = ["-o", tmp_path / "out"]
        code, out = run_cli(command, stored, tmp_path / "space.spacy", *args)
        assert code == 1 and "no words to evaluate on" in out


def test_gold_tokens_for_who_merges_some(trained, dev, tmp_path):
    """Only characters must not be words already."""
    trained.to_disk(tmp_path / "pipeline")
    nlp = spacy.load(tmp_path / "pipeline")
    nlp.add_pipe("merge_entities")
    nlp.to_disk(tmp_path / "merges")
    assert evaluate(tmp_path / "merges", dev, points=[], gold_preproc=True, repeats=0)["rows"]


# --- cost -----------------------------------------------------------------------------------


@pytest.mark.parametrize("share,catch_up", [(None, 0), (0.3, 0), (0.7, 0), (0.7, 16)])
def test_macs_are_those_that_torch_counts(tmp_path, share, catch_up, monkeypatch):
    """torch's counter does not know the attention kernel for CPUs, but the products that the math
    backend does instead, and MKL's, not oneDNN's. What is padded there is not in our count.
    """
    monkeypatch.setattr(products, "onednn_is_faster", lambda: False)
    monkeypatch.setattr(attention, "batched_is_faster", lambda n_threads: False)
    folder = make_encoder(tmp_path, n_layers=6, hidden_size=64, intermediate_size=256)
    nlp = make_nlp(str(folder), model={"catch_up": catch_up})
    transformer = nlp.get_pipe("transformer")
    docs = [nlp.make_doc(f"{text} {text}") for text, _ in TEXTS * 3]
    criterion = None
    if share is not None:
        doubts = np.sort(transformer.predict(docs).uncertainty)
        criterion = TokenExit(float(doubts[int(share * len(doubts))]), 0)
    with (
        transformer.use(criterion),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        output = transformer.predict(docs)
    assert (len(set(output.exit_layer)) > 1) == (share is not None)
    assert counter.get_flop_counts()["Global"][torch.ops.aten.bmm] > 0
    # Two operations, a product and a sum, to a MAC.
    assert counter.get_total_flops() / 2 == pytest.approx(output.macs.sum(), rel=0.01)
