"""doc._.exit_layers and friends.

What is stored in doc.user_data is one entry per encoded text: character offsets and layers. It
hangs on a span key of spaCy's own form, ("._.", name, first character, last character), whose
offsets spaCy shifts when Docs are joined or cut out, and its content is relative to the first. So
it stays true when tokens are merged or split, and it travels with Doc.to_bytes and
DocBin(store_user_data=True).
"""

import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from spacy.attrs import IDX, LENGTH
from spacy.tokens import Doc, Span, Token

from ..errors import Errors, Warnings

_KEY = "earlyexit_record"
# What can be recorded of a word, and what a token made of several words has: the worst of them.
RECORDED: dict[str, np.ufunc] = {"uncertainty": np.fmax, "confidence": np.fmin}


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
        for key in _keys(_user_data(doc)):
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
    return _over_tokens(doc, "layer", np.maximum, 0.0).astype(int).tolist()


def word_record(doc: Doc, field: str) -> np.ndarray:
    """A recorded value of each current token.

    Tokens merged since have the worst of their parts: the largest uncertainty, the least
    confidence. Tokens split since inherit.

    field (str): "uncertainty" or "confidence".
    RETURNS (ndarray): shape (n_tokens,); NaN where nothing is known, as of whitespace.
    RAISES (ValueError): If there is no such value, or it was not recorded when the Doc was encoded.
    """
    if field not in RECORDED:
        raise ValueError(Errors.E072.format(field=field, fields=", ".join(RECORDED)))
    found = [data for _, _, data in _records(doc).overlapping(doc)]
    if found and not any(field in data for data in found):
        names = ", ".join(name for name in RECORDED if any(name in data for data in found))
        text = doc.text[:50]
        raise ValueError(Errors.E073.format(field=field, text=text, recorded=names or "nothing"))
    return _over_tokens(doc, field, RECORDED[field], np.nan)


def confidence(
    scores: np.ndarray,
    slices: Mapping[str, slice],
    temperatures: Mapping[str, Sequence[float]],
    layers: np.ndarray,
) -> np.ndarray:
    """The probability of each word's best class, of its least confident task.

    scores (ndarray): The words' scores at exit, shape (n_words, n_classes).
    slices (Mapping[str, slice]): Where each task's classes lie.
    temperatures (Mapping[str, Sequence[float]]): Of each task, what divides the scores per layer.
    layers (ndarray): The layer at which each word left, from 1, shape (n_words,).
    RETURNS (ndarray): In (0, 1], shape (n_words,); NaN without tasks.
    """
    least = np.full(len(scores), np.nan, dtype=np.float32)
    for task, part in slices.items():
        temperature = np.asarray(temperatures[task], dtype=np.float32)[layers - 1]
        below = scores[:, part] - scores[:, part].max(axis=1, keepdims=True)
        least = np.fmin(least, 1.0 / np.exp(below / temperature[:, None]).sum(axis=1))
    return least


def exit_stats(doc: Doc) -> dict[str, float]:
    """RETURNS (Dict[str, float]): "mean_depth" (mean exit layer of the encoded tokens), "macs"
    spent, "macs_full" at full depth (multiply-accumulates), "speedup" (their ratio; 1.0 if nothing
    was encoded).
    """
    layers = [layer for layer in exit_layers(doc) if layer]
    macs = macs_full = 0.0
    for first, _, data in _records(doc).overlapping(doc):
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
    for first, _, data in _records(doc).overlapping(doc, start, end):
        lo, hi = _overlapping(data["chars"], start - first, end - first)
        if lo < hi:
            deepest = max(deepest, int(data["layer"][lo:hi].max()))
    return deepest


def _over_tokens(doc: Doc, field: str, combine: np.ufunc, unknown: float) -> np.ndarray:
    """A stored field on the current tokens: `combine` over the stored words each overlaps, and
    `unknown` where there is none. Shape (n_tokens,).
    """
    values = np.full(len(doc), unknown)
    if len(doc) == 0:
        return values
    token_chars = np.stack(_token_chars(doc), axis=1)
    for first, last, data in _records(doc).overlapping(doc):
        if field not in data:
            continue
        a, b = _overlapping(token_chars, first + data["chars"][0, 0], last)
        lo, hi = _overlapping(data["chars"], *(token_chars[a:b] - first).T)
        hit = np.flatnonzero(lo < hi)
        if len(hit):
            # reduceat over [lo, hi) pairs; the sentinel lets hi be the end of the array
            stored = np.append(data[field], data[field].dtype.type(0))
            pairs = np.stack([lo[hit], hi[hit]], axis=1).ravel()
            tokens = a + hit
            values[tokens] = combine(values[tokens], combine.reduceat(stored, pairs)[::2])
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


@dataclass
class _Records:
    """Where the records of a Doc are in its user_data, so that looking for one token's does not
    read all the keys, of which each token can have many.

    keys (List[Tuple[str, str, int, int]]): Their keys, by their first character.
    starts, ends (List[int]): The first character of each, and the last-plus-one of it and of those
        before.
    user_data, size, last_key (int, int, Any): The id, length and last key of the user_data that
        they were found in. One of them changes when something is added or removed.
    """

    keys: list[tuple[str, str, int, int]]
    starts: list[int]
    ends: list[int]
    user_data: int
    size: int
    last_key: Any

    def is_about(self, user_data: dict[Any, Any]) -> bool:
        """Whether nothing was added to this user_data or removed from it since."""
        return (
            self.user_data == id(user_data)
            and self.size == len(user_data)
            and self.last_key is _last_key(user_data)
        )

    def overlapping(
        self, doc: Doc, start: int | None = None, end: int | None = None
    ) -> list[tuple[int, int, dict[str, np.ndarray]]]:
        """The records that may overlap characters [start, end), all without them.

        RETURNS (List[Tuple[int, int, Dict[str, ndarray]]]): The character that a record's content
            is relative to, the last-plus-one that it is about, and the content.
        """
        lo = 0 if start is None else bisect_right(self.ends, start)
        hi = len(self.keys) if end is None else bisect_left(self.starts, end)
        user_data = _user_data(doc)
        found = [(key[2], user_data[key]) for key in self.keys[lo:hi] if key in user_data]
        return [(first, first + int(data["chars"][-1, 1]), data) for first, data in found]


_RECORDS: "WeakKeyDictionary[Doc, _Records]" = WeakKeyDictionary()


def _records(doc: Doc) -> _Records:
    known = _RECORDS.get(doc)
    user_data = _user_data(doc)
    if known is None or not known.is_about(user_data):
        known = _RECORDS[doc] = _find_records(user_data)
    return known


def _find_records(user_data: dict[Any, Any]) -> _Records:
    found = []
    for key in _keys(user_data):
        chars = key[2] + user_data[key]["chars"]
        found.append((int(chars[0, 0]), int(chars[-1, 1]), key))
    found.sort()
    ends = accumulate((end for _, end, _ in found), max)
    starts, keys = [start for start, _, _ in found], [key for _, _, key in found]
    return _Records(keys, starts, list(ends), id(user_data), len(user_data), _last_key(user_data))


def _keys(user_data: dict[Any, Any]) -> list[tuple[str, str, int, int]]:
    return [k for k in user_data if isinstance(k, tuple) and len(k) == 4 and k[1] == _KEY]


def _last_key(user_data: dict[Any, Any]) -> Any:
    return next(reversed(user_data), None)
