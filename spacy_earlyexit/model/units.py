"""The units that are encoded and finished: spans of a Doc that fit the encoder's positions.

A registered span getter (spacy-transformers' `span_getters`) proposes spans; what is longer than
the encoder can take is cut into windows that overlap, so that every word keeps context on both
sides.
"""

from collections.abc import Callable

import numpy as np
from spacy.tokens import Doc, Span

from ..errors import Errors

SpanGetter = Callable[[list[Doc]], list[list[Span]]]


def unit_bounds(docs: list[Doc], get_spans: SpanGetter) -> tuple[np.ndarray, np.ndarray]:
    """Ask the span getter for its spans.

    docs (List[Doc]): The documents.
    get_spans (SpanGetter): A registered span getter.
    RETURNS (Tuple[ndarray, ndarray]): Document index per span, shape (n_spans,), and first and
        last-plus-one token per span, shape (n_spans, 2), in document order.
    RAISES (ValueError): If the getter does not answer for every document.
    """
    spans = get_spans(docs)
    if len(spans) != len(docs):
        raise ValueError(Errors.E019.format(n_spans=len(spans), n_docs=len(docs)))
    counts = [len(doc_spans) for doc_spans in spans]
    bounds = [(span.start, span.end) for doc_spans in spans for span in doc_spans]
    return (
        np.repeat(np.arange(len(docs)), counts),
        np.asarray(bounds, dtype=np.int64).reshape(-1, 2),
    )


def cut_windows(lengths: np.ndarray, capacity: int) -> list[tuple[int, int, int, int]]:
    """Cut one span that is too long into overlapping windows.

    Each word is owned by one window; up to an eighth of the capacity on each side is context.

    lengths (ndarray): Pieces per word, shape (n_words,), none above `capacity`.
    capacity (int): The most pieces that one window may hold.
    RETURNS (List[Tuple[int, int, int, int]]): Per window the first and last-plus-one word, and
        the first and last-plus-one word that it owns.
    """
    ends = np.concatenate([[0], np.cumsum(lengths)])
    n_words = len(lengths)
    if ends[-1] <= capacity:
        return [(0, n_words, 0, n_words)]
    context = capacity // 8
    windows = []
    own_start = 0
    while own_start < n_words:
        start = int(np.searchsorted(ends, ends[own_start] - context))
        # The window runs to its capacity; what lies in its last `context` pieces is left to the
        # next window, unless this is the last one or would then own nothing.
        end = int(np.searchsorted(ends, ends[start] + capacity, side="right")) - 1
        if end <= own_start:  # a huge word behind the context: start at the word itself
            start, end = own_start, own_start + 1
        own_end = end
        if end < n_words:
            inner = int(np.searchsorted(ends, ends[end] - context, side="right")) - 1
            own_end = max(inner, own_start + 1)
        windows.append((start, end, own_start, own_end))
        own_start = own_end
    return windows


def owners(unit: np.ndarray, doc: np.ndarray, token: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Where spans overlap, give each token to the span in which it has the most context.

    unit, doc, token (ndarray): Span, document and token index of every word occurrence, shape (n,).
    bounds (ndarray): First and last-plus-one token of every span, shape (n_spans, 2).
    RETURNS (ndarray): True where the occurrence speaks for its token, shape (n,).
    """
    context = np.minimum(token - bounds[unit, 0], bounds[unit, 1] - 1 - token)
    order = np.lexsort((unit, -context, token, doc))
    first = np.ones(len(order), dtype=bool)
    first[1:] = (np.diff(doc[order]) != 0) | (np.diff(token[order]) != 0)
    owned = np.zeros(len(order), dtype=bool)
    owned[order[first]] = True
    return owned
