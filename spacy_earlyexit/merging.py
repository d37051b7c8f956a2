"""Docs with fewer, longer tokens.

A new Doc, made of arrays: spaCy's retokenizer takes two to three times as long, and leaves the span
groups of the Doc at the token indices of before.
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

from .trf_data import merge_rows

_FIRST = [TAG, POS, MORPH, SENT_START]  # a merged token has those of its first
_ENTITY = [ENT_TYPE, ENT_KB_ID, ENT_ID]


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
    first = np.flatnonzero(np.append(True, starts[1:]))
    last = np.append(first[1:], len(doc)) - 1
    of_token = np.repeat(np.arange(len(first)), last - first + 1)
    array = doc.to_array([IDX, LENGTH, SPACY, *_FIRST])
    begin = array[first, 0].tolist()
    end = (array[last, 0] + array[last, 1]).tolist()
    text = doc.text
    merged = Doc(
        doc.vocab,
        words=[text[a:b] for a, b in zip(begin, end, strict=True)],
        spaces=array[last, 2].astype(bool).tolist(),
        user_data=dict(doc.user_data),
    )
    columns = {attr: array[first, i] for i, attr in enumerate(_FIRST, start=3)}
    if doc.has_annotation("ENT_IOB"):
        columns.update(_entities(doc, first))
    columns = {attr: values for attr, values in columns.items() if values.any()}
    if columns:
        merged.from_array(list(columns), cast(Any, np.stack(list(columns.values()), axis=1)))
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


def entity_ids(doc: Doc) -> np.ndarray:
    """RETURNS (ndarray): For each token the number of its entity, from 1; 0 outside of entities."""
    iob, label = doc.to_array([ENT_IOB, ENT_TYPE]).reshape(-1, 2).T
    inside = (label != 0) & ((iob == 1) | (iob == 3))
    return np.where(inside, np.cumsum(inside & (iob == 3)), 0)


def _entities(doc: Doc, first: np.ndarray) -> dict[int, np.ndarray]:
    """Values of the entity attributes for tokens that begin at `first`."""
    array = doc.to_array([ENT_IOB, *_ENTITY])
    ids = entity_ids(doc)
    begins = np.flatnonzero(np.diff(ids, prepend=0) > 0)
    none = len(ids) + 1
    own = np.minimum.reduceat(np.where(ids > 0, ids, none), first)
    named = own < none
    source, iob = first.copy(), array[first, 0]
    source[named] = begins[own[named] - 1]
    iob[named] = np.where(np.diff(own, prepend=none) != 0, 3, 1)[named]
    return {ENT_IOB: iob, **{attr: array[source, i] for i, attr in enumerate(_ENTITY, start=1)}}


def _span(merged: Doc, span: Span, of_token: np.ndarray) -> Span:
    start = int(of_token[span.start]) if span.start < len(of_token) else len(merged)
    end = int(of_token[span.end - 1]) + 1 if span.end > span.start else start
    return Span(merged, start, end, label=span.label, kb_id=span.kb_id, span_id=span.id)
