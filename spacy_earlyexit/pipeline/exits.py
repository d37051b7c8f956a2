"""What the transformer leaves beside a Doc for the components behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from spacy.tokens import Doc


@dataclass
class DocExits:
    """Scores of a Doc's words at their exits.

    n_tokens (int): Tokens the Doc had; another number now means that it was retokenised.
    tokens (ndarray): Indices of the encoded tokens (all but whitespace), shape (n_words,).
    scores (ndarray): Scores of all tasks that ran, shape (n_words, n_classes).
    slices (Mapping[str, slice]): Where each task's classes lie.
    classes (Mapping[str, Sequence[str]]): Names of each task's classes.
    """

    n_tokens: int
    tokens: np.ndarray
    scores: np.ndarray
    slices: Mapping[str, slice]
    classes: Mapping[str, Sequence[str]]


# By Doc and transformer, the last one last. Beside the Doc, not in doc.user_data, which is copied
# between processes and into DocBins.
_EXITS: "WeakKeyDictionary[Doc, dict[str, DocExits]]" = WeakKeyDictionary()


def leave_exits(doc: Doc, name: str, exits: DocExits) -> None:
    """Leave a Doc's exits for the components behind.

    name (str): The transformer's.
    """
    own = _EXITS.setdefault(doc, {})
    own.pop(name, None)
    own[name] = exits


def find_exits(doc: Doc, upstream: str = "*") -> DocExits | None:
    """What a transformer left.

    upstream (str): Its name; "*": the last one that saw the Doc.
    RETURNS (Optional[DocExits]): None if it left nothing.
    """
    own = _EXITS.get(doc, {})
    return next(reversed(own.values()), None) if upstream == "*" else own.get(upstream)
