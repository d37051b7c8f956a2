"""Named entities from the exit scores."""

from collections.abc import Callable, Sequence

import numpy as np
from spacy.attrs import ENT_IOB, ENT_TYPE, SENT_START
from spacy.language import Language
from spacy.tokens import Doc, Span

from ..errors import Errors
from .consumer import ExitConsumer, Upstream
from .decoding import bio_grammar, bio_spans, decode
from .home import PipelineRef
from .tasks import find_task, is_bio


@Language.factory(
    "earlyexit_ner",
    assigns=["doc.ents", "token.ent_iob", "token.ent_type"],
    requires=["doc._.exit_layers"],
    default_config={
        "task": "ner",
        "upstream": "*",
        "overwrite": False,
        "scorer": {"@scorers": "spacy.ner_scorer.v1"},
    },
    default_score_weights={
        "ents_f": 1.0,
        "ents_p": 0.0,
        "ents_r": 0.0,
        "ents_per_type": None,
    },
)
def make_ner(
    nlp: Language, name: str, task: str, upstream: str, overwrite: bool, scorer: Callable | None
) -> "EarlyExitNer":
    """Construct an entity recogniser that reads the transformer's exits.

    task (str): The transformer's task whose classes are BIO.
    upstream (str): Name of the transformer; "*": the nearest in front.
    overwrite (bool): Replace entities that are already set. If False they are kept, as by spaCy's
        ner, and new ones are found around them.
    scorer (Optional[Callable]): The scoring method.
    """
    ner = EarlyExitNer(name, task=task, upstream=upstream, overwrite=overwrite, scorer=scorer)
    ner.home = PipelineRef(nlp)
    return ner


class EarlyExitNer(ExitConsumer):
    """Sets doc.ents from the scores that each word had when it left."""

    def __init__(
        self,
        name: str = "ner",
        *,
        task: str = "ner",
        upstream: str = "*",
        overwrite: bool = False,
        scorer: Callable | None = None,
    ):
        self.name = name
        self.tasks = [task]
        self.upstream = upstream
        self.overwrite = overwrite
        self.scorer = scorer

    def check(self, transformer: Upstream) -> None:
        """RAISES (ValueError): If the transformer does not know the task, or its classes are no
        entities'.
        """
        super().check(transformer)
        self.check_classes(transformer)

    def check_classes(self, transformer: Upstream) -> None:
        """RAISES (ValueError): If the classes of the task are known and are no entities'."""
        (name,) = self.tasks
        task = find_task(name)
        if task is not None and transformer.label_data.get(name):
            self._check_classes(task.classes(transformer.label_data[name]))

    def _check_classes(self, classes: Sequence[str]) -> None:
        if not is_bio(classes):
            (task,) = self.tasks
            shown = ", ".join(classes[:5]) + (", …" if len(classes) > 5 else "")
            raise ValueError(Errors.E074.format(name=self.name, task=task, classes=shown))

    def predict(self, docs: list[Doc]) -> list[list[tuple[int, int, str]]]:
        """Decode entities, without changing the Docs.

        docs (List[Doc]): Docs that the transformer has seen.
        RETURNS (List[List[Tuple[int, int, str]]]): Per Doc first and last-plus-one token and label.
        RAISES (ValueError): If a Doc has no scores.
        """
        (task,) = self.tasks
        exits = [self.exits(doc, task) for doc in docs]
        if not exits:
            return []
        classes = list(exits[0].classes[task])
        self._check_classes(classes)
        lengths = np.asarray([len(own.tokens) for own in exits])
        scores = np.concatenate([own.scores[:, own.slices[task]] for own in exits])
        # All Docs at once: words are places in the Docs' tokens, one Doc behind the other.
        array = np.concatenate([doc.to_array([ENT_IOB, SENT_START]).reshape(-1, 2) for doc in docs])
        first = np.cumsum([0] + [len(doc) for doc in docs])
        tokens = np.concatenate([own.tokens for own in exits])
        words = tokens + np.repeat(first[:-1], lengths)
        iob = array[words, 0]
        preset = (iob == 1) | (iob == 3)  # in an entity, or blocked
        if preset.any() and not self.overwrite:
            scores[preset] = -np.inf
            scores[preset, classes.index("O")] = 0.0  # keeps entities from running through
        # No entity crosses a sentence boundary, as in spaCy's ner. SENT_START is 1 there,
        # which can be on a whitespace token.
        sentence = np.cumsum(array[:, 1] == 1)[words]
        breaks = np.diff(sentence, prepend=-1) != 0
        breaks[(np.cumsum(lengths) - lengths)[lengths > 0]] = True
        path = decode(scores, breaks, bio_grammar(classes))
        doc = np.repeat(np.arange(len(docs)), lengths)
        found: list[list[tuple[int, int, str]]] = [[] for _ in docs]
        # whitespace tokens between the words of an entity belong to it
        for start, end, kind in zip(*bio_spans(path, breaks, classes), strict=True):
            entity = int(tokens[start]), int(tokens[end - 1]) + 1, classes[kind][2:]
            found[doc[start]].append(entity)
        return found

    def set_annotations(
        self, docs: list[Doc], predictions: list[list[tuple[int, int, str]]]
    ) -> None:
        """Set doc.ents; every other token is marked as outside, if it isn't blocked.

        docs (List[Doc]): The documents.
        predictions (List[List[Tuple[int, int, str]]]): What predict returned.
        """
        for doc, entities in zip(docs, predictions, strict=True):
            spans = [Span(doc, start, end, label=label) for start, end, label in entities]
            kept: list[Span] = []
            blocked: list[Span] = []
            if not self.overwrite and doc.has_annotation("ENT_IOB"):
                kept = list(doc.ents)
                iob, label = doc.to_array([ENT_IOB, ENT_TYPE]).reshape(-1, 2).T
                blocked = [doc[i : i + 1] for i in np.flatnonzero((iob == 3) & (label == 0))]
                # One found on both sides of a kept one that covers only whitespace can overlap.
                taken = {token.i for span in kept + blocked for token in span}
                spans = [s for s in spans if not taken.intersection(range(s.start, s.end))]
            doc.set_ents(kept + spans, blocked=blocked, default="outside")
