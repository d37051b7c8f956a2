"""doc._.exit_layers and friends.

What is stored in doc.user_data is one entry per encoded text: character offsets and layers. It
hangs on a span key of spaCy's own form, ("._.", name, first character, last character), whose
offsets spaCy shifts when Docs are joined or cut out, and its content is relative to the first. So
it stays true when tokens are merged or split, and it travels with Doc.to_bytes and
DocBin(store_user_data=True).
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from spacy.attrs import IDX, LENGTH
from spacy.tokens import Doc, Span, Token

from ..errors import Warnings

_KEY = "earlyexit_record"


def install_extensions() -> None:
    """Register doc._.exit_layers, doc._.exit_stats, token._.exit_layer and span._.exit_layer.

    The factories do this; call it yourself to read stored Docs without loading a pipeline. Never
    takes a name away from somebody else: then there is a warning.
    """
    getters: list[tuple[Any, str, Callable]] = [
        (Doc, "exit_layers", exit_layers),
        (Doc, "exit_stats", exit_stats),
        (Token, "exit_layer", _token_layer),
        (Span, "exit_layer", _span_layer),
    ]
    for owner, attr, getter in getters:
        if not owner.has_extension(attr):
            owner.set_extension(attr, getter=getter)
        elif owner.get_extension(attr)[2] is not getter:
            name = f"{owner.__name__.lower()}._.{attr}"
            where = f"spacy_earlyexit.pipeline.extensions.{getter.__name__.lstrip('_')}"
            warnings.warn(Warnings.W001.format(attr=name, where=where), stacklevel=2)


def record(
    docs: list[Doc],
    word_doc: np.ndarray,
    word_chars: np.ndarray,
    of_words: dict[str, np.ndarray],
    unit_doc: np.ndarray,
    unit_chars: np.ndarray,
    unit_macs: np.ndarray,
) -> None:
    """Store on Docs where their words left. Replaces what an earlier run stored.

    docs (List[Doc]): The documents.
    word_doc, word_chars (ndarray): Document of each encoded word, in order, shape (n_words,), and
        its first and last-plus-one character there, shape (n_words, 2).
    of_words (Dict[str, ndarray]): "layer", and more arrays over the words, such as "uncertainty".
    unit_doc, unit_chars (ndarray): The same of the encoded units, shape (n_units,) and
        (n_units, 2).
    unit_macs (ndarray): Multiply-accumulates spent on each unit, and those at full depth, shape
        (n_units, 2).
    """
    over_words = {"chars": word_chars, **of_words}
    over_units = {"unit_chars": unit_chars, "unit_macs": unit_macs}
    words_by_doc = np.searchsorted(word_doc, np.arange(len(docs) + 1)).tolist()
    units_by_doc = np.searchsorted(unit_doc, np.arange(len(docs) + 1)).tolist()
    for i, doc in enumerate(docs):
        for key in [key for key, _ in _records(doc)]:
            del _user_data(doc)[key]
        words, units = slice(*words_by_doc[i : i + 2]), slice(*units_by_doc[i : i + 2])
        if words.start < words.stop:
            # Copies: views would keep the arrays of the whole batch.
            data = {name: values[words].copy() for name, values in over_words.items()}
            data |= {name: values[units].copy() for name, values in over_units.items()}
            _user_data(doc)[("._.", _KEY, 0, int(data["chars"][-1, 1]))] = data


def exit_layers(doc: Doc) -> list[int]:
    """The layer at which each current token left, from 1; 0 if it was never encoded.

    Tokens merged since have the deepest of their parts, tokens split since inherit.
    RETURNS (List[int]): One number per token.
    """
    return _over_tokens(doc, "layer", np.maximum).astype(int).tolist()


def word_record(doc: Doc, field: str) -> np.ndarray:
    """A recorded value ("uncertainty", "confidence") per current token, shape (n_tokens,).

    Merged tokens have the largest of their parts; 0.0 where nothing was recorded.
    """
    return _over_tokens(doc, field, np.maximum)


def exit_stats(doc: Doc) -> dict[str, float]:
    """RETURNS (Dict[str, float]): "mean_depth" (mean exit layer of the encoded tokens), "macs"
    spent, "macs_full" at full depth (multiply-accumulates), "speedup" (their ratio; 1.0 if nothing
    was encoded).
    """
    layers = [layer for layer in exit_layers(doc) if layer]
    macs = macs_full = 0.0
    for (_, _, first, _), data in _records(doc):
        start, end = first + data["unit_chars"].T
        spent, full = data["unit_macs"][(end > 0) & (start < len(doc.text))].sum(axis=0)
        macs, macs_full = macs + float(spent), macs_full + float(full)
    return {
        "mean_depth": float(np.mean(layers)) if layers else 0.0,
        "macs": macs,
        "macs_full": macs_full,
        "speedup": macs_full / macs if macs else 1.0,
    }


def _token_layer(token: Token) -> int:
    return _deepest(token.doc, token.idx, token.idx + len(token))


def _span_layer(span: Span) -> int:
    return _deepest(span.doc, span.start_char, span.end_char)


def _deepest(doc: Doc, start: int, end: int) -> int:
    """The deepest exit among the stored words that overlap characters [start, end)."""
    deepest = 0
    for (_, _, first, _), data in _records(doc):
        lo, hi = _overlapping(data["chars"], start - first, end - first)
        if lo < hi:
            deepest = max(deepest, int(data["layer"][lo:hi].max()))
    return deepest


def _over_tokens(doc: Doc, field: str, combine: np.ufunc) -> np.ndarray:
    """A stored field on the current tokens: `combine` over the stored words each overlaps."""
    values = np.zeros(len(doc))
    if len(doc) == 0:
        return values
    starts, ends = _token_chars(doc)
    for (_, _, first, _), data in _records(doc):
        if field not in data or len(data[field]) == 0:
            continue
        lo, hi = _overlapping(data["chars"], starts - first, ends - first)
        hit = np.flatnonzero(lo < hi)
        if len(hit):
            # reduceat over [lo, hi) pairs; the sentinel lets hi be the end of the array
            stored = np.append(data[field], data[field].dtype.type(0))
            pairs = np.stack([lo[hit], hi[hit]], axis=1).ravel()
            values[hit] = combine(values[hit], combine.reduceat(stored, pairs)[::2])
    return values


def _overlapping(chars: np.ndarray, start: Any, end: Any) -> tuple[Any, Any]:
    """chars (ndarray): First and last-plus-one character of words, in order, shape (n_words, 2).
    start, end (Union[int, ndarray]): First and last-plus-one characters of something else.
    RETURNS (Tuple[Union[int, ndarray], Union[int, ndarray]]): The first and last-plus-one word that
        overlaps it; none where the first is not below the other.
    """
    return (
        np.searchsorted(chars[:, 1], start, side="right"),
        np.searchsorted(chars[:, 0], end, side="left"),
    )


def _token_chars(doc: Doc) -> tuple[np.ndarray, np.ndarray]:
    """Where each token begins and ends in the text, shape (n_tokens,) each, int64."""
    starts, lengths = doc.to_array([IDX, LENGTH]).astype(np.int64).T
    return starts, starts + lengths


def _user_data(doc: Doc) -> dict[Any, Any]:
    return doc.user_data  # spaCy's stubs know string keys only, though its own are tuples


def _records(doc: Doc) -> Iterator[tuple[tuple[str, str, int, int], dict[str, np.ndarray]]]:
    for key, data in _user_data(doc).items():
        if isinstance(key, tuple) and len(key) == 4 and key[1] == _KEY:
            yield key, data
