"""From per-word scores to a valid BIO sequence."""

from collections.abc import Sequence

import numpy as np


def bio_transitions(classes: Sequence[str]) -> np.ndarray:
    """Which class may follow which: I-x only behind B-x or I-x.

    classes (Sequence[str]): "O", "B-x", "I-x", …
    RETURNS (ndarray): allowed[previous, next], shape (n_classes, n_classes), bool.
    """
    allowed = np.ones((len(classes), len(classes)), dtype=bool)
    for i, name in enumerate(classes):
        if name.startswith("I-"):
            allowed[:, i] = [c in (f"B-{name[2:]}", name) for c in classes]
    return allowed


def decode_bio(
    scores: Sequence[np.ndarray], breaks: Sequence[np.ndarray], classes: Sequence[str]
) -> list[np.ndarray]:
    """The best valid BIO sequence of each document (Viterbi under the transition constraints).

    scores (Sequence[ndarray]): Log-probabilities, or scores that differ from them by a constant
        per word, shape (n_words, n_classes) each.
    breaks (Sequence[ndarray]): True where no entity may continue from the word before, shape
        (n_words,) each; the first word always counts as one.
    classes (Sequence[str]): Names of the classes.
    RETURNS (List[ndarray]): Class per word, shape (n_words,) each.
    """
    allowed = bio_transitions(classes)
    inside = np.asarray([c.startswith("I-") for c in classes])
    lengths = np.asarray([len(s) for s in scores], dtype=np.int64)
    if not lengths.sum():
        return [np.zeros(0, dtype=np.int64) for _ in scores]
    bounds = np.cumsum(lengths)[:-1]
    doc = np.repeat(np.arange(len(scores)), lengths)
    is_break = np.concatenate(breaks)
    is_break[(np.cumsum(lengths) - lengths)[lengths > 0]] = True
    # The best class of each word, where that is valid, is the best sequence: nothing can beat it.
    best = np.concatenate(scores).argmax(axis=1)
    previous = np.concatenate([[0], best[:-1]])
    invalid = inside[best] & (is_break | ~allowed[previous, best])
    paths = np.split(best, bounds)
    wrong = np.unique(doc[invalid])
    if len(wrong):
        broken = np.split(is_break, bounds)
        solved = _viterbi([scores[i] for i in wrong], [broken[i] for i in wrong], allowed, inside)
        for i, path in zip(wrong, solved, strict=True):
            paths[i] = path
    return paths


def _viterbi(
    scores: list[np.ndarray], breaks: list[np.ndarray], allowed: np.ndarray, inside: np.ndarray
) -> list[np.ndarray]:
    """Viterbi over all documents at once, one step per word position."""
    lengths = np.asarray([len(s) for s in scores])
    n_docs, n_steps, n_classes = len(scores), int(lengths.max()), len(inside)
    emission = np.zeros((n_steps, n_docs, n_classes), dtype=np.float32)
    cut = np.zeros((n_steps, n_docs), dtype=bool)
    for i, (own, own_breaks) in enumerate(zip(scores, breaks, strict=True)):
        emission[: len(own), i] = own
        cut[: len(own), i] = own_breaks
    penalty = np.where(allowed, 0.0, -np.inf).astype(np.float32)
    no_inside = np.where(inside, -np.inf, 0.0).astype(np.float32)
    back = np.zeros((n_steps, n_docs, n_classes), dtype=np.int64)
    best = emission[0] + no_inside
    final = best.copy()  # a document's scores at its own last word
    for step in range(1, n_steps):
        reach = best[:, :, None] + penalty
        back[step] = reach.argmax(axis=1)
        best = reach.max(axis=1) + emission[step] + np.where(cut[step][:, None], no_inside, 0)
        ends = lengths == step + 1
        final[ends] = best[ends]
    paths = []
    for i, length in enumerate(lengths):
        path = np.zeros(length, dtype=np.int64)
        path[-1] = final[i].argmax()
        for step in range(length - 1, 0, -1):
            path[step - 1] = back[step, i, path[step]]
        paths.append(path)
    return paths
