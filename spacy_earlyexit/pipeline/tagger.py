"""Part-of-speech tags from the exit scores."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np
from spacy.attrs import POS, TAG
from spacy.language import Language
from spacy.parts_of_speech import IDS as POS_IDS
from spacy.scorer import Scorer
from spacy.tokens import Doc
from spacy.training import Example
from spacy.vocab import Vocab

from ..errors import Errors
from .consumer import ExitConsumer
from .home import PipelineRef

_ATTRIBUTES = {"tag": TAG, "pos": POS}


@Language.factory(
    "earlyexit_tagger",
    assigns=["token.tag", "token.pos"],
    requires=["doc._.exit_layers"],
    default_config={
        "tasks": ["tag", "pos"],
        "upstream": "*",
        "overwrite": False,
        "scorer": {"@scorers": "spacy-earlyexit.tagger_scorer.v1"},
    },
    default_score_weights={"tag_acc": 0.5, "pos_acc": 0.5},
)
def make_tagger(
    nlp: Language,
    name: str,
    tasks: list[str],
    upstream: str,
    overwrite: bool,
    scorer: Callable | None,
) -> "EarlyExitTagger":
    """Construct a tagger that reads the transformer's exits.

    tasks (List[str]): "tag" for token.tag_ (XPOS), "pos" for token.pos_ (UPOS), or both.
    upstream (str): Name of the transformer; "*": the nearest in front.
    overwrite (bool): Replace tags that are already set, as in spaCy's tagger.
    scorer (Optional[Callable]): The scoring method.
    """
    tagger = EarlyExitTagger(
        nlp.vocab, name, tasks=tasks, upstream=upstream, overwrite=overwrite, scorer=scorer
    )
    tagger.home = PipelineRef(nlp)
    return tagger


def make_tagger_scorer() -> Callable[..., dict[str, Any]]:
    """Registered as spacy-earlyexit.tagger_scorer.v1: tag_acc and pos_acc."""
    return score_tags


def score_tags(examples: Iterable[Example], **kwargs: Any) -> dict[str, Any]:
    """RETURNS (Dict[str, Any]): tag_acc and pos_acc, None without gold."""
    examples = list(examples)
    return {
        **Scorer.score_token_attr(examples, "tag", **kwargs),
        **Scorer.score_token_attr(examples, "pos", **kwargs),
    }


class EarlyExitTagger(ExitConsumer):
    """Sets token.tag_ and token.pos_ from the scores that each word had when it left."""

    def __init__(
        self,
        vocab: Vocab,
        name: str = "tagger",
        *,
        tasks: Iterable[str] = ("tag", "pos"),
        upstream: str = "*",
        overwrite: bool = False,
        scorer: Callable | None = None,
    ):
        """RAISES (ValueError): If a task is not "tag" or "pos"."""
        self.vocab = vocab
        self.name = name
        self.tasks = list(tasks)
        if not self.tasks or not set(self.tasks) <= set(_ATTRIBUTES):
            raise ValueError(
                Errors.E018.format(setting="tasks", expected='"tag", "pos" or both', value=tasks)
            )
        self.upstream = upstream
        self.overwrite = overwrite
        self.scorer = scorer

    def predict(self, docs: list[Doc]) -> list[dict[str, tuple[np.ndarray, np.ndarray]]]:
        """The best class of every word, without changing the Docs.

        docs (List[Doc]): Docs that the transformer has seen.
        RETURNS (List[Dict[str, Tuple[ndarray, ndarray]]]): Per Doc and task the encoded tokens and
            the values of their attribute, shape (n_words,) each.
        RAISES (ValueError): If a Doc has no scores.
        """
        predictions: list[dict[str, tuple[np.ndarray, np.ndarray]]] = [{} for _ in docs]
        for task in self.tasks:
            for prediction, best in zip(predictions, self.best(docs, task), strict=True):
                prediction[task] = best
        return predictions

    def values(self, task: str, classes: Sequence[str]) -> np.ndarray:
        """The attribute's values of the classes, shape (n_classes,), uint64."""
        if task == "pos":
            return np.asarray([POS_IDS[name] for name in classes], dtype=np.uint64)
        return np.asarray([self.vocab.strings.add(name) for name in classes], dtype=np.uint64)

    def set_annotations(
        self, docs: list[Doc], predictions: list[dict[str, tuple[np.ndarray, np.ndarray]]]
    ) -> None:
        """Write the tags; whitespace tokens, which are never encoded, are left as they are.

        docs (List[Doc]): The documents.
        predictions (List[Dict]): What predict returned.
        """
        if not docs:
            return
        attributes = [_ATTRIBUTES[task] for task in self.tasks]
        n = len(attributes)
        # All Docs at once, one behind the other.
        array = np.concatenate([doc.to_array(attributes).reshape(-1, n) for doc in docs])
        first = np.cumsum([0] + [len(doc) for doc in docs])
        for column, task in enumerate(self.tasks):
            found = [prediction[task] for prediction in predictions]
            tokens, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
            at = tokens + np.repeat(first[:-1], [len(own) for own, _ in found])
            old = array[at, column]
            array[at, column] = np.where(self.overwrite | (old == 0), values, old)
        bounds = zip(first[:-1].tolist(), first[1:].tolist(), strict=True)
        for doc, (start, end) in zip(docs, bounds, strict=True):
            if start < end:
                doc.from_array(attributes, cast(Any, array[start:end]))

    def score(self, examples: Iterable[Example], **kwargs: Any) -> dict[str, Any]:
        """Scores of the registered scorer; None for an attribute that is not this tagger's."""
        scores = super().score(examples, **kwargs)
        others = {f"{task}_acc" for task in _ATTRIBUTES if task not in self.tasks}
        return {key: None if key in others else value for key, value in scores.items()}
