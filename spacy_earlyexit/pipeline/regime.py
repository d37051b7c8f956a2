"""The regime of a pipeline: whose tokens it was trained on, and how long its units were. Scores and
speed-ups of its points hold for text that looks alike.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from spacy.language import Language
from spacy.tokens import Doc

from ..errors import Warnings
from ..model.pieces import Pieces

MOST = 200  # documents that are looked at
FOREIGN = 0.02  # from this share of documents with other tokens on, they are not the tokenizer's
RATIO = 1.6  # how much longer or shorter units may be without a word about it
TEXT_UNITS = "spacy-earlyexit.text_units.v1"
OWN, GOLD = "the pipeline's own", "gold"


class Sample:
    """What the first documents of some text look like."""

    def __init__(self) -> None:
        self.docs = 0
        self.foreign = 0
        self.lengths: list[np.ndarray] = []

    def add(self, nlp: Language | None, docs: Sequence[Doc], pieces: Pieces) -> None:
        """Look at more documents, as long as there are not MOST of them.

        nlp (Optional[Language]): The pipeline, whose tokenizer is asked.
        docs (Sequence[Doc]): Docs as they come to the transformer.
        pieces (Pieces): Theirs.
        """
        if self.docs >= MOST:
            return
        self.docs += len(docs)
        if nlp is not None and not any(nlp.get_pipe_meta(n).retokenizes for n in nlp.pipe_names):
            # not make_doc, which refuses long texts
            self.foreign += sum(_words(nlp.tokenizer(doc.text)) != _words(doc) for doc in docs)
        self.lengths.append(np.diff(pieces.word_starts))

    def describe(self) -> dict[str, Any]:
        """RETURNS (Dict[str, Any]): tokens (OWN or GOLD); unit_length, the words of the unit that
        the median word is in.
        """
        lengths = np.concatenate([*self.lengths, np.zeros(0, dtype=int)])
        of_words = np.repeat(lengths, lengths)
        return {
            "tokens": GOLD if self.foreign > FOREIGN * self.docs else OWN,
            "unit_length": float(np.median(of_words)) if len(of_words) else 0.0,
        }


def is_regime(value: Any) -> bool:
    """RETURNS (bool): Whether it is something that Sample.describe returns."""
    return (
        isinstance(value, dict)
        and value.keys() == {"tokens", "unit_length"}
        and value["tokens"] in (OWN, GOLD)
        and isinstance(value["unit_length"], float)
        and value["unit_length"] >= 0
    )


def _words(doc: Doc) -> list[int]:
    return [token.orth for token in doc if not token.is_space]


def warn_of_regime(
    name: str,
    trained: dict[str, Any],
    here: dict[str, Any],
    source: str,
    *,
    cuts: bool,
    unknown_spaces: bool,
) -> None:
    """Say where text does not look like that of training.

    name (str): The transformer's.
    trained, here (Dict[str, Any]): What Sample.describe says of training and of the text.
    source (str): Where the text comes from.
    cuts (bool): Whether the transformer cuts any text alike, with text_units.
    unknown_spaces (bool): Whether Docs do not say where there are spaces.
    """
    if trained["tokens"] != here["tokens"]:
        raw = Warnings.W012 if unknown_spaces else Warnings.W011
        text = Warnings.W009 if trained["tokens"] == GOLD else raw
        warnings.warn(text.format(name=name, source=source), stacklevel=4)
    lengths = here["unit_length"], trained["unit_length"]
    if min(lengths) and max(lengths) > RATIO * min(lengths):
        given = {"source": source, "here": lengths[0], "trained": lengths[1]}
        mend = (
            "" if cuts else f", or train with {TEXT_UNITS} in [components.{name}.model.get_spans]"
        )
        warnings.warn(Warnings.W010.format(name=name, mend=mend, **given), stacklevel=4)
