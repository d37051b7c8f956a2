"""Tasks: what the off-ramps learn from a Doc, and what their scores mean.

A task is one small class, registered under the entry point group `spacy_earlyexit_tasks` or with
the decorator `@tasks("name")`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import catalogue
import numpy as np
from spacy.attrs import ORTH
from spacy.training import Example

from ..errors import Errors
from ..model.offramps import IGNORE
from ..model.pieces import Pieces

tasks = catalogue.create("spacy_earlyexit", "tasks", entry_points=True)
# The group that setup.cfg uses; catalogue would join the namespace with an underscore alike.


class Task(ABC):
    """Labels of words, read from gold Docs. Subclass it for a new task.

    annotation (str): What a Doc needs to count as gold, for messages.
    """

    annotation: str

    @abstractmethod
    def gold(self, example: Example) -> Sequence[str | None]:
        """The gold class of each token of example.predicted, None where unknown.

        Must return a sequence of None if the document has no gold for the task.
        """

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


class SegTask(Task):
    """Words that are made of several tokens, mostly of one character each, as BMES classes: a
    word's begin, middle and end, or a single token that is a word.
    """

    annotation = (
        "words of several tokens: the corpus needs gold_preproc = false, and the pipeline a "
        "tokenizer of characters, such as spacy-earlyexit.CharacterTokenizer.v1"
    )

    def gold(self, example: Example) -> Sequence[str | None]:
        """Unknown is a token that belongs to several gold words, and what shares such a word. A
        document whose tokens are the gold words has no gold: it does not say what to join.
        """
        gold = np.full(len(example.predicted), None, dtype=object)
        to_words, to_tokens = example.alignment.x2y, example.alignment.y2x
        tokens = np.flatnonzero(to_words.lengths == 1)
        words = to_words.data[(np.cumsum(to_words.lengths) - 1)[tokens]]
        sizes = to_tokens.lengths
        whole = np.bincount(words, minlength=len(sizes)) == sizes
        if (sizes[whole] > 1).any():
            first, last = np.diff(words, prepend=-1) != 0, np.diff(words, append=-1) != 0
            classes = np.asarray(["M", "B", "E", "S"], dtype=object)[first + 2 * last]
            gold[tokens] = np.where(whole[words], classes, None)
        return gold.tolist()

    def labels(self, examples: Iterable[Example]) -> list[str]:
        return ["B", "E", "M", "S"] if super().labels(examples) else []


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


class TokenExtensionTask(Task):
    """A custom attribute of each token, token._.x, whose values are strings, or None where unknown.
    Subclasses name it.
    """

    extension: str

    def __init__(self) -> None:
        self.annotation = f"token._.{self.extension}"

    def gold(self, example: Example) -> Sequence[str | None]:
        gold = [token._.get(self.extension) or None for token in example.reference]
        return aligned(example, gold)


def aligned(example: Example, values: Sequence[str | None]) -> list[str | None]:
    """Values of the gold tokens on the predicted tokens, by the rule of Example.get_aligned, which
    knows spaCy's own attributes only.

    example (Example): The example.
    values (Sequence[Optional[str]]): One per token of example.reference, None where unknown.
    RETURNS (List[Optional[str]]): One per token of example.predicted: the value that all its gold
        tokens have, None if they differ or there are none.
    RAISES (ValueError): If there is not one value per gold token.
    """
    predicted, reference = example.predicted, example.reference
    if len(values) != len(reference):
        expected = f"{len(reference)}, one for each token of example.reference"
        raise ValueError(
            Errors.E018.format(setting="len(values)", expected=expected, value=len(values))
        )
    # Mostly the tokens are the same, and comparing them is much cheaper than aligning characters.
    if np.array_equal(predicted.to_array(ORTH), reference.to_array(ORTH)):
        return list(values)
    to_gold = example.alignment.x2y
    found = ({values[j] for j in to_gold[i]} for i in range(len(predicted)))
    return [own.pop() if len(own) == 1 else None for own in found]


def _biluo_to_bio(tag: str | None) -> str | None:
    if tag is None or tag == "O":
        return tag
    position, label = tag.split("-", 1)
    return ("B-" if position in "BU" else "I-") + label


def find_task(name: str) -> Task | None:
    """RETURNS (Optional[Task]): The task of this name, if it is registered."""
    known: dict[str, Any] = tasks.get_all()
    return known[name]() if name in known else None


def get_task(name: str, component: str = "transformer") -> Task:
    """Look a task up by its registered name.

    RAISES (ValueError): If there is none.
    """
    task = find_task(name)
    if task is None:
        known = ", ".join(sorted(tasks.get_all()))
        raise ValueError(Errors.E011.format(task=name, tasks=known, component=component))
    return task


def is_bio(classes: Sequence[str]) -> bool:
    """Whether classes are O, and B-x and I-x for each label."""
    return "O" in classes and all(c == "O" or c.startswith(("B-", "I-")) for c in classes)


class GoldLabels:
    """The labels of tasks, read from a stream of gold Docs that is never held as a whole.

    get_examples (Callable): Returns the examples anew at each call.
    component (str): Whose tasks they are, for messages.
    """

    def __init__(self, get_examples: Callable[[], Iterable[Example]], component: str):
        self.get_examples = get_examples
        self.component = component
        self._found: dict[str, list[str]] = {}

    def of(self, name: str) -> list[str]:
        """RETURNS (List[str]): The labels that the Docs have for a task; maybe none.

        RAISES (ValueError): If there is no such task.
        """
        if name not in self._found:
            self._found[name] = get_task(name, self.component).labels(self.get_examples())
        return self._found[name]

    @property
    def n_docs(self) -> int:
        return sum(1 for _ in self.get_examples())

    def collect(self, names: Iterable[str], given: Mapping[str, list[str]]) -> dict[str, list[str]]:
        """The labels of some tasks.

        names (Iterable[str]): The tasks.
        given (Mapping[str, List[str]]): Labels by task; those of other tasks are read.
        RETURNS (Dict[str, List[str]]): By task.
        RAISES (ValueError): If a task is not known, or no label of it is found.
        """
        collected = {name: given.get(name) or self.of(name) for name in names}
        missing = [name for name, labels in collected.items() if not labels]
        if missing:
            what = ", ".join(f"'{name}' ({get_task(name).annotation})" for name in missing)
            raise ValueError(
                Errors.E013.format(
                    n_docs=self.n_docs,
                    what=what,
                    names=", ".join(missing),
                    others=", ".join(f'"{name}"' for name in collected if name not in missing),
                    name=self.component,
                )
            )
        return collected


def gold_ids(
    labels: Mapping[str, Sequence[str]], examples: Sequence[Example], pieces: Pieces
) -> dict[str, np.ndarray]:
    """The gold class of every word.

    labels (Mapping[str, Sequence[str]]): Of each task that is wanted.
    examples (Sequence[Example]): Predicted and gold Docs.
    pieces (Pieces): The pieces of the predicted Docs.
    RETURNS (Dict[str, ndarray]): Class ids by task, shape (n_words,); IGNORE where there is no gold
        or it is not among the classes, or where another unit speaks for the word.
    """
    offsets = np.cumsum([0] + [len(eg.predicted) for eg in examples])
    at = offsets[pieces.word_doc] + pieces.word_token
    gold = {}
    for name, own_labels in labels.items():
        task = get_task(name)
        index = {c: i for i, c in enumerate(task.classes(own_labels))}
        ids = [
            index.get(c, IGNORE) if c is not None else IGNORE
            for eg in examples
            for c in task.gold(eg)
        ]
        gold[name] = np.where(pieces.owned, np.asarray(ids, np.int64)[at], IGNORE)
    return gold
