"""Units of raw text: a span getter that needs no component in front.

A unit is encoded as a whole. Of a whole document, attention would see much that no word needs, and
a sentence alone lacks what stands around it; so neighbouring sentences are joined up to a length.
Where sentences end is taken from the Doc if a component has set it. Else a rule finds it: behind
sentence-final punctuation, if what follows is not in lower case, but not behind an initial or a
short number; and at blank lines. A cut in the wrong place costs a word some context, but no entity:
components decode over whole Docs.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from spacy.attrs import (
    IS_DIGIT,
    IS_LOWER,
    IS_PUNCT,
    IS_SPACE,
    LENGTH,
    ORTH,
    PREFIX,
    SENT_START,
    SPACY,
)
from spacy.tokens import Doc, Span

from ..errors import Errors

# What a token is for the rule.
_WORD, _FINAL, _CLOSER, _PAUSE, _DASH, _LINE, _BLANK = range(7)
_CLOSERS = frozenset("\"'”’»)]}」』】）〉》*_")
_PAUSES = frozenset([",", ";", ":", "，", "、", "；", "：", "|", "•"])  # noqa: RUF001
_DASHES = frozenset(["-", "–", "—", "--"])  # noqa: RUF001
_FINALS = frozenset(".!?…。！？．｡؟۔।॥‼⁇⁈⁉")  # noqa: RUF001


class TextUnits:
    """Cuts Docs into units, see make_text_units.

    length (int): Tokens a unit is filled up to.
    longest (int): Tokens of the longest unit.
    """

    def __init__(self, length: int, longest: int):
        self.length = length
        self.longest = longest

    def __call__(self, docs: Sequence[Doc]) -> list[list[Span]]:
        """RETURNS (List[List[Span]]): The units of each Doc, which cover all of its tokens."""
        return [
            [doc[start:end] for start, end in self.bounds(doc)] if len(doc) else [] for doc in docs
        ]

    def bounds(self, doc: Doc) -> list[tuple[int, int]]:
        """RETURNS (List[Tuple[int, int]]): First and last-plus-one token of each unit."""
        if len(doc) <= self.length:
            return [(0, len(doc))]
        starts, pauses = find_starts(doc)
        units: list[tuple[int, int]] = []
        begin = 0
        for first, end in pairwise([*starts.tolist(), len(doc)]):
            if end - begin <= self.length:
                continue  # there is room for this sentence, too
            if first > begin:
                units.append((begin, first))
            begin = first
            if end - first > self.longest:
                *cut, (begin, _) = self._cut(first, end, pauses)
                units += cut
        if begin < len(doc):
            units.append((begin, len(doc)))
        return units

    def _cut(self, first: int, end: int, pauses: np.ndarray) -> list[tuple[int, int]]:
        """Cut a sentence that is too long where it costs the least.

        pauses (ndarray): How good it is to cut in front of each token, shape (n_tokens,).
        """
        units = []
        while end - first > self.longest:
            half = self.longest // 2
            place = _last_best(pauses, first + half, first + self.longest)
            if not pauses[place]:  # a run of capitals, which may begin earlier
                place = _last_best(pauses, first + 1, first + self.longest)
            units.append((first, place))
            first = place
        return [*units, (first, end)]


def _last_best(pauses: np.ndarray, low: int, high: int) -> int:
    """RETURNS (int): Of the best places between two, both of them included, the last one."""
    return high - int(pauses[low : high + 1][::-1].argmax())


def make_text_units(length: int = 32, longest: int = 128) -> TextUnits:
    """A span getter that cuts a Doc into units of neighbouring sentences, at `doc.sents` if they
    are set, else where a rule finds ends of sentences.

    length (int): Sentences are joined as long as a unit has no more tokens than this.
    longest (int): A sentence with more tokens is cut: at the end of a line, at a comma or the like,
        else at white space that no name goes across, as far as capitals and numbers tell.
    RETURNS (TextUnits): The span getter.
    RAISES (ValueError): If one is no whole number, length below 1 or longest below length.
    """
    for setting, value in (("length", length), ("longest", longest)):
        least = 1 if setting == "length" else max(length, 2)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            expected = f"a whole number, at least {least}"
            raise ValueError(Errors.E018.format(setting=setting, expected=expected, value=value))
    return TextUnits(length, longest)


def find_starts(doc: Doc) -> tuple[np.ndarray, np.ndarray]:
    """Where sentences begin, and where a long one may be cut.

    doc (Doc): The document, with a token at least.
    RETURNS (Tuple[ndarray, ndarray]): The first tokens of the sentences, shape (n_sentences,); how
        good it is to cut in front of each token, shape (n_tokens,): 3 at the end of a line, 2
        behind a pause, 1 where no name can go on, 0 elsewhere.
    """
    flags = [SPACY, IS_SPACE, IS_PUNCT, IS_LOWER, IS_DIGIT]
    array = doc.to_array([ORTH, SENT_START, LENGTH, PREFIX, *flags])
    spaced, space, punct, lower, digit = array[:, 4:].astype(bool).T
    capital = _capital(doc, array[:, 3])
    kinds = _kinds(doc, array[:, 0], space | punct)
    gap = np.append(True, spaced[:-1] | space[:-1])  # white space in front
    kinds[(kinds == _CLOSER) & gap] = _WORD  # a quote that opens, a bullet
    # "J. Bach", "3. Oktober", "1. First": more often no end than one
    short = (capital & (array[:, 2] == 1)) | (digit & (array[:, 2] <= 2))
    glued = np.append(False, short[:-1] & ~spaced[:-1])
    kinds[(array[:, 0] == doc.vocab.strings["."]) & glued] = _WORD
    # what stands in front of each token, white space aside
    before = np.maximum.accumulate(np.where(space, 0, np.arange(len(kinds))))
    before = np.append(0, before[:-1])
    begins = ~space & (kinds == _WORD)
    behind_line = np.append(False, kinds[:-1] >= _LINE)
    behind_pause = (kinds[before] == _PAUSE) | ((kinds[before] == _DASH) & gap)
    no_name = gap & ~((capital | digit) & capital[before])
    pauses = np.select([behind_line, behind_pause & begins, no_name & begins], [3, 2, 1], 0)
    # The sentences that are set, if there are some; a component may also only forbid some starts.
    given = array[:, 1].astype(np.int64)
    if (given[1:] == 1).any() or given[1:].all():
        starts = given == 1
    else:
        blank = np.append(False, kinds[:-1] == _BLANK)
        starts = blank | (_behind_final(kinds, space, before) & ~lower & begins)
        starts &= given != -1
    starts[0] = True
    return np.flatnonzero(starts), pauses


def _capital(doc: Doc, prefix: np.ndarray) -> np.ndarray:
    """Whether a token begins with a capital letter, shape (n_tokens,), bool.

    prefix (ndarray): The key of each token's first character, shape (n_tokens,).
    """
    ids, inverse = np.unique(prefix, return_inverse=True)
    found = np.asarray([doc.vocab.strings[int(i)].isupper() for i in ids], dtype=bool)
    return found[inverse]


def _behind_final(kinds: np.ndarray, space: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Whether sentence-final punctuation stands in front of a token, with closing quotes and
    brackets between them, perhaps, shape (n_tokens,), bool.
    """
    at = np.arange(len(kinds))
    last = np.maximum.accumulate(np.where((kinds == _CLOSER) | space, 0, at))
    found: np.ndarray = kinds[last[before]] == _FINAL
    found[0] = False
    return found


def _kinds(doc: Doc, orth: np.ndarray, special: np.ndarray) -> np.ndarray:
    """What each token is for the rule, shape (n_tokens,). Only different tokens are looked at, and
    of them only punctuation and white space.
    """
    kinds = np.zeros(len(orth), dtype=np.int8)
    ids, inverse = np.unique(orth[special], return_inverse=True)
    found = [_kind(doc.vocab.strings[int(i)]) for i in ids]
    kinds[special] = np.asarray(found, dtype=np.int8)[inverse] if found else 0
    return kinds


def _kind(text: str) -> int:
    if text.isspace():
        lines = len(text.splitlines()) if text.endswith(("\n", "\r")) else text.count("\n")
        return _WORD if not lines else _BLANK if lines > 1 else _LINE
    if text in _PAUSES:
        return _PAUSE
    if text in _DASHES:
        return _DASH
    if text[-1] in _FINALS:
        return _FINAL
    return _CLOSER if text[-1] in _CLOSERS else _WORD
