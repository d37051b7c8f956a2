"""earlyexit_ner on Docs: what it writes, what it keeps, and what it says when it can't."""

import numpy as np
import pytest
import spacy
from conftest import TEXTS, make_encoder, make_examples, make_nlp
from spacy.tokens import Doc, Span
from spacy.training import Example

from spacy_earlyexit.model.criteria import FixedExit, TokenExit
from spacy_earlyexit.pipeline.exits import DocExits, find_exits, leave_exits
from spacy_earlyexit.pipeline.ner import EarlyExitNer

WORDS = "Anna Smith lives in New York .".split()
ANNA, NEW_YORK = (0, 2, "PER"), (4, 6, "LOC")


def entities(doc):
    return [(ent.start, ent.end, ent.label_) for ent in doc.ents]


def make_doc(nlp, words=WORDS, ents=(), blocked=(), **settings):
    doc = Doc(nlp.vocab, words=words, **settings)
    spans = [Span(doc, *ent) for ent in ents]
    doc.set_ents(spans, blocked=[doc[a:b] for a, b in blocked], default="unmodified")
    return doc


def mixed_exit(nlp):
    """A criterion at which the words of TEXTS leave at several layers."""
    transformer = nlp.get_pipe("transformer")
    docs = [nlp.make_doc(text) for text, _ in TEXTS]
    with transformer.use(FixedExit(2)):
        doubt = transformer.predict(docs).uncertainty
    criterion = TokenExit([0.0, float(np.median(doubt)), 0.0, 0.0], 0)
    with transformer.use(criterion):
        assert set(transformer.predict(docs).exit_layer) == {2, 4}
    return criterion


# --- what it finds -------------------------------------------------------------------------


@pytest.mark.parametrize("text, ents", TEXTS)
def test_entities_of_the_training_sentences(trained, text, ents):
    assert entities(trained(text)) == ents


def test_labels_are_the_transformers(trained):
    ner, transformer = trained.get_pipe("ner"), trained.get_pipe("transformer")
    assert ner.labels == ("LOC", "PER") == tuple(transformer.label_data["ner"])
    assert trained.pipe_labels["ner"] == ["LOC", "PER"]
    assert spacy.blank("en").add_pipe("earlyexit_ner").labels == ()


def test_scores(trained, nlp):
    """nlp.evaluate gives ents_f and the scores per type; over-fitting is seen in them."""
    scores = trained.evaluate(make_examples(trained))
    assert scores["ents_f"] == scores["ents_p"] == scores["ents_r"] == 1.0
    assert set(scores["ents_per_type"]) == {"LOC", "PER"}
    assert nlp.evaluate(make_examples(nlp))["ents_f"] < 1.0


def test_words_without_entity_are_outside_not_missing(trained):
    doc = trained("Anna Smith lives in New York .")
    assert [t.ent_iob_ for t in doc] == ["B", "I", "O", "O", "B", "I", "O"]
    assert doc.has_annotation("ENT_IOB")
    assert [t.ent_iob_ for t in trained("she said hello")] == ["O"] * 3
    assert [t.ent_iob_ for t in trained(" \n ")] == ["O"] * len(trained.make_doc(" \n "))


def test_whitespace_tokens(trained):
    """Covered inside an entity, at no entity's edge."""
    words = ["\n", "Anna", " ", "Smith", "\n\n", "lives", "in", " ", "New", " ", "York", "\n", "."]
    doc = trained(make_doc(trained, words))
    assert [t.is_space for t in doc].count(True) == 6
    assert entities(doc) == [(1, 4, "PER"), (8, 11, "LOC")]


@pytest.mark.parametrize("space", [False, True])
def test_no_entity_crosses_a_sentence_start(trained, space):
    """That is already set on the Doc; the start can also be a whitespace token."""
    words = [*WORDS[:5], "\n", *WORDS[5:]]
    no_starts = make_doc(trained, words)
    assert entities(trained(no_starts))[1] == (4, 7, "LOC")
    starts = [False] * len(words)
    starts[0] = starts[5 if space else 6] = True
    doc = trained(make_doc(trained, words, sent_starts=starts))
    assert len(list(doc.sents)) == 2
    assert entities(doc)[0] == ANNA
    for ent in doc.ents:
        assert len({token.sent.start for token in ent}) == 1


def test_no_entity_goes_on_in_the_next_doc():
    """Also where that begins in the middle of a sentence, as one cut out of another does: each Doc
    of a batch has what it has alone.
    """
    vocab, classes = spacy.blank("en").vocab, ["O", "B-LOC", "I-LOC"]

    def make(*said):
        doc = Doc(vocab, words=list("ab"), sent_starts=[False, False])
        scores = np.zeros((2, 3), dtype=np.float32)
        scores[[0, 1], [classes.index(name) for name in said]] = 5.0
        own = DocExits(2, np.arange(2), scores, {"ner": slice(0, 3)}, {"ner": classes})
        leave_exits(doc, "transformer", own)
        return doc

    said = [("O", "B-LOC"), ("I-LOC", "I-LOC"), ("I-LOC", "O")]
    together = [entities(doc) for doc in EarlyExitNer().annotate([make(*own) for own in said])]
    assert together == [entities(EarlyExitNer()(make(*own))) for own in said]
    assert together[:2] == [[(1, 2, "LOC")], [(0, 2, "LOC")]]


# --- what was there before -----------------------------------------------------------------


@pytest.mark.parametrize(
    "preset, expected",
    [
        # away from what is found
        ([(2, 4, "X")], [ANNA, (2, 4, "X"), NEW_YORK]),
        # the same words, another label
        ([(4, 6, "X")], [ANNA, (4, 6, "X")]),
        # overlaps: what is left of it may be found, the preset one is whole
        ([(1, 3, "X")], [(1, 3, "X"), NEW_YORK]),
        ([(3, 5, "X")], [ANNA, (3, 5, "X")]),
        # touches, before and behind
        ([(2, 3, "PER")], [ANNA, (2, 3, "PER"), NEW_YORK]),
        ([(6, 7, "LOC")], [ANNA, NEW_YORK, (6, 7, "LOC")]),
        ([(3, 4, "LOC")], [ANNA, (3, 4, "LOC"), NEW_YORK]),
        # covers everything
        ([(0, 7, "X")], [(0, 7, "X")]),
    ],
)
def test_preset_entities_are_kept(trained, preset, expected):
    found = entities(trained(make_doc(trained, ents=preset)))
    for ent in preset:
        assert ent in found
    inside = {i for start, end, _ in preset for i in range(start, end)}
    others = [ent for ent in found if ent not in preset]
    assert not any(inside.intersection(range(start, end)) for start, end, _ in others)
    assert set(expected) <= set(found)


def test_what_a_preset_entity_leaves_of_another_is_found(trained):
    """The words behind it, whose scores say "inside", become an entity of their own."""
    doc = trained.get_pipe("transformer")(make_doc(trained, ents=[(1, 3, "X")]))
    exits = find_exits(doc)
    classes = list(exits.classes["ner"])
    said = ["O", "O", "B-PER", "I-PER", "I-PER", "O", "O"]
    exits.scores = np.zeros_like(exits.scores)
    exits.scores[range(7), [classes.index(name) for name in said]] = 9.0
    exits.scores[3, classes.index("B-PER")] = 5.0
    assert entities(trained.get_pipe("ner")(doc)) == [(1, 3, "X"), (3, 5, "PER")]


def test_ids_of_preset_entities_are_kept(trained):
    doc = make_doc(trained)
    doc.ents = [Span(doc, 2, 3, label="X", kb_id="Q1", span_id="rule")]
    (ent,) = [ent for ent in trained(doc).ents if ent.label_ == "X"]
    assert (ent.kb_id_, ent.id_) == ("Q1", "rule")


def test_preset_entities_are_replaced_on_request(trained, monkeypatch):
    monkeypatch.setattr(trained.get_pipe("ner"), "overwrite", True)
    for preset in ([(2, 4, "X")], [(1, 3, "X")], [(0, 7, "X")]):
        assert entities(trained(make_doc(trained, ents=preset))) == [ANNA, NEW_YORK]


def test_overwrite_is_a_setting(encoder):
    nlp = spacy.blank("en")
    assert nlp.add_pipe("earlyexit_ner").overwrite is False
    assert nlp.add_pipe("earlyexit_ner", "b", config={"overwrite": True}).overwrite is True


@pytest.mark.parametrize("blocked, kept", [((4, 6), ANNA), ((0, 2), NEW_YORK)])
def test_blocked_words_stay_blocked(trained, monkeypatch, blocked, kept):
    """Words of which somebody said that they are in no entity, as by spaCy's own ner."""
    doc = trained(make_doc(trained, blocked=[blocked]))
    assert entities(doc) == [kept]
    iob_and_type = doc.to_array(["ENT_IOB", "ENT_TYPE"])[slice(*blocked)]
    assert iob_and_type.tolist() == [[3, 0]] * 2
    monkeypatch.setattr(trained.get_pipe("ner"), "overwrite", True)
    assert entities(trained(doc)) == [ANNA, NEW_YORK]


def test_preset_annotation_on_whitespace(trained):
    """Inside of what would be an entity: no crash, and no entity over it."""
    words = [*WORDS[:5], "\n", *WORDS[5:]]
    doc = trained(make_doc(trained, words, ents=[(5, 6, "X")]))
    assert ANNA in entities(doc) and (5, 6, "X") in entities(doc)
    doc = trained(make_doc(trained, words, blocked=[(5, 6)]))
    assert ANNA in entities(doc) and (4, 7, "LOC") not in entities(doc)


# --- errors --------------------------------------------------------------------------------

NO_SCORES = r"'ner' found no exit scores for the task 'ner' on the Doc 'Anna Smith lives"


def test_error_without_a_transformer():
    nlp = spacy.blank("en")
    nlp.add_pipe("earlyexit_ner", name="ner")
    with pytest.raises(ValueError, match=NO_SCORES + ".*missing, disabled or behind 'ner'"):
        nlp("Anna Smith lives in New York .")


def test_error_with_the_transformer_disabled(trained):
    with trained.select_pipes(disable="transformer"):
        with pytest.raises(ValueError, match=NO_SCORES):
            trained("Anna Smith lives in New York .")
    assert trained("Anna Smith lives in New York .").ents


def test_error_with_the_transformer_behind(encoder):
    nlp = spacy.blank("en")
    model = {"@architectures": "spacy-earlyexit.MultiExitTransformer.v1", "name": encoder}
    nlp.add_pipe("earlyexit_ner", name="ner")
    nlp.add_pipe("earlyexit_transformer", "transformer", config={"tasks": ["ner"], "model": model})
    nlp.initialize(lambda: make_examples(nlp))
    with pytest.raises(ValueError, match=NO_SCORES):
        nlp("Anna Smith lives in New York .")


NO_ENTITIES = "'ner' makes entities of BIO classes .* the task 'pos' has .*`task`"


def test_error_with_a_task_of_other_classes(encoder, tmp_path):
    """Where it is initialised, and where it is put into a trained pipeline."""
    nlp = spacy.blank("en")
    model = {"@architectures": "spacy-earlyexit.MultiExitTransformer.v1", "name": encoder}
    nlp.add_pipe("earlyexit_transformer", "transformer", config={"model": model})
    nlp.add_pipe("earlyexit_tagger", name="tagger", config={"tasks": ["pos"]})

    def examples():
        doc = Doc(nlp.vocab, words=["Anna", "lives"], pos=["PROPN", "VERB"])
        return [Example(nlp.make_doc("Anna lives"), doc)]

    nlp.initialize(examples)
    nlp.to_disk(tmp_path)
    with pytest.raises(ValueError, match=NO_ENTITIES):
        nlp.add_pipe("earlyexit_ner", name="ner", config={"task": "pos"})
    untrained = spacy.blank("en", vocab=nlp.vocab)
    untrained.add_pipe("earlyexit_transformer", "transformer", config={"model": model})
    untrained.add_pipe("earlyexit_ner", name="ner", config={"task": "pos"})
    with pytest.raises(ValueError, match=NO_ENTITIES):
        untrained.initialize(examples)
    config = spacy.util.load_config(tmp_path / "config.cfg")
    config["nlp"]["pipeline"].append("ner")
    config["components"]["ner"] = {"factory": "earlyexit_ner", "task": "pos"}
    config.to_disk(tmp_path / "config.cfg")
    (tmp_path / "ner").mkdir()
    with pytest.raises(ValueError, match=NO_ENTITIES):
        spacy.load(tmp_path)


def test_outside_is_found_by_its_name():
    """Wherever a task of its own has it among its classes."""
    classes = ["B-LOC", "I-LOC", "O"]
    doc = Doc(spacy.blank("en").vocab, words=list("abc"), ents=["O", "B-X", "O"])
    scores = np.asarray([[5, 0, 0], [0, 5, 0], [0, 5, 0]], dtype=np.float32)
    exits = DocExits(3, np.arange(3), scores, {"ner": slice(0, 3)}, {"ner": classes})
    leave_exits(doc, "transformer", exits)
    assert entities(EarlyExitNer()(doc)) == [(0, 1, "LOC"), (1, 2, "X"), (2, 3, "LOC")]


@pytest.mark.parametrize("change", ["copy", "rebuild", "merge", "split"])
def test_error_where_the_doc_changed_in_between(trained, change):
    """Scores of other tokens are never written on these."""
    transformer, ner = trained.get_pipe("transformer"), trained.get_pipe("ner")
    doc = transformer(trained.make_doc("Anna Smith lives in New York ."))
    if change == "copy":
        doc = doc.copy()
    elif change == "rebuild":
        doc = Doc(trained.vocab).from_bytes(doc.to_bytes())
    elif change == "merge":
        with doc.retokenize() as retokenizer:
            retokenizer.merge(doc[4:6])
    else:
        with doc.retokenize() as retokenizer:
            retokenizer.split(doc[2], ["liv", "es"], heads=[(doc[2], 1), doc[1]])
    with pytest.raises(ValueError, match=NO_SCORES + ".*retokenised"):
        ner(doc)
    assert not doc.has_annotation("ENT_IOB")


def test_error_names_the_text_among_many(trained):
    """Of a batch the one that has no scores; the error handler gets the batch."""
    transformer, ner = trained.get_pipe("transformer"), trained.get_pipe("ner")
    good = transformer(trained.make_doc("Berlin is nice"))
    bad = trained.make_doc("Anna Smith lives in New York .")
    with pytest.raises(ValueError, match=NO_SCORES):
        list(ner.pipe([good, bad]))
    seen = []
    ner.set_error_handler(lambda name, pipe, docs, error: seen.append((name, docs, error)))
    try:
        assert list(ner.pipe([good, bad])) == []
    finally:
        del ner.error_handler
    ((name, docs, error),) = seen
    assert name == "ner" and docs == [good, bad] and isinstance(error, ValueError)
    assert [doc.text for doc in ner.pipe([good])] == ["Berlin is nice"]


def test_analyze_pipes(trained):
    """Tells the truth before anything is run."""
    assert trained.analyze_pipes()["problems"] == {"transformer": [], "ner": []}
    alone = spacy.blank("en")
    alone.add_pipe("earlyexit_ner", name="ner")
    assert alone.analyze_pipes()["problems"] == {"ner": ["doc._.exit_layers"]}


# --- odd documents -------------------------------------------------------------------------

LONG = " ".join(text for text, _ in TEXTS * 10)
ODD = {
    "empty": "",
    "space": " ",
    "only whitespace": "  \n\n \t ",
    "longer than the encoder's positions": LONG,
    "without spaces": "Anna,Berlin." * 40,
    "a word of 300 letters": "a" * 300,
    "a word of 300 pieces": "Anna " + "." * 300 + " lives in New York",
    "zero-width": "\u200b Anna \u200b",
    "unknown characters": "\u540c\u6a23 \U0001f600 Anna",
}


@pytest.mark.parametrize("exit", ["full", "mixed"])
@pytest.mark.parametrize("text", ODD.values(), ids=ODD.keys())
def test_odd_documents(trained, text, exit):
    """Every word is labelled, and left at a layer; only whitespace did not."""
    with trained.get_pipe("transformer").use(mixed_exit(trained) if exit == "mixed" else None):
        doc = trained(text)
    layers = doc._.exit_layers
    assert len(layers) == len(doc)
    assert [layer == 0 for layer in layers] == [token.is_space for token in doc]
    assert all(token.ent_iob_ in "BIO" and token.ent_iob_ for token in doc)
    if exit == "full":
        assert set(layers) <= {0, 4}


def test_a_word_longer_than_the_encoder(trained):
    """300 pieces in one token, and the same as words of one character."""
    doc = trained(make_doc(trained, ["Anna", "." * 300, *WORDS]))
    assert all(doc._.exit_layers)
    doc = trained(make_doc(trained, ["Anna", *"." * 300, *WORDS]))
    assert len(doc) == 308 and all(doc._.exit_layers)


def test_words_of_a_long_document_have_their_own_scores(tmp_path):
    """Every word has its own scores, whichever window it was read in. Seen with an encoder that
    knows neither positions nor neighbours, so that a word has the scores it has alone.
    """
    alone = {"offramp_context": 0}
    nlp = make_nlp(str(make_encoder(tmp_path, n_positions=64)), model=alone)
    encoder = nlp.get_pipe("transformer").model.layers[1].shims[0].module.encoder
    encoder.positions.weight.data.zero_()
    for layer in encoder.layers:  # no attention: a word's scores depend on the word alone
        layer.output.weight.data.zero_()
    transformer = nlp.get_pipe("transformer")
    words = [f"{a}{b}" for a in "abcdefghij" for b in "klmnopqrst"]
    long = transformer.predict([Doc(nlp.vocab, words=words)])
    assert long.pieces.n_units > 2
    alone = transformer.predict([Doc(nlp.vocab, words=[word]) for word in words])
    order = np.flatnonzero(long.pieces.owned)
    assert long.pieces.word_token[order].tolist() == list(range(len(words)))
    np.testing.assert_allclose(long.scores[order], alone.scores, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_pipe_equals_one_at_a_time(trained, batch_size):
    """Same entities, same exit layers, in the order of the texts."""
    texts = ["", *(text for text, _ in TEXTS), "  ", LONG, "", *ODD.values(), "Anna"]
    with trained.get_pipe("transformer").use(mixed_exit(trained)):
        alone = [trained(text) for text in texts]
        together = list(trained.pipe(texts, batch_size=batch_size))
    assert [doc.text for doc in together] == texts
    assert [entities(doc) for doc in together] == [entities(doc) for doc in alone]
    assert [doc._.exit_layers for doc in together] == [doc._.exit_layers for doc in alone]
    assert {2, 4} <= {layer for doc in together for layer in doc._.exit_layers}
