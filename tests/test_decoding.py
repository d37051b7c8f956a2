"""From scores to a valid BIO sequence, against trying out every sequence."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacy_earlyexit.pipeline.decoding import bio_grammar, bio_spans, bmes_grammar, decode

CLASSES = ["O", "B-x", "I-x", "B-y", "I-y"]
BIO = bio_grammar(CLASSES)
MANY = settings(max_examples=150)


def is_valid(path, breaks):
    """An "inside" class only behind the same label, and not behind a break."""
    previous = "O"
    for i, name in enumerate(CLASSES[c] for c in path):
        if name[0] == "I" and (i == 0 or breaks[i] or previous[2:] != name[2:]):
            return False
        previous = name
    return True


def total(scores, path):
    return sum(scores[i, c] for i, c in enumerate(path))


@st.composite
def documents(draw, max_words):
    """Scores, halves of whole numbers so that ties happen, and breaks."""
    n_words = draw(st.integers(0, max_words))
    row = st.lists(st.integers(-8, 8), min_size=len(CLASSES), max_size=len(CLASSES))
    scores = draw(st.lists(row, min_size=n_words, max_size=n_words))
    breaks = draw(st.lists(st.booleans(), min_size=n_words, max_size=n_words))
    return (
        np.asarray(scores, dtype=np.float32).reshape(n_words, len(CLASSES)) / 2,
        np.asarray(breaks, dtype=bool),
    )


def decode_all(docs, grammar):
    """Documents one behind the other, in one call that changes nothing of what it is given."""
    if not docs:
        return []
    scores, breaks = np.concatenate([s for s, _ in docs]), [b.copy() for _, b in docs]
    for own in breaks:
        own[:1] = True
    breaks = np.concatenate(breaks)
    before = breaks.copy()
    path = decode(scores, breaks, grammar)
    assert len(path) == len(scores)
    np.testing.assert_array_equal(breaks, before)
    return np.split(path, np.cumsum([len(s) for s, _ in docs])[:-1])


@MANY
@given(documents(max_words=4))
def test_best_of_all_valid_sequences(doc):
    """Nothing that is valid scores higher."""
    scores, breaks = doc
    path = decode(scores, breaks, BIO)
    every = itertools.product(range(len(CLASSES)), repeat=len(scores))
    best = max(total(scores, p) for p in every if is_valid(p, breaks))
    assert is_valid(path, breaks)
    assert total(scores, path) == best


@MANY
@given(st.lists(documents(max_words=12), max_size=6))
def test_many_documents_at_once(docs):
    """Documents of any lengths, empty ones too: as each alone, and nothing given is changed."""
    for (scores, breaks), path in zip(docs, decode_all(docs, BIO), strict=True):
        assert is_valid(path, breaks)
        alone = decode(scores, breaks, BIO)
        assert total(scores, alone) == total(scores, path)


@MANY
@given(documents(max_words=6))
def test_the_best_classes_are_kept_where_they_are_valid(doc):
    """What the off-ramps say is only changed where it is no BIO sequence."""
    scores, breaks = doc
    best = scores.argmax(axis=1)
    path = decode(scores, breaks, BIO)
    if is_valid(best, breaks):
        np.testing.assert_array_equal(path, best)
    else:
        assert path.tolist() != best.tolist()


@MANY
@given(documents(max_words=6), st.integers(-20, 20))
def test_a_constant_per_word_changes_nothing(doc, seed):
    """Raw scores do as well as log-probabilities."""
    scores, breaks = doc
    shift = np.arange(len(scores))[:, None] * seed
    path = decode(scores, breaks, BIO)
    shifted = decode(scores + shift, breaks, BIO)
    assert total(scores, path) == total(scores, shifted)


def log_p(*rows):
    return np.log(np.asarray(rows, dtype=np.float32))


def names(path):
    return [CLASSES[c] for c in path]


SURE_X = [0.04, 0.04, 0.84, 0.04, 0.04]


def test_an_orphaned_inside_is_mended_by_the_words_together():
    """ "I-x I-x" at a start becomes "B-x I-x", not "O O", nor the second best of each word."""
    scores = log_p([0.1, 0.3, 0.4, 0.1, 0.1], SURE_X)
    assert names(decode(scores, np.zeros(2, bool), BIO)) == ["B-x", "I-x"]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_breaks_are_respected(place):
    """No entity continues over a break, wherever it is; the same scores without it do."""
    scores = log_p([0.04, 0.84, 0.04, 0.04, 0.04], SURE_X, SURE_X)
    breaks = np.zeros(3, dtype=bool)
    assert names(decode(scores, breaks, BIO)) == ["B-x", "I-x", "I-x"]
    breaks[place] = True
    path = names(decode(scores, breaks, BIO))
    assert path[place][0] != "I"
    assert [name[0] == "I" for name in path] == [False, place != 1, place != 2]


def test_words_that_may_only_be_outside():
    """-inf for everything but "O", as for words that already have an entity."""
    fixed = np.asarray([[0.0, *[-np.inf] * 4]], dtype=np.float32)
    start = log_p([0.04, 0.84, 0.04, 0.04, 0.04])
    scores = np.concatenate([start, fixed, log_p(SURE_X)])
    path = names(decode(scores, np.zeros(3, bool), BIO))
    assert path[:2] == ["B-x", "O"] and path[2] != "I-x"


def test_nothing_to_decode():
    assert decode(np.zeros((0, len(CLASSES))), np.zeros(0, bool), BIO).tolist() == []


def test_what_is_given_stays_as_it_is():
    breaks = np.zeros(2, dtype=bool)
    decode(log_p(SURE_X, SURE_X), breaks, BIO)
    assert not breaks.any()


def test_transitions_do_not_depend_on_the_order_of_classes():
    mixed = ["I-y", "B-x", "O", "I-x", "B-y"]
    allowed = bio_grammar(mixed).allowed
    for i, before in enumerate(mixed):
        for j, after in enumerate(mixed):
            assert allowed[i, j] == (after[0] != "I" or before[1:] == after[1:])
    scores = np.zeros((2, 5), dtype=np.float32)
    scores[0, 4] = scores[1, 0] = 1.0
    assert decode(scores, np.zeros(2, bool), bio_grammar(mixed)).tolist() == [4, 0]


# --- words out of characters ---------------------------------------------------------------

WORD_CLASSES = ["B", "E", "M", "S"]
BMES = bmes_grammar(WORD_CLASSES)


def are_words(path, breaks):
    """Every run between breaks is made of "S" and "B M … E"."""
    runs, at = [], ""
    for c, is_break in zip(path, breaks, strict=True):
        if is_break:
            runs, at = [*runs, at], ""
        at += WORD_CLASSES[c]
    return all(re.fullmatch("(S|BM*E)*", run) for run in [*runs, at])


@MANY
@given(documents(max_words=5))
def test_best_of_all_words(doc):
    """The best sequence of whole words; also with the classes in another order."""
    scores, breaks = doc[0][:, :4], doc[1]
    path = decode(scores, breaks, BMES)
    assert are_words(path, breaks)
    every = itertools.product(range(4), repeat=len(scores))
    assert total(scores, path) == max(total(scores, p) for p in every if are_words(p, breaks))
    order = [2, 0, 3, 1]
    mixed = bmes_grammar([WORD_CLASSES[c] for c in order])
    other = decode(scores[:, order], breaks, mixed)
    assert total(scores[:, order], other) == total(scores, path)


@MANY
@given(st.lists(documents(max_words=12), max_size=6))
def test_many_documents_of_words(docs):
    """Of any lengths, with breaks anywhere: as each alone."""
    docs = [(scores[:, :4], breaks) for scores, breaks in docs]
    for (scores, breaks), path in zip(docs, decode_all(docs, BMES), strict=True):
        assert are_words(path, breaks)
        alone = decode(scores, breaks, BMES)
        np.testing.assert_array_equal(path, alone)


# Entities


def spans_word_by_word(path, breaks):
    spans = []
    for i, name in enumerate(CLASSES[c] for c in path):
        if name == "O":
            continue
        goes_on = name[0] == "I" and not breaks[i] and spans and spans[-1][1:] == [i, name[2:]]
        if goes_on:
            spans[-1][1] = i + 1
        else:
            spans.append([i, i + 1, name[2:]])
    return spans


@MANY
@given(st.lists(st.tuples(st.integers(0, len(CLASSES) - 1), st.booleans()), max_size=12))
def test_entities_are_those_found_word_by_word(words):
    path = np.asarray([c for c, _ in words], dtype=np.int64)
    breaks = np.asarray([b for _, b in words], dtype=bool)
    starts, ends, kinds = bio_spans(path, breaks, CLASSES)
    found = [[int(s), int(e), CLASSES[k][2:]] for s, e, k in zip(starts, ends, kinds, strict=True)]
    assert found == spans_word_by_word(path, breaks)
