"""Words out of characters, from the exit scores."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from spacy.attrs import ENT_IOB, ENT_TYPE, IS_SPACE, SENT_START, SPACY
from spacy.language import Language
from spacy.scorer import Scorer
from spacy.tokens import Doc
from spacy.training import Example

from ..errors import Errors
from .consumer import ExitConsumer, Upstream
from .decoding import bmes_grammar, decode
from .home import PipelineRef
from .merging import changes, entity_ids, merge_tokens

WINNERS = ("names", "words")


@Language.factory(
    "earlyexit_segmenter",
    requires=["doc._.exit_layers"],
    retokenizes=True,
    default_config={
        "task": "seg",
        "upstream": "*",
        "wins": "names",
        "scorer": {"@scorers": "spacy-earlyexit.segmenter_scorer.v1"},
    },
    default_score_weights={"token_f": 1.0, "token_p": 0.0, "token_r": 0.0, "token_acc": None},
)
def make_segmenter(
    nlp: Language, name: str, task: str, upstream: str, wins: str, scorer: Callable | None
) -> "EarlyExitSegmenter":
    """Construct a segmenter that reads the transformer's exits.

    task (str): The transformer's task whose classes are BMES.
    upstream (str): Name of the transformer; "*": the nearest in front.
    wins (str): What gives way where a name begins or ends inside of a word. "names": words end at
        the edges of names. "words": names are extended to whole words.
    scorer (Optional[Callable]): The scoring method.
    """
    segmenter = EarlyExitSegmenter(name, task=task, upstream=upstream, wins=wins, scorer=scorer)
    segmenter.home = PipelineRef(nlp)
    return segmenter


def make_segmenter_scorer() -> Callable[..., dict[str, Any]]:
    """Registered as spacy-earlyexit.segmenter_scorer.v1: token_f, token_p, token_r, token_acc."""
    return score_words


def score_words(examples: Iterable[Example], **kwargs: Any) -> dict[str, Any]:
    """RETURNS (Dict[str, Any]): token_f and others. token_acc is no measure of segmentation: it is
    1.0 for characters that nobody joined.
    """
    return Scorer.score_tokenization(examples, **kwargs)


class EarlyExitSegmenter(ExitConsumer):
    """Joins characters into words by the scores that each had when it left. Returns other Docs than
    it is given, so that it has to be the last component that reads exits or characters.
    """

    makes_words = True

    def __init__(
        self,
        name: str = "segmenter",
        *,
        task: str = "seg",
        upstream: str = "*",
        wins: str = "names",
        scorer: Callable | None = None,
    ):
        """See make_segmenter.

        RAISES (ValueError): If `wins` is something else.
        """
        if wins not in WINNERS:
            raise ValueError(
                Errors.E018.format(setting="wins", expected='"names" or "words"', value=wins)
            )
        self.name = name
        self.tasks = [task]
        self.upstream = upstream
        self.wins = wins
        self.scorer = scorer

    def check(self, transformer: Upstream) -> None:
        """RAISES (ValueError): If the transformer does not know the task, or training would get
        words instead of characters.
        """
        super().check(transformer)
        config = transformer.nlp.config
        if self.name in config["training"]["annotating_components"]:
            raise ValueError(Errors.E043.format(name=self.name))
        for corpus, settings in config["corpora"].items():
            if isinstance(settings, dict) and settings.get("gold_preproc") is True:
                raise ValueError(Errors.E044.format(name=self.name, corpus=corpus))

    def predict(self, docs: list[Doc]) -> list[np.ndarray]:
        """Decode words, without changing the Docs.

        docs (List[Doc]): Docs that the transformer has seen, with entities if it is known which.
        RETURNS (List[ndarray]): Per Doc True where a word begins, shape (n_tokens,), bool.
        RAISES (ValueError): If a Doc has no scores.
        """
        (task,) = self.tasks
        exits = [self.exits(doc, task) for doc in docs]
        if not exits:
            return []
        classes = list(exits[0].classes[task])
        scores = np.concatenate([own.scores[:, own.slices[task]] for own in exits])
        breaks = [self._breaks(doc)[own.tokens] for doc, own in zip(docs, exits, strict=True)]
        path = decode(scores, np.concatenate(breaks), bmes_grammar(classes))
        begins = np.asarray([c in "BS" for c in classes])[path]
        found, ends = [], np.cumsum([len(own.tokens) for own in exits])
        for doc, own, part in zip(docs, exits, np.split(begins, ends[:-1]), strict=True):
            starts = np.ones(len(doc), dtype=bool)
            starts[own.tokens] = part
            found.append(starts)
        return found

    def _breaks(self, doc: Doc) -> np.ndarray:
        """Where no word may go on: at the Doc's and a sentence's start, behind whitespace, at the
        edges of names if they win. Shape (n_tokens,), bool.
        """
        attributes = [SENT_START, SPACY, IS_SPACE, ENT_IOB, ENT_TYPE]
        array = doc.to_array(attributes).reshape(-1, len(attributes))
        breaks = array[:, 0] == 1
        breaks[:1] = True
        breaks[1:] |= array[:-1, 1:3].any(axis=1)
        if self.wins == "names":
            breaks |= changes(entity_ids(array[:, 3], array[:, 4]))
        return breaks

    def set_annotations(self, docs: list[Doc], predictions: list[np.ndarray]) -> list[Doc]:
        """docs (List[Doc]): The Docs; they stay as they are.
        predictions (List[ndarray]): What predict returned for them.
        RETURNS (List[Doc]): New Docs, whose tokens are the words (see merging.merge_tokens).
        """
        return [merge_tokens(doc, own) for doc, own in zip(docs, predictions, strict=True)]
