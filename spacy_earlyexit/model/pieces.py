"""Words to sub-word pieces and back.

Every word is encoded on its own, so that the alignment is a list of lengths. The new ones of a
batch go through the tokenizer in a single call; their pieces are kept, as spaCy's tokenizer keeps
its tokens, for most of the words of a text have been seen before.
"""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import srsly
from spacy.attrs import IDX, IS_SPACE, LENGTH, ORTH, SPACY
from spacy.tokens import Doc
from thinc.shims.shim import Shim
from tokenizers import Regex, Tokenizer, normalizers

from ..errors import Errors
from .units import SpanGetter, cut_windows, owners, unit_bounds

# Stands for "whitespace comes before" through the tokenizer's normaliser, which would turn a
# literal U+2581 into a space and lose it. A private-use character: real text does not hold it.
_SPACE_BEFORE = "\ue000"
# Words whose pieces are kept, before all are forgotten; a few megabytes.
_MOST_KNOWN = 2**15
# Makes another key of a word that has whitespace in front.
_SPACED = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class KnownWords:
    """The pieces of words that have been through the tokenizer.

    keys (ndarray): The words' keys in ascending order, shape (n_words,), uint64.
    places (ndarray): Where each key's word stands in what follows, shape (n_words,).
    ids (ndarray): The pieces of all words, one behind the other, shape (n_pieces,).
    starts (ndarray): Where each word's pieces begin, shape (n_words,).
    lengths, heads (ndarray): As `PieceTokenizer.encode` gives them, shape (n_words,).
    """

    keys: np.ndarray
    places: np.ndarray
    ids: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    heads: np.ndarray

    @classmethod
    def none(cls) -> "KnownWords":
        nothing = np.zeros(0, dtype=np.int64)
        return cls(nothing.astype(np.uint64), nothing, nothing, nothing, nothing, nothing)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """keys (ndarray): Keys, shape (n,). RETURNS (ndarray): Their words, -1 for unknown ones."""
        if not len(self.keys):
            return np.full(len(keys), -1)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, self.places[at], -1)

    def plus(
        self, keys: np.ndarray, ids: np.ndarray, lengths: np.ndarray, heads: np.ndarray
    ) -> "KnownWords":
        """With more words. keys (ndarray): In ascending order, none of them known. The others: what
        `PieceTokenizer.encode` gave for these words.
        """
        at = np.searchsorted(self.keys, keys)
        new = np.arange(len(self.keys), len(self.keys) + len(keys))
        return KnownWords(
            np.insert(self.keys, at, keys),
            np.insert(self.places, at, new),
            np.concatenate([self.ids, ids]),
            np.concatenate([self.starts, len(self.ids) + np.cumsum(lengths) - lengths]),
            np.concatenate([self.lengths, lengths]),
            np.concatenate([self.heads, heads]),
        )


class PieceTokenizer:
    """A Hugging Face fast tokenizer, used on single words.

    Tokenizers that mark word starts (SentencePiece's U+2581, byte-level BPE's space) would mark
    every word that is encoded alone. Here a word gets the mark only if whitespace comes before it,
    or the start of the text where the tokenizer marks that, too (byte-level BPE mostly does not);
    and never if it begins with a character of Chinese or Japanese: there the mark would be a piece
    of its own in front of each.
    """

    def __init__(self, tokenizer_json: str, special: dict[str, int]):
        """tokenizer_json (str): The content of a tokenizer.json.
        special (Dict[str, int]): Ids of the pieces "start", "end" and "unk".
        """
        self.json = tokenizer_json
        self.special = special
        spec = json.loads(tokenizer_json)
        self.prefix = ""
        self.marks_start = True
        mark = None
        for part in _parts(spec.get("pre_tokenizer"), "pretokenizers"):
            if part["type"] == "Metaspace":
                old = "always" if part.pop("add_prefix_space", True) else "never"
                self.marks_start = part.get("prepend_scheme", old) != "never"
                part["prepend_scheme"] = "never"
                self.prefix, mark = _SPACE_BEFORE, part["replacement"]
            elif part["type"] == "ByteLevel":
                self.marks_start = part["add_prefix_space"]
                part["add_prefix_space"] = False
                self.prefix, mark = " ", "\u0120"
        tokenizer = Tokenizer.from_str(json.dumps(spec))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if self.prefix == _SPACE_BEFORE:
            before = [tokenizer.normalizer] if tokenizer.normalizer else []
            # Spaces inside a word ("1 000", or made by the normaliser) mark what follows, too.
            strip = normalizers.Replace(Regex(r"\s+$"), "")
            put_mark = normalizers.Replace(Regex(rf"[\s{_SPACE_BEFORE}]+"), mark)
            tokenizer.normalizer = normalizers.Sequence([*before, strip, put_mark])
        # Text that happens to spell a special piece ("</s>") is text.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self._known = KnownWords.none()
        self._vocab: np.ndarray | None = None
        self._whole: Tokenizer | None = None
        mark_id = tokenizer.token_to_id(mark) if mark else None
        self._mark_id = -1 if mark_id is None else mark_id
        self._reserved = np.asarray(
            sorted(i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special),
            dtype=np.int64,
        )

    @classmethod
    def from_transformers(cls, tokenizer: Any, name: str) -> "PieceTokenizer":
        """tokenizer (PreTrainedTokenizerFast): As loaded by AutoTokenizer.
        name (str): The encoder's name, for the message.
        RAISES (ValueError): If there is no fast version of the tokenizer.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(Errors.E003.format(name=name))
        start = tokenizer.cls_token_id
        end = tokenizer.sep_token_id
        special = {
            "start": tokenizer.bos_token_id if start is None else start,
            "end": tokenizer.eos_token_id if end is None else end,
            "unk": tokenizer.unk_token_id,
        }
        return cls(tokenizer.backend_tokenizer.to_str(), special)

    def encode(self, words: list[str], spaced: list[bool]) -> tuple[np.ndarray, ...]:
        """Encode words, each on its own, in one call.

        words (List[str]): The words.
        spaced (List[bool]): Whether each gets the mark of a word behind whitespace.
        RETURNS (Tuple[ndarray, ndarray, ndarray]): All pieces in a row, shape (n_pieces,); pieces
            per word, shape (n_words,), at least 1; and the position inside each word of the piece
            whose vector stands for the word, shape (n_words,): its first that is not a bare mark.
        """
        marked = [
            self.prefix + w if s and not _is_cjk(w) else w
            for w, s in zip(words, spaced, strict=True)
        ]
        ids, word = self._cut_words(marked)
        ids[np.isin(ids, self._reserved)] = self.special["unk"]
        # Words that the tokenizer drops (zero-width characters), or of which it leaves nothing
        # but the mark, become one unknown piece.
        real = np.flatnonzero(ids != self._mark_id)
        has_real = np.zeros(len(words), dtype=bool)
        has_real[word[real]] = True
        keep = has_real[word]
        missing = np.flatnonzero(~has_real)
        word = np.concatenate([word[keep], missing])
        ids = np.concatenate([ids[keep], np.full(len(missing), self.special["unk"])])
        order = np.argsort(word, kind="stable")
        word, ids = word[order], ids[order]
        lengths = np.bincount(word, minlength=len(words))
        starts = np.cumsum(lengths) - lengths
        head = np.zeros(len(words), dtype=np.int64)
        real = np.flatnonzero(ids != self._mark_id)[::-1]
        head[word[real]] = real - starts[word[real]]  # backwards: the first one stays
        return ids, lengths, head

    def look_up(
        self, orth: np.ndarray, spaced: np.ndarray, text_of: Callable[[int], str]
    ) -> tuple[KnownWords, np.ndarray]:
        """The pieces of words; what is not known of them is encoded, and kept.

        orth (ndarray): The hash of each word's text, shape (n_words,), uint64.
        spaced (ndarray): Whether each gets the mark of a word behind whitespace, shape (n_words,).
        text_of (Callable[[int], str]): Gives a word's text.
        RETURNS (Tuple[KnownWords, ndarray]): Known words, and where these are among them, shape
            (n_words,).
        """
        keys = np.where(spaced, orth ^ _SPACED, orth)
        known = self._known  # read and replaced as a whole: there may be other threads
        words = known.find(keys)
        new = np.flatnonzero(words < 0)
        if len(new) and len(known.keys) > _MOST_KNOWN:
            known, new = KnownWords.none(), np.arange(len(keys))
        if len(new):
            new_keys, first = np.unique(keys[new], return_index=True)
            texts = [text_of(word) for word in new[first].tolist()]
            known = known.plus(new_keys, *self.encode(texts, spaced[new[first]].tolist()))
            self._known, words = known, known.find(keys)
        return known, words

    def forget(self) -> None:
        """Forget the pieces that are kept, as in a new process."""
        self._known = KnownWords.none()

    def leaves_nothing(self, words: list[str]) -> np.ndarray:
        """Words without sub-words, of which `encode` makes one unknown piece.

        words (List[str]): The words.
        RETURNS (ndarray): True where the tokenizer drops the word (zero-width characters) or keeps
            a bare mark, shape (n_words,), bool.
        """
        marked = [word if _is_cjk(word) else self.prefix + word for word in words]
        ids, word = self._cut_words(marked)
        nothing = np.ones(len(words), dtype=bool)
        nothing[word[ids != self._mark_id]] = False
        return nothing

    def _cut_words(self, marked: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """marked (List[str]): Words as the tokenizer shall see them.
        RETURNS (Tuple[ndarray, ndarray]): Pieces in a row, and the word of each, shape (n_pieces,).
        """
        encoding = self._tokenizer.encode(marked, is_pretokenized=True, add_special_tokens=False)
        word = np.asarray(encoding.word_ids, dtype=np.int64)
        return np.asarray(encoding.ids, dtype=np.int64), word

    @property
    def vocab(self) -> np.ndarray:
        """RETURNS (ndarray): The text of every piece, shape (n_ids,), of objects."""
        if self._vocab is None:
            ids = self._tokenizer.get_vocab(with_added_tokens=True)
            self._vocab = np.full(max(ids.values(), default=-1) + 1, "", dtype=object)
            self._vocab[list(ids.values())] = list(ids)
        return self._vocab

    @property
    def whole(self) -> Tokenizer:
        """RETURNS (Tokenizer): For whole texts, as it came."""
        if self._whole is None:
            self._whole = Tokenizer.from_str(self.json)
            self._whole.no_truncation()
            self._whole.no_padding()
        return self._whole

    def to_dict(self) -> dict[str, Any]:
        return {"tokenizer": self.json, "special": self.special}


def _is_cjk(word: str) -> bool:
    """Whether a word begins with an ideograph, kana, or their punctuation or full-width forms."""
    return (
        "\u2e80" <= word < "\ua000"
        or "\uf900" <= word < "\ufb00"
        or "\ufe30" <= word < "\ufe50"
        or "\uff00" <= word < "\uffa0"
        or "\U00020000" <= word < "\U00040000"
    )


def _parts(part: dict[str, Any] | None, key: str) -> Iterator[dict[str, Any]]:
    """The steps of a (possibly nested) sequence in a tokenizer.json."""
    if part is None:
        return
    if part["type"] == "Sequence":
        for child in part[key]:
            yield from _parts(child, key)
    else:
        yield part


@dataclass
class Pieces:
    """The pieces of many units (spans), packed one behind the other without padding.

    ```
    rows    | <s> ▁Em pire ▁State </s> | <s> ▁ESB </s> | …     ids (n_rows,)
    unit    |  0   0   0     0     0   |  1   1    1   |       unit_starts (n_units + 1,)
    word    | -1   0   0     1    -1   | -1   2   -1   |       row_word (n_rows,)
    words   |  word_row = 1, 3         |  word_row = 6 |       word_starts (n_units + 1,)
    ```

    word_doc, word_token (ndarray): Document and token index of each word, shape (n_words,).
    word_chars (ndarray): Its first and last-plus-one character there, shape (n_words, 2), int32.
    owned (ndarray): False where the word is only context in this unit, shape (n_words,).
    unit_doc, unit_bounds (ndarray): Document of each unit, and its first and last-plus-one token.
    align (Optional[ndarray]): Where rows belong to several tokens, or tokens to rows of several
        units: the rows of each token, one token behind the other, shape (n,).
    token_rows (Optional[ndarray]): With it, how many rows each token has, shape (n_tokens,).
    """

    ids: np.ndarray
    unit_starts: np.ndarray
    row_word: np.ndarray
    word_row: np.ndarray
    word_starts: np.ndarray
    word_doc: np.ndarray
    word_token: np.ndarray
    word_chars: np.ndarray
    owned: np.ndarray
    unit_doc: np.ndarray
    unit_bounds: np.ndarray
    align: np.ndarray | None = None
    token_rows: np.ndarray | None = None

    @property
    def n_units(self) -> int:
        return len(self.unit_doc)

    def batches(self, max_rows: int) -> Iterator[np.ndarray]:
        """Cut the units into batches by a budget of rows, shortest units first. They are of about
        one size: a small last one would have nearly empty products in its deep layers.

        max_rows (int): The most rows of one batch (a single longer unit makes its own batch).
        YIELDS (ndarray): Indices of the units of a batch, in order of length.
        """
        lengths = np.diff(self.unit_starts)
        order = np.argsort(lengths, kind="stable")
        ends = np.cumsum(lengths[order])
        share = ends[-1] / -(-ends[-1] // max_rows) if len(ends) else 0.0
        start = 0
        while start < len(order):
            done = ends[start - 1] if start else 0
            most = int(np.searchsorted(ends, done + max_rows, side="right"))
            enough = int(np.searchsorted(ends, done + share)) + 1
            end = max(min(most, enough), start + 1)
            yield order[start:end]
            start = end


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start, start + 1, … of every range, one behind the other; shape (sum of lengths,)."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - lengths), lengths)


def encode_docs(
    docs: list[Doc], tokenizer: PieceTokenizer, get_spans: SpanGetter, max_positions: int
) -> Pieces:
    """Words of documents to packed pieces.

    Whitespace tokens are left out. A unit longer than the encoder is cut into overlapping windows;
    a single word longer than that loses its last pieces.

    docs (List[Doc]): The documents.
    tokenizer (PieceTokenizer): Cuts words into pieces.
    get_spans (SpanGetter): Proposes the units.
    max_positions (int): The most rows of one unit, with its two special pieces.
    RETURNS (Pieces): The packed pieces; units without words are left out.
    """
    packed = _words_of(docs, tokenizer.marks_start)
    capacity = max_positions - 2

    def text_of(word: int) -> str:  # Docs of a batch can come from different vocabs
        return docs[packed.doc[word]].vocab.strings[int(packed.orth[word])]

    known, known_word = tokenizer.look_up(packed.orth, packed.spaced, text_of)
    lengths_of = np.minimum(known.lengths[known_word], capacity)

    span_doc, span_bounds = unit_bounds(docs, get_spans)
    bounds, unit_span = _cut(packed.inside(span_doc, span_bounds), lengths_of, capacity)
    unit_doc = span_doc[unit_span]
    unit_words = bounds[:, 1] - bounds[:, 0]
    word = ranges(bounds[:, 0], unit_words)  # packed index of every occurrence
    word_unit = np.repeat(np.arange(len(bounds)), unit_words)
    word_doc = unit_doc[word_unit]
    word_token = packed.token[word]
    token_bounds = packed.token[bounds[:, :2] - [0, 1]] + [0, 1]
    owned = (word >= bounds[word_unit, 2]) & (word < bounds[word_unit, 3])
    if (np.bincount(word[owned]) > 1).any():  # the span getter's own spans overlap
        chosen = np.flatnonzero(owned)
        speaks = owners(word_unit[chosen], word_doc[chosen], word_token[chosen], token_bounds)
        owned[chosen] = speaks

    lengths = lengths_of[word]
    unit_rows = np.bincount(word_unit, lengths, len(bounds)).astype(np.int64) + 2
    unit_starts = np.concatenate([[0], np.cumsum(unit_rows)])
    # Rows of a word lie behind the rows of the words before it, plus the start pieces so far.
    word_begin = np.cumsum(lengths) - lengths + 2 * word_unit + 1
    rows = ranges(word_begin, lengths)
    ids = np.full(int(unit_starts[-1]), tokenizer.special["end"], dtype=np.int64)
    ids[unit_starts[:-1]] = tokenizer.special["start"]
    ids[rows] = known.ids[ranges(known.starts[known_word[word]], lengths)]
    row_word = np.full(len(ids), -1, dtype=np.int64)
    row_word[rows] = np.repeat(np.arange(len(word)), lengths)
    return Pieces(
        ids=ids,
        unit_starts=unit_starts,
        row_word=row_word,
        word_row=word_begin + np.minimum(known.heads[known_word[word]], lengths - 1),
        word_starts=np.concatenate([[0], np.cumsum(unit_words)]),
        word_doc=word_doc,
        word_token=word_token,
        word_chars=packed.chars[word],
        owned=owned,
        unit_doc=unit_doc,
        unit_bounds=token_bounds,
    )


@dataclass
class _Words:
    """The tokens of documents that are not whitespace, in order.

    doc, token (ndarray): Document, and token in it, shape (n_words,).
    chars (ndarray): First and last-plus-one character, shape (n_words, 2), int32.
    orth (ndarray): Key of the text, shape (n_words,), uint64.
    spaced (ndarray): Whether whitespace comes before, shape (n_words,), bool.
    """

    doc: np.ndarray
    token: np.ndarray
    chars: np.ndarray
    orth: np.ndarray
    spaced: np.ndarray

    def inside(self, doc: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        """doc, bounds (ndarray): Spans of tokens, see unit_bounds.
        RETURNS (ndarray): First and last-plus-one word of each, shape (n_spans, 2).
        """
        # Document and token as one number, which grows from word to word.
        step = max(self.token.max(initial=0), bounds.max(initial=0)) + 1
        return np.searchsorted(self.doc * step + self.token, doc[:, None] * step + bounds)


def _words_of(docs: list[Doc], spaced_start: bool) -> _Words:
    """spaced_start (bool): Whether the start of a text counts as whitespace."""
    attributes = [ORTH, SPACY, IS_SPACE, IDX, LENGTH]
    empty = np.zeros((0, len(attributes)), dtype=np.uint64)
    array = np.concatenate([empty, *(doc.to_array(attributes) for doc in docs if len(doc))])
    lengths = np.asarray([len(doc) for doc in docs], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    is_space = array[:, 2].astype(bool)
    spaced = np.append(True, array[:-1, 1].astype(bool) | is_space[:-1])[: len(array)]
    spaced[starts[lengths > 0]] = spaced_start
    words = np.flatnonzero(~is_space)
    doc = np.repeat(np.arange(len(docs)), lengths)[words]
    chars = array[words, 3:].astype(np.int32)
    chars[:, 1] += chars[:, 0]
    return _Words(doc, words - starts[doc], chars, array[words, 0], spaced[words])


def _cut(spans: np.ndarray, lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Spans as units: as they are, or as windows where they are too long; without words, none.

    spans (ndarray): First and last-plus-one word of each, shape (n_spans, 2).
    lengths (ndarray): Pieces per word, shape (n_words,).
    capacity (int): The most pieces of a unit.
    RETURNS (Tuple[ndarray, ndarray]): First and last-plus-one word of each unit, and the same of
        what it owns, shape (n_units, 4); and its span, shape (n_units,).
    """
    ends = np.concatenate([[0], np.cumsum(lengths)])
    too_long = np.diff(ends[spans])[:, 0] > capacity
    whole = np.flatnonzero((spans[:, 0] < spans[:, 1]) & ~too_long)
    units, of_span = [np.tile(spans[whole], 2)], [whole]
    for i in np.flatnonzero(too_long):
        start, end = spans[i]
        units.append(start + np.asarray(cut_windows(lengths[start:end], capacity)))
        of_span.append(np.repeat(i, len(units[-1])))
    span = np.concatenate(of_span)
    order = np.argsort(span, kind="stable")
    return np.concatenate(units)[order], span[order]


class TokenizerShim(Shim):
    """Keeps the tokenizer inside the thinc model, so that it is saved with the weights."""

    def __call__(self, inputs: Any, is_train: bool) -> Any:
        raise TypeError("TokenizerShim holds a tokenizer and is not called")

    def finish_update(self, optimizer: Any) -> None:
        pass  # nothing to learn

    def to_device(self, device_type: str, device_id: int) -> None:
        pass  # lives on the host

    def to_bytes(self) -> bytes:
        return srsly.msgpack_dumps(self._model.to_dict() if self._model else None)

    def from_bytes(self, bytes_data: bytes) -> "TokenizerShim":
        data = srsly.msgpack_loads(bytes_data)
        self._model = PieceTokenizer(data["tokenizer"], data["special"]) if data else None
        return self

    def copy(self) -> "TokenizerShim":
        return copy.copy(self)
