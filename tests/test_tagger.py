"""earlyexit_tagger, and several tasks over one transformer."""

import numpy as np
import pytest
import spacy
from spacy.tokens import Doc
from spacy.training import Example

from spacy_earlyexit.model.criteria import TokenExit

TAGGED = [
    ("Anna lives in Berlin .", "NNP VBZ IN NNP .", "PROPN VERB ADP PROPN PUNCT", "PER O O LOC O"),
    ("the dog sees Bob", "DT NN VBZ NNP", "DET NOUN VERB PROPN", "O O O PER"),
    ("see the dog", "VB DT NN", "VERB DET NOUN", "O O O"),
    ("Berlin is nice", "NNP VBZ JJ", "PROPN AUX ADJ", "LOC O O"),
]


def make_examples(nlp, tags=(0, 1, 2, 3), names=(0, 1, 2, 3)):
    examples = []
    for i, (text, tag, pos, ner) in enumerate(TAGGED):
        words = text.split()
        gold = Doc(
            nlp.vocab,
            words=words,
            tags=tag.split() if i in tags else None,
            pos=pos.split() if i in tags else None,
            ents=[e if e == "O" else f"B-{e}" for e in ner.split()] if i in names else None,
        )
        examples.append(Example(Doc(nlp.vocab, words=words), gold))
    return examples


def make_joint(encoder, examples_of=make_examples, steps=70):
    spacy.util.fix_random_seed(0)
    nlp = spacy.blank("en")
    model = {"@architectures": "spacy-earlyexit.MultiExitTransformer.v1", "name": encoder}
    nlp.add_pipe("earlyexit_transformer", name="transformer", config={"model": model})
    nlp.add_pipe("earlyexit_tagger", name="tagger")
    nlp.add_pipe("earlyexit_ner", name="ner")
    examples = examples_of(nlp)
    optimizer = nlp.initialize(lambda: examples)
    optimizer.learn_rate = 3e-3
    for _ in range(steps):
        nlp.update(examples, sgd=optimizer)
    return nlp


@pytest.fixture(scope="module")
def joint(encoder):
    return make_joint(encoder)


def test_learns_tags_and_names_together(joint):
    """Tasks are null in the config: they come from the components in the pipeline."""
    transformer = joint.get_pipe("transformer")
    assert transformer.tasks == ["tag", "pos", "ner"]
    assert set(joint.get_pipe("tagger").labels) >= {"NNP", "PROPN"}
    scores = joint.evaluate(make_examples(joint))
    assert scores["tag_acc"] == scores["pos_acc"] == scores["ents_f"] == 1.0


def test_tags_and_names_on_different_documents(encoder):
    """A corpus in which some documents have only tags and others only names trains both."""
    nlp = make_joint(encoder, lambda nlp: make_examples(nlp, tags=(0, 1), names=(2, 3)))
    doc = nlp("Berlin is nice")
    assert [ent.text for ent in doc.ents] == ["Berlin"]
    assert [token.tag_ for token in nlp("the dog sees Bob")] == ["DT", "NN", "VBZ", "NNP"]


def test_keeps_tags_that_are_set_unless_overwrite(joint):
    doc = Doc(joint.vocab, words=["Berlin", "is"], tags=["XX", ""], pos=["", "NOUN"])
    joint.get_pipe("transformer")(doc)
    tagger = joint.get_pipe("tagger")
    tagger(doc)
    assert [(t.tag_, t.pos_) for t in doc] == [("XX", "PROPN"), ("VBZ", "NOUN")]
    tagger.overwrite = True
    try:
        tagger(doc)
    finally:
        tagger.overwrite = False
    assert [(t.tag_, t.pos_) for t in doc] == [("NNP", "PROPN"), ("VBZ", "AUX")]


def test_leaves_whitespace_and_other_annotation_alone(joint):
    doc = Doc(joint.vocab, words=["Berlin", "\n", "is"], sent_starts=[True, False, True])
    joint.get_pipe("transformer")(doc)
    joint.get_pipe("tagger")(doc)
    assert [token.tag_ for token in doc][::2] == ["NNP", "VBZ"]
    assert doc[1].tag_ in ("", "_SP")
    assert [token.is_sent_start for token in doc] == [True, False, True]
    assert joint.get_pipe("tagger")(joint.get_pipe("transformer")(joint.make_doc(""))).text == ""


@pytest.mark.parametrize("how", ["disable", "exclude"])
def test_a_component_that_is_off_neither_rules_nor_costs(joint, tmp_path, how):
    """Most uncertain task rules; without the tagger its off-ramps are not even multiplied."""
    text = "Bob sees the dog in Berlin"
    criterion = TokenExit(0.3, 0)
    transformer = joint.get_pipe("transformer")
    with transformer.use(criterion):
        both = joint(text)
    if how == "disable":
        with joint.select_pipes(disable="tagger"), transformer.use(criterion):
            assert transformer.active_tasks == ["ner"]
            one = joint(text)
    else:
        joint.to_disk(tmp_path / "joint")
        nlp = spacy.load(tmp_path / "joint", exclude=["tagger"])
        with nlp.get_pipe("transformer").use(criterion):
            assert nlp.get_pipe("transformer").active_tasks == ["ner"]
            one = nlp(text)
    assert np.all(np.asarray(one._.exit_layers) <= np.asarray(both._.exit_layers))
    assert one._.exit_stats["macs_full"] < both._.exit_stats["macs_full"]
    assert not one.has_annotation("TAG")
    assert [ent.text for ent in one.ents] == [ent.text for ent in both.ents]


def test_wrong_task_is_named():
    with pytest.raises(ValueError, match="`tasks` has to be"):
        spacy.blank("en").add_pipe("earlyexit_tagger", config={"tasks": ["ner"]})


def test_only_its_own_attributes_are_scored(encoder):
    """Gold of an attribute that it does not set says nothing about it."""
    nlp = spacy.blank("en")
    model = {"@architectures": "spacy-earlyexit.MultiExitTransformer.v1", "name": encoder}
    nlp.add_pipe("earlyexit_transformer", name="transformer", config={"model": model})
    nlp.add_pipe("earlyexit_tagger", name="tagger", config={"tasks": ["pos"]})
    nlp.initialize(lambda: make_examples(nlp))
    scores = nlp.evaluate(make_examples(nlp))
    assert scores["tag_acc"] is None and scores["pos_acc"] >= 0.0
