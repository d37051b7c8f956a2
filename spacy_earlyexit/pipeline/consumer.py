"""The base of the light components that write to the Doc what the exits said."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from spacy.pipeline.pipe import Pipe
from spacy.tokens import Doc
from spacy.training import Example
from spacy.util import minibatch

from ..errors import Errors
from .exits import DocExits, find_exits, release_exits, seen_by
from .home import PipelineRef


class Upstream(Protocol):
    """What a component behind a transformer needs of it."""

    name: str

    @property
    def tasks(self) -> list[str]: ...

    @property
    def label_data(self) -> dict[str, list[str]]: ...

    @property
    def nlp(self) -> Any: ...


class ExitConsumer(Pipe, ABC):
    """Reads the scores of its tasks and annotates. Has no model and nothing to train.

    name (str): Its name in the pipeline.
    tasks (List[str]): The tasks whose scores it reads.
    upstream (str): Name of the transformer it reads from; "*": the nearest in front.
    makes_words (bool): Whether it makes words of characters: no gold tokens for it.
    home (Optional[PipelineRef]): The pipeline that its factory made it for.
    """

    name: str
    tasks: list[str]
    upstream: str = "*"
    makes_words = False
    scorer: Any = None
    transformer: Upstream | None = None
    home: PipelineRef | None = None

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def labels(self) -> tuple[str, ...]:
        """RETURNS (Tuple[str]): The labels of its tasks, owned by the transformer."""
        if self.transformer is None:
            return ()
        return tuple(
            label for task in self.tasks for label in self.transformer.label_data.get(task, [])
        )

    def check(self, transformer: Upstream) -> None:
        """RAISES (ValueError): If the transformer does not know a task that this one needs."""
        for task in self.tasks:
            if task not in transformer.tasks:
                raise ValueError(
                    Errors.E015.format(
                        name=self.name,
                        task=task,
                        tasks=", ".join(transformer.tasks),
                        transformer=transformer.name,
                    )
                )

    def check_classes(self, transformer: Upstream) -> None:
        """RAISES (ValueError): If classes of its tasks are known and are not of its kind. Called
        when it is linked; nothing is checked unless it is overridden.
        """

    def exits(self, doc: Doc, task: str) -> DocExits:
        """The Doc's exits, with scores of the task.

        RAISES (ValueError): If there are none for the Doc as it is now.
        """
        exits = find_exits(doc, self.upstream)
        if exits is None or exits.n_tokens != len(doc) or task not in exits.slices:
            cause = self._why_not(doc, task, exits)
            text = doc.text[:50]
            raise ValueError(Errors.E014.format(name=self.name, task=task, text=text, cause=cause))
        return exits

    def _why_not(self, doc: Doc, task: str, exits: DocExits | None) -> str:
        """Why a Doc has no scores of a task."""
        seen = seen_by(doc)
        if not seen:
            return Errors.E075.format(name=self.name)
        if self.upstream not in ("*", *seen):
            names = ", ".join(f"'{name}'" for name in seen)
            return Errors.E076.format(name=self.name, upstream=self.upstream, names=names)
        transformer = seen[-1] if self.upstream == "*" else self.upstream
        if exits is None:
            return Errors.E077.format(transformer=transformer)
        if exits.n_tokens != len(doc):
            return Errors.E078.format(
                name=self.name, transformer=transformer, then=exits.n_tokens, now=len(doc)
            )
        tasks = ", ".join(exits.slices) or "none"
        return Errors.E079.format(name=self.name, transformer=transformer, task=task, tasks=tasks)

    def values(self, task: str, classes: Sequence[str]) -> np.ndarray:
        """What `best` gives for each class, shape (n_classes,): its name, unless overridden."""
        return np.asarray(classes, dtype=object)

    def best(self, docs: list[Doc], task: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """The best class of every word, each for itself.

        docs (List[Doc]): Docs that the transformer has seen.
        task (str): The task.
        RETURNS (List[Tuple[ndarray, ndarray]]): Per Doc the encoded tokens (all but whitespace),
            shape (n,), and the values of their classes, shape (n,).
        RAISES (ValueError): If a Doc has no scores.
        """
        exits = [self.exits(doc, task) for doc in docs]
        if not exits:
            return []
        scores = np.concatenate([own.scores[:, own.slices[task]] for own in exits])
        best = self.values(task, exits[0].classes[task])[scores.argmax(axis=1)]
        ends = np.cumsum([len(own.tokens) for own in exits]).tolist()
        return [
            (own.tokens, best[end - len(own.tokens) : end])
            for own, end in zip(exits, ends, strict=True)
        ]

    @abstractmethod
    def predict(self, docs: list[Doc]) -> Any:
        """What to write on each Doc, from its scores; changes nothing."""

    @abstractmethod
    def set_annotations(self, docs: list[Doc], predictions: Any) -> list[Doc] | None:
        """Write what predict returned.

        RETURNS (Optional[List[Doc]]): Other Docs to go on with; None: the same ones.
        """

    def annotate(self, docs: list[Doc]) -> list[Doc]:
        """Predict and write. RETURNS (List[Doc]): The Docs to go on with, mostly the same ones."""
        others = self.set_annotations(docs, self.predict(docs))
        for doc in docs:
            release_exits(doc, self.upstream, self)
        return docs if others is None else others

    def __call__(self, doc: Doc) -> Doc:
        """Annotate one Doc. See spaCy's Pipe.__call__."""
        error_handler = self.get_error_handler()
        try:
            return self.annotate([doc])[0]
        except Exception as error:
            error_handler(self.name, self, [doc], error)
            return doc

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = 128) -> Iterator[Doc]:
        """Annotate a stream in batches. See spaCy's TrainablePipe.pipe."""
        error_handler = self.get_error_handler()
        for docs in minibatch(stream, size=batch_size):
            try:
                yield from self.annotate(docs)
            except Exception as error:
                error_handler(self.name, self, docs, error)

    def score(self, examples: Iterable[Example], **kwargs: Any) -> dict[str, Any]:
        """Scores of the registered scorer."""
        return self.scorer(examples, **kwargs) if self.scorer else {}
