"""Tasks: what the off-ramps learn from a Doc, and what their scores mean.

A task is one small class, registered under the entry point group `spacy_earlyexit_tasks` or with
the decorator `@tasks("name")`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import catalogue
import numpy as np
from spacy.training import Example

from .errors import Errors
from .offramps import IGNORE

tasks = catalogue.create("spacy_earlyexit", "tasks", entry_points=True)
# The group that setup.cfg uses; catalogue would join the namespace with an underscore alike.


class Task:
    """Labels of words, read from gold Docs. Subclass it for a new task.

    annotation (str): What a Doc needs to count as gold, for messages.
    """

    annotation: str

    def gold(self, example: Example) -> Sequence[str | None]:
        """The gold class of each token of example.predicted, None where unknown.

        Must return a sequence of None if the document has no gold for the task.
        """
        raise NotImplementedError

    def labels(self, examples: Iterable[Example]) -> list[str]:
        """The labels people see (entity types, tags), collected from gold, sorted."""
        return sorted({c for eg in examples for c in self.gold(eg) if c is not None})

    def classes(self, labels: Sequence[str]) -> list[str]:
        """The off-ramps' classes for these labels."""
        return list(labels)


class NerTask(Task):
    """Named entities as BIO classes."""

    annotation = "doc.ents"

    def gold(self, example: Example) -> Sequence[str | None]:
        return [_biluo_to_bio(tag) for tag in example.get_aligned_ner()]

    def labels(self, examples: Iterable[Example]) -> list[str]:
        return sorted({c[2:] for c in super().labels(examples) if c != "O"})

    def classes(self, labels: Sequence[str]) -> list[str]:
        return ["O"] + [f"{position}-{label}" for label in labels for position in "BI"]


class TokenAttributeTask(Task):
    """A string attribute of each token. Subclasses name it."""

    attribute: str

    def gold(self, example: Example) -> Sequence[str | None]:
        if not example.reference.has_annotation(self.attribute):
            return [None] * len(example.predicted)
        # Misaligned tokens are None, tokens without the annotation an empty string.
        return [value or None for value in example.get_aligned(self.attribute, as_string=True)]


class TagTask(TokenAttributeTask):
    """Fine-grained part-of-speech tags (XPOS)."""

    annotation, attribute = "token.tag_", "TAG"


class PosTask(TokenAttributeTask):
    """Universal part-of-speech tags (UPOS)."""

    annotation, attribute = "token.pos_", "POS"


def _biluo_to_bio(tag: str | None) -> str | None:
    if tag is None or tag == "O":
        return tag
    position, label = tag.split("-", 1)
    return ("B-" if position in "BU" else "I-") + label


def get_task(name: str, component: str = "transformer") -> Task:
    """Look a task up by its registered name.

    RAISES (ValueError): If there is none.
    """
    known: dict[str, Any] = tasks.get_all()
    if name not in known:
        raise ValueError(
            Errors.E011.format(task=name, tasks=", ".join(sorted(known)), component=component)
        )
    return known[name]()


def class_ids(gold: Sequence[str | None], index: dict[str, int]) -> np.ndarray:
    """Gold classes to ids, shape (n_tokens,); IGNORE where unknown or not among the classes."""
    return np.asarray([index.get(c, IGNORE) if c is not None else IGNORE for c in gold], np.int64)
