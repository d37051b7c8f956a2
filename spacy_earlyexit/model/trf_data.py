"""The rows of a batch in the form that spacy-transformers' listeners take, and their gradient back.

A listener reads doc._.trf_data: the rows of the Doc's units, padded to the longest of them, and for
each token where its pieces lie. Here that is a plan of indices for a whole batch of Docs, made from
the packed pieces, so that nothing is done per word in Python.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from spacy.tokens import Doc
from spacy_transformers.data_classes import TransformerData, WordpieceBatch
from thinc.api import get_array_module
from thinc.types import Ragged
from transformers.modeling_outputs import BaseModelOutput

from .pieces import Pieces, ranges


class TrfDataPlan:
    """Where the rows of each Doc go.

    pieces (Pieces): The packed pieces of the Docs.
    docs (Sequence[Doc]): The Docs.
    vocab (ndarray): The text of every piece id, shape (n_ids,), of objects.
    """

    def __init__(self, pieces: Pieces, docs: Sequence[Doc], vocab: np.ndarray):
        self.ids = pieces.ids
        self.strings = vocab[pieces.ids]
        self.lengths = np.diff(pieces.unit_starts)
        # Units are in the order of their Docs, and rows in that of their units.
        self.units = np.searchsorted(pieces.unit_doc, np.arange(len(docs) + 1))
        self.rows = pieces.unit_starts[self.units]
        self.widths = np.asarray(
            [self.lengths[a:b].max(initial=0) for a, b in self._bounds(self.units)], dtype=np.int64
        )
        # The place of every row in its Doc's padded (units, width) grid.
        unit_in_doc = np.arange(pieces.n_units) - self.units[pieces.unit_doc]
        first = unit_in_doc * self.widths[pieces.unit_doc]
        in_unit = np.arange(len(pieces.ids)) - np.repeat(pieces.unit_starts[:-1], self.lengths)
        self.places = in_unit + np.repeat(first, self.lengths)

        n_tokens = np.asarray([len(doc) for doc in docs], dtype=np.int64)
        self.tokens = np.concatenate([[0], np.cumsum(n_tokens)])
        self.whole = pieces.align is not None  # spans cut as a whole
        if pieces.align is not None and pieces.token_rows is not None:
            self.token_pieces = pieces.token_rows
            self.align = self.places[pieces.align].astype(np.int32)
        else:
            self.token_pieces, rows = self._own_rows(pieces)
            self.align = self.places[rows].astype(np.int32)
        self.aligned = np.concatenate([[0], np.cumsum(self.token_pieces)])[self.tokens]

    def _own_rows(self, pieces: Pieces) -> tuple[np.ndarray, np.ndarray]:
        """RETURNS (Tuple[ndarray, ndarray]): How many pieces each token has, those of its word in
        the unit that speaks for it; and these pieces, one token behind the other.
        """
        of_words = np.flatnonzero(pieces.row_word >= 0)
        counts = np.bincount(pieces.row_word[of_words], minlength=len(pieces.word_row))
        begin = of_words[np.cumsum(counts) - counts] if len(counts) else counts
        word = np.flatnonzero(pieces.owned)
        word = word[np.lexsort((pieces.word_token[word], pieces.word_doc[word]))]
        token_pieces = np.zeros(self.tokens[-1], dtype=np.int32)
        token_pieces[self.tokens[pieces.word_doc[word]] + pieces.word_token[word]] = counts[word]
        return token_pieces, ranges(begin[word], counts[word])

    def split(self, states: Any) -> list[TransformerData]:
        """states (Floats2d): The rows of all Docs, shape (n_rows, H).

        RETURNS (List[TransformerData]): One per Doc; an empty one where nothing was encoded.
        """
        xp = get_array_module(states)
        found = []
        for i, (first, last) in enumerate(self._bounds(self.units)):
            n_units, width = last - first, int(self.widths[i])
            if n_units == 0:
                n_tokens = int(self.tokens[i + 1] - self.tokens[i])
                found.append(
                    _without_rows(n_tokens, states) if self.whole else TransformerData.empty()
                )
                continue
            rows = slice(*self.rows[i : i + 2])
            places = self.places[rows]
            hidden = xp.zeros((n_units * width, states.shape[1]), dtype=states.dtype)
            hidden[places] = states[rows]
            ids = np.zeros(n_units * width, dtype=np.int64)
            mask = np.zeros(n_units * width, dtype=np.float32)
            ids[places], mask[places] = self.ids[rows], 1.0
            lengths = self.lengths[first:last].tolist()
            ends = np.cumsum(lengths)[:-1]
            # thinc's array types have no constructor; these are what they stand for.
            wordpieces = WordpieceBatch(
                strings=[part.tolist() for part in np.split(self.strings[rows], ends)],
                input_ids=cast(Any, ids.reshape(n_units, width)),
                attention_mask=cast(Any, mask.reshape(n_units, width)),
                lengths=lengths,
                token_type_ids=None,
            )
            align = Ragged(
                cast(Any, self.align[slice(*self.aligned[i : i + 2])]),
                cast(Any, self.token_pieces[slice(*self.tokens[i : i + 2])]),
            )
            output = BaseModelOutput(last_hidden_state=hidden.reshape(n_units, width, -1))
            found.append(TransformerData(wordpieces, output, align))
        return found

    def join(self, gradients: Sequence[TransformerData]) -> Any:
        """The gradient of the rows from what a listener returns.

        gradients (Sequence[TransformerData]): One per Doc that is not empty.
        RETURNS (Floats2d): shape (n_rows, H).
        """
        answered = np.flatnonzero(np.diff(self.tokens if self.whole else self.units))
        parts = []
        for i, gradient in zip(answered.tolist(), gradients, strict=True):
            rows = slice(*self.rows[i : i + 2])
            if rows.start < rows.stop:
                hidden = gradient.model_output["last_hidden_state"]
                parts.append(hidden.reshape(-1, hidden.shape[-1])[self.places[rows]])
        return get_array_module(parts[0]).concatenate(parts)

    @staticmethod
    def _bounds(edges: np.ndarray) -> list[tuple[int, int]]:
        return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


def _without_rows(n_tokens: int, states: Any) -> TransformerData:
    """A Doc whose tokens have no pieces, for which spacy-transformers runs the special ones.

    states (Floats2d): Rows of other Docs.
    """
    if not n_tokens:
        return TransformerData.empty()
    xp = get_array_module(states)
    wordpieces = WordpieceBatch(
        strings=[[""]],
        input_ids=cast(Any, np.zeros((1, 1), dtype=np.int64)),
        attention_mask=cast(Any, np.zeros((1, 1), dtype=np.float32)),
        lengths=[1],
        token_type_ids=None,
    )
    none = cast(Any, np.zeros(0, dtype=np.int32))
    lengths = cast(Any, np.zeros(n_tokens, dtype=np.int32))
    hidden = xp.zeros((1, 1, states.shape[1]), dtype=states.dtype)
    return TransformerData(
        wordpieces, BaseModelOutput(last_hidden_state=hidden), Ragged(none, lengths)
    )


def merge_rows(data: TransformerData, first: np.ndarray) -> TransformerData:
    """The same rows for a Doc whose tokens were merged.

    data (TransformerData): Of the Doc as it was.
    first (ndarray): The first old token of each new one, shape (n_tokens,).
    RETURNS (TransformerData): Aligned with the new tokens.
    """
    lengths = np.asarray(data.align.lengths)
    if not len(lengths):  # nothing was encoded
        return data
    merged = np.add.reduceat(lengths, first, dtype=np.int32)
    return replace(data, align=Ragged(data.align.data, cast(Any, merged)))
