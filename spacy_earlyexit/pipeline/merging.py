"""Docs with fewer, longer tokens.

A new Doc, made of arrays: spaCy's retokenizer takes longer, and its time grows faster than the Doc;
besides it leaves span groups at the token indices of before.
"""

from typing import Any, cast

import numpy as np
from spacy.attrs import (
    ENT_ID,
    ENT_IOB,
    ENT_KB_ID,
    ENT_TYPE,
    IDX,
    LENGTH,
    MORPH,
    POS,
    SENT_START,
    SPACY,
    TAG,
)
from spacy.tokens import Doc, Span, SpanGroup

from ..model.trf_data import merge_rows

_ENTITY = [ENT_IOB, ENT_TYPE, ENT_KB_ID, ENT_ID]
_ATTRIBUTES = [*_ENTITY, TAG, POS, MORPH, SENT_START]


def merge_tokens(doc: Doc, starts: np.ndarray) -> Doc:
    """A Doc of the same text whose tokens are runs of the old ones.

    Kept are text, character offsets, the context of nlp.pipe(as_tuples=True), user data, entities,
    span groups, categories, sentence starts, hooks and the alignment of doc._.trf_data. An entity
    or span that begins or ends inside of a new token is extended to the whole of it; where that
    would put two entities on a token, the first has it. Tags and morphology are those of a token's
    first part, its row of doc.tensor that of its last. A parse and lemmas are not kept.

    doc (Doc): The document; not changed.
    starts (ndarray): True where a new token begins, shape (n_tokens,), bool; the first always does.
    RETURNS (Doc): The new Doc.
    """
    if not len(doc) or starts.all():
        return doc
    first = np.append(0, np.flatnonzero(starts[1:]) + 1)
    last = np.append(first[1:], len(doc)) - 1
    of_token = np.repeat(np.arange(len(first)), last - first + 1)
    array = doc.to_array([IDX, LENGTH, SPACY, *_ATTRIBUTES])
    begin = array[first, 0].tolist()
    end = (array[last, 0] + array[last, 1]).tolist()
    text = doc.text
    merged = Doc(
        doc.vocab,
        words=[text[a:b] for a, b in zip(begin, end, strict=True)],
        spaces=array[last, 2].astype(bool).tolist(),
        user_data=dict(doc.user_data),
    )
    values = array[first, 3:]
    values[:, : len(_ENTITY)] = _entities(array[:, 3 : 3 + len(_ENTITY)], first)
    set_ = np.flatnonzero(values.any(axis=0))
    if len(set_):
        merged.from_array([_ATTRIBUTES[i] for i in set_], cast(Any, values[:, set_]))
    for key, group in doc.spans.items():
        spans = [_span(merged, span, of_token) for span in group]
        merged.spans[key] = SpanGroup(merged, name=group.name, attrs=dict(group.attrs), spans=spans)
    merged.cats = dict(doc.cats)
    merged.sentiment = doc.sentiment
    merged.has_unknown_spaces = doc.has_unknown_spaces
    for hooks in ("user_hooks", "user_token_hooks", "user_span_hooks"):
        setattr(merged, hooks, dict(getattr(doc, hooks)))
    if len(doc.tensor) == len(doc):
        merged.tensor = doc.tensor[last]
    if Doc.has_extension("trf_data") and doc._.trf_data is not None:
        merged._.trf_data = merge_rows(doc._.trf_data, first)
    # spaCy keeps it here to hand it back with the Doc.
    merged._context = doc._context  # type: ignore[attr-defined]
    return merged


def entity_ids(iob: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Number the entities of a Doc.

    iob, label (ndarray): ENT_IOB and ENT_TYPE of the tokens, shape (n_tokens,).
    RETURNS (ndarray): For each token the number of its entity, from 1; 0 outside of entities.
    """
    inside = label != 0  # else a "B" blocks
    return np.where(inside, np.cumsum(inside & (iob == 3)), 0)


def changes(values: np.ndarray) -> np.ndarray:
    """RETURNS (ndarray): True where a value is not that of the one before, shape (n,), bool."""
    changed = np.ones(len(values), dtype=bool)
    changed[1:] = values[1:] != values[:-1]
    return changed


def _entities(array: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The entity attributes of tokens that begin at `first`, from those of all; shape (n, 4)."""
    merged = array[first]
    if not array[:, 1].any():
        return merged
    ids = entity_ids(array[:, 0], array[:, 1])
    begins = np.flatnonzero(changes(ids) & (ids > 0))
    none = len(ids) + 1
    own = np.minimum.reduceat(np.where(ids > 0, ids, none), first)
    named = own < none
    merged[named] = array[begins[own[named] - 1]]
    merged[named, 0] = np.where(changes(own), 3, 1)[named]
    return merged


def _span(merged: Doc, span: Span, of_token: np.ndarray) -> Span:
    start = int(of_token[span.start]) if span.start < len(of_token) else len(merged)
    end = int(of_token[span.end - 1]) + 1 if span.end > span.start else start
    return Span(merged, start, end, label=span.label, kb_id=span.kb_id, span_id=span.id)
