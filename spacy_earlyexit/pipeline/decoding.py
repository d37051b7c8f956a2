"""From per-word scores to a valid sequence: names as BIO, the characters of words as BMES."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..model.pieces import ranges


class Grammar(NamedTuple):
    """Which sequences of classes are valid.

    allowed (ndarray): allowed[previous, next], shape (n_classes, n_classes), bool.
    first, last (ndarray): Classes that a sequence may begin and end with, shape (n_classes,), bool.
    """

    allowed: np.ndarray
    first: np.ndarray
    last: np.ndarray


def bio_grammar(classes: Sequence[str]) -> Grammar:
    """Entities: I-x only behind B-x or I-x.

    classes (Sequence[str]): "O", "B-x", "I-x", …
    """
    allowed = np.ones((len(classes), len(classes)), dtype=bool)
    for i, name in enumerate(classes):
        if name.startswith("I-"):
            allowed[:, i] = [c in (f"B-{name[2:]}", name) for c in classes]
    inside = np.asarray([c.startswith("I-") for c in classes])
    return Grammar(allowed, ~inside, np.ones(len(classes), dtype=bool))


def bio_spans(
    path: np.ndarray, breaks: np.ndarray, classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The entities of a sequence of BIO classes. An I-x that no x stands before begins one, as in
    conlleval; in what `decode` returns there is none.

    path (ndarray): Class of each word, shape (n_words,).
    breaks (ndarray): True where no entity continues from the word before, shape (n_words,).
    classes (Sequence[str]): "O", "B-x", "I-x", …
    RETURNS (Tuple[ndarray, ndarray, ndarray]): Of each entity the first word, the word behind its
        last, and the first class that has its label, shape (n_entities,) each.
    """
    labels = [name[2:] for name in classes]
    label = np.asarray([labels.index(own) for own in labels])[path]
    outside = np.asarray([not own for own in labels])[path]
    goes_on = np.asarray([name.startswith("I-") for name in classes])[path] & ~breaks
    goes_on[:1] = False
    goes_on[1:] &= ~outside[:-1] & (label[1:] == label[:-1])
    starts = np.flatnonzero(~outside & ~goes_on)
    edges = np.append(np.flatnonzero(~goes_on), len(path))
    return starts, edges[np.searchsorted(edges, starts, side="right")], label[starts]


def bmes_grammar(classes: Sequence[str]) -> Grammar:
    """Words: a "B" (begin) needs its "E" (end), with nothing but "M" (middle) between; "S" is a
    word of its own.

    classes (Sequence[str]): "B", "M", "E" and "S" in any order.
    """
    starts = np.asarray([c in "BS" for c in classes])
    ends = np.asarray([c in "ES" for c in classes])
    return Grammar(ends[:, None] == starts[None, :], starts, ends)


def decode(scores: np.ndarray, breaks: np.ndarray, grammar: Grammar) -> np.ndarray:
    """The best valid sequence (Viterbi under the transition constraints), of one document or of
    many, one behind the other, each of which begins with a break.

    scores (ndarray): Log-probabilities, or scores that differ from them by a constant per word, as
        an off-ramp's do, shape (n_words, n_classes).
    breaks (ndarray): True where no entity (or word) may continue from the one before, shape
        (n_words,); the first always counts as one.
    grammar (Grammar): What is valid.
    RETURNS (ndarray): Class per word, shape (n_words,).
    """
    if not len(scores):
        return np.zeros(0, dtype=np.int64)
    is_first = breaks.astype(bool)  # a copy
    is_first[0] = True
    # What is on the two sides of a break does not depend on each other.
    starts = np.flatnonzero(is_first)
    is_last = np.append(is_first[1:], True)
    # The best class of each word, where that is valid, is the best sequence: nothing can beat it.
    path: np.ndarray = scores.argmax(axis=1)
    previous = np.append(0, path[:-1])
    invalid = np.where(is_first, ~grammar.first[path], ~grammar.allowed[previous, path])
    invalid |= is_last & ~grammar.last[path]
    wrong = np.unique(np.searchsorted(starts, np.flatnonzero(invalid), side="right") - 1)
    if len(wrong):
        sizes = np.diff(np.append(starts, len(path)))[wrong]
        rows = ranges(starts[wrong], sizes)
        own = scores[rows]
        own -= own.max(axis=1, keepdims=True)  # so that sums stay small, and exact
        path[rows] = _viterbi(own, sizes, grammar)
    return path


def _viterbi(scores: np.ndarray, lengths: np.ndarray, grammar: Grammar) -> np.ndarray:
    """Viterbi over many sequences at once, one step per position.

    scores (ndarray): Rows of the sequences, one behind the other, shape (n_rows, n_classes).
    lengths (ndarray): Of each sequence, shape (n_sequences,).
    RETURNS (ndarray): Class per row, shape (n_rows,).
    """
    step_penalty, first_penalty, last_penalty = (
        np.where(valid, 0.0, -np.inf).astype(np.float32) for valid in grammar
    )
    # Longest first: those that are still running are always the front.
    order = np.argsort(-lengths, kind="stable")
    begin, size = (np.cumsum(lengths) - lengths)[order], lengths[order]
    running = np.searchsorted(-size, -np.arange(size[0] + 1), side="left")
    state = np.zeros(len(size), dtype=np.int64)
    back: list[np.ndarray] = []
    best = scores[begin] + first_penalty
    for step in range(size[0]):
        if step:
            reach = best[:, :, None] + step_penalty
            back.append(reach.argmax(axis=1))
            best = reach.max(axis=1) + scores[begin[: running[step]] + step]
        going = running[step + 1]
        state[going : running[step]] = (best[going:] + last_penalty).argmax(axis=1)
        best = best[:going]
    path = np.zeros(len(scores), dtype=np.int64)
    for step in range(size[0] - 1, -1, -1):
        n = running[step]
        path[begin[:n] + step] = state[:n]
        if step:
            state[:n] = back[step - 1][np.arange(n), state[:n]]
    return path
