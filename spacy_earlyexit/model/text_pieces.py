"""Whole spans to sub-word pieces, as spacy-transformers cuts them.

`pieces.encode_docs` cuts every token on its own, which is fast and lets each leave for itself. A
pipeline that was trained with spacy-transformers has seen the text of a span cut as a whole, where
a piece may lie across tokens ("don't" as "don" and "'t"), and a token may be met in several spans.
Its components get the very same pieces here, by the same alignment of characters.
"""

from collections.abc import Sequence

import numpy as np
from spacy.attrs import IDX, LENGTH
from spacy.tokens import Doc
from tokenizers import Encoding

from .pieces import Pieces, PieceTokenizer, ranges
from .units import SpanGetter, owners, unit_bounds


def encode_texts(
    docs: list[Doc], tokenizer: PieceTokenizer, get_spans: SpanGetter, max_positions: int
) -> Pieces:
    """Spans of documents to packed pieces. What is longer than the encoder loses its end.

    A piece that lies across several tokens is the row of the first of them; `Pieces.align` has it
    for all. A token without a row of its own is no word.

    docs (List[Doc]): The documents.
    tokenizer (PieceTokenizer): Its whole texts are cut into pieces.
    get_spans (SpanGetter): Proposes the units.
    max_positions (int): The most rows of one unit.
    RETURNS (Pieces): The packed pieces; spans without pieces of a token are left out.
    """
    span_doc, bounds = unit_bounds(docs, get_spans)
    chars, doc_tokens = _token_chars(docs)
    texts = [
        docs[d][start:end].text for d, (start, end) in zip(span_doc, bounds.tolist(), strict=True)
    ]
    # One by one: encode_batch starts threads, which do not survive a fork.
    ids, offsets, lengths = _pieces(list(map(tokenizer.whole.encode, texts)), max_positions)
    n_tokens = bounds[:, 1] - bounds[:, 0]
    token = ranges(doc_tokens[span_doc] + bounds[:, 0], n_tokens)  # of each place in a span
    sizes = np.asarray([len(text) for text in texts], dtype=np.int64)
    low, touched = _touch(chars[token], n_tokens, offsets, lengths, sizes)

    row_span = np.repeat(np.arange(len(lengths)), lengths)
    kept = np.zeros(len(lengths), dtype=bool)
    kept[row_span[touched > 0]] = True
    rows, units = kept[row_span], np.flatnonzero(kept)
    ids, low, touched, row_span = ids[rows], low[rows], touched[rows], row_span[rows]
    lengths, span_doc, bounds = lengths[units], span_doc[units], bounds[units]

    own = np.flatnonzero(touched)
    words, word_row, of_row = np.unique(low[own], return_index=True, return_inverse=True)
    row_word = np.full(len(ids), -1, dtype=np.int64)
    row_word[own] = of_row
    word_unit = np.searchsorted(units, row_span[own[word_row]])
    word_doc = span_doc[word_unit]
    word_token = token[words] - doc_tokens[word_doc]
    n_words = np.bincount(word_unit, minlength=len(units))

    # Every row of every token, in the order of the tokens.
    of_token, row = token[ranges(low[own], touched[own])], np.repeat(own, touched[own])
    return Pieces(
        ids=ids,
        unit_starts=np.concatenate([[0], np.cumsum(lengths)]),
        row_word=row_word,
        word_row=own[word_row],
        word_starts=np.concatenate([[0], np.cumsum(n_words)]),
        word_doc=word_doc,
        word_token=word_token,
        word_chars=chars[token[words]].astype(np.int32),
        owned=owners(word_unit, word_doc, word_token, bounds),
        unit_doc=span_doc,
        unit_bounds=bounds,
        align=row[np.lexsort((row, of_token))],
        token_rows=np.bincount(of_token, minlength=int(doc_tokens[-1])).astype(np.int32),
    )


def _touch(
    chars: np.ndarray,
    n_tokens: np.ndarray,
    offsets: np.ndarray,
    lengths: np.ndarray,
    sizes: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens each piece touches.

    chars (ndarray): Characters in their Doc of the tokens of all spans, shape (n_places, 2).
    n_tokens, lengths, sizes (ndarray): Of each span its tokens, pieces and characters, (n_spans,).
    offsets (ndarray): Characters in their span of all pieces, shape (n_rows, 2).
    RETURNS (Tuple[ndarray, ndarray]): The first place that a piece touches, and how many, shape
        (n_rows,).
    """
    # One axis of characters for all spans, one behind the other.
    base = np.cumsum(sizes + 2) - (sizes + 2)
    span = np.repeat(np.arange(len(n_tokens)), n_tokens)
    first = np.repeat((np.cumsum(n_tokens) - n_tokens)[n_tokens > 0], n_tokens[n_tokens > 0])
    starts = chars[:, 0] - chars[first, 0] + base[span]
    # The space behind a token is its own, as spacy-transformers has it.
    ends = starts + (chars[:, 1] - chars[:, 0]) + 1
    ends[:-1] = np.minimum(ends[:-1], np.where(span[1:] == span[:-1], starts[1:], ends[:-1]))
    begin, end = (offsets + np.repeat(base, lengths)[:, None]).T
    low = np.searchsorted(ends, begin, side="right")
    high = np.searchsorted(starts, end, side="left")
    return low, np.where(begin < end, np.maximum(high - low, 0), 0)


def _token_chars(docs: Sequence[Doc]) -> tuple[np.ndarray, np.ndarray]:
    """RETURNS (Tuple[ndarray, ndarray]): First and last-plus-one character of every token in its
    Doc, shape (n_tokens, 2); where each Doc's tokens begin, and their number, shape (n_docs + 1,).
    """
    empty = np.zeros((0, 2), dtype=np.uint64)
    array = np.concatenate([empty, *(doc.to_array([IDX, LENGTH]) for doc in docs if len(doc))])
    chars = array.astype(np.int64)
    chars[:, 1] += chars[:, 0]
    return chars, np.concatenate([[0], np.cumsum([len(doc) for doc in docs])]).astype(np.int64)


def _pieces(encodings: Sequence[Encoding], most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """RETURNS (Tuple[ndarray, ndarray, ndarray]): Ids of all pieces, shape (n_rows,); their first
    and last-plus-one characters in their text, shape (n_rows, 2); the pieces of each text.
    """
    nothing = np.zeros(0, dtype=np.int64)
    ids = [np.asarray(own.ids[:most], dtype=np.int64) for own in encodings]
    chars = [np.asarray(own.offsets[:most], dtype=np.int64).reshape(-1, 2) for own in encodings]
    return (
        np.concatenate([nothing, *ids]),
        np.concatenate([nothing.reshape(-1, 2), *chars]),
        np.asarray([len(own) for own in ids], dtype=np.int64),
    )
