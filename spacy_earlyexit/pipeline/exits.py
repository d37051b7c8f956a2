"""What the transformer leaves beside a Doc for the components behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
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


@dataclass
class _Left:
    """What one transformer left.

    exits (Optional[DocExits]): None once they were read for the last time.
    readers (Sequence[FrozenSet[Any]]): Of each pipeline that has the transformer, the components
        that read.
    read (Set[Any]): Those that have read.
    """

    exits: DocExits | None
    readers: Sequence[frozenset[Any]]
    read: set[Any] = field(default_factory=set)


# By Doc and transformer, the last one last. Beside the Doc, not in doc.user_data, which is copied
# between processes and into DocBins.
_EXITS: "WeakKeyDictionary[Doc, dict[str, _Left]]" = WeakKeyDictionary()


def leave_exits(
    doc: Doc, name: str, exits: DocExits, readers: Sequence[frozenset[Any]] = ()
) -> None:
    """Leave a Doc's exits for the components behind, until the last of them has read them.

    name (str): The transformer's.
    readers (Sequence[FrozenSet[Any]]): Of each pipeline that has the transformer, the enabled
        components that read. Without any, the exits stay as long as the Doc.
    """
    by_name = _EXITS.setdefault(doc, {})
    by_name.pop(name, None)
    by_name[name] = _Left(exits, readers)


def find_exits(doc: Doc, upstream: str = "*") -> DocExits | None:
    """What a transformer left.

    upstream (str): Its name; "*": the last one that saw the Doc.
    RETURNS (Optional[DocExits]): None if it left nothing, or all have read it.
    """
    left = _find(doc, upstream)
    return None if left is None else left.exits


def release_exits(doc: Doc, upstream: str, reader: Any) -> None:
    """Say that a component has read a Doc's exits; after the last one they are dropped. Of several
    pipelines with the transformer, those count whose components read this Doc.

    upstream (str): As for find_exits.
    reader (Any): The component.
    """
    left = _find(doc, upstream)
    if left is None or left.exits is None:
        return
    left.read.add(reader)
    reading = [each for each in left.readers if not each.isdisjoint(left.read)]
    if reading and all(each <= left.read for each in reading):
        left.exits, left.readers, left.read = None, (), set()


def seen_by(doc: Doc) -> list[str]:
    """RETURNS (List[str]): The transformers that have left exits, also those that were dropped."""
    return list(_EXITS.get(doc, {}))


def _find(doc: Doc, upstream: str) -> _Left | None:
    by_name = _EXITS.get(doc, {})
    if upstream == "*":
        return next(reversed(by_name.values()), None)
    return by_name.get(upstream)
