"""What the transformer leaves beside a Doc: kept until the last component has read it."""

import gc
import weakref

import pytest
import spacy
from conftest import TEXTS
from pipelines import TEXT, initialized, transformer_of

from spacy_earlyexit.pipeline.exits import find_exits

DROPPED = "'ner' found no exit scores .* 'transformer' left were dropped .* disabled"


@pytest.fixture(scope="module")
def two(encoder):
    """A pipeline with two components that read."""
    return initialized(encoder, ["ner", "other"])


def test_dropped_after_the_last_reader(two):
    doc = transformer_of(two)(two.make_doc(TEXT))
    scores = weakref.ref(find_exits(doc).scores)
    two.get_pipe("ner")(doc)
    two.get_pipe("ner")(doc)  # the other one has still to read
    assert scores() is not None
    two.get_pipe("other")(doc)
    gc.collect()
    assert find_exits(doc) is None and scores() is None
    with pytest.raises(ValueError, match=DROPPED):
        two.get_pipe("ner")(doc)
    assert two(doc) is doc, "a new run leaves new ones"


def test_dropped_from_every_doc_of_a_batch(two):
    docs = list(two.pipe([text for text, _ in TEXTS] * 3, batch_size=4))
    assert [find_exits(doc) for doc in docs] == [None] * len(docs)


def test_a_disabled_reader_is_not_waited_for(two):
    with two.select_pipes(disable="other"):
        assert find_exits(two(TEXT)) is None


def test_no_entities_of_an_earlier_run(two):
    """With the transformer disabled, a Doc that it has seen before has nothing to give."""
    doc = two(TEXT)
    with two.select_pipes(disable="transformer"):
        with pytest.raises(ValueError, match=DROPPED):
            two(doc)


def test_kept_where_nothing_reads(two):
    with two.select_pipes(enable="transformer"):
        doc = two(TEXT)
    assert find_exits(doc) is not None


def test_a_transformer_of_two_pipelines_with_readers_of_their_own(encoder, two):
    """Those of the pipeline that runs count."""
    other = spacy.blank("en", vocab=two.vocab)
    other.add_pipe("transformer", source=two)
    other.add_pipe("earlyexit_ner", name="mine")
    assert transformer_of(other) is transformer_of(two)
    for nlp in (other, two):
        doc = nlp(TEXT)
        assert find_exits(doc) is None
        assert doc.has_annotation("ENT_IOB")


def test_readers_that_two_pipelines_share(encoder, two):
    """One of them has fewer; no pipeline loses what it still has to read."""
    nlp = initialized(encoder, ["ner", "other"])
    other = spacy.blank("en", vocab=nlp.vocab)
    for name in ("transformer", "ner"):
        other.add_pipe(name, source=nlp)
    assert find_exits(nlp(TEXT)) is None
    assert other(TEXT).has_annotation("ENT_IOB")


def test_a_task_that_is_not_trained_is_named(encoder):
    nlp = initialized(encoder)
    nlp.add_pipe("earlyexit_ner", name="other", config={"task": "test_other_ner"})
    cause = r"gave scores for: ner. .*not trained with 'test_other_ner' .*`tasks`"
    with pytest.raises(ValueError, match=cause):
        nlp(TEXT)
