"""What a plain token classifier learns: how labels are read off Docs, written and scored."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from spacy.scorer import Scorer, get_ner_prf
from spacy.tokens import Doc
from spacy.training import Example

from spacy_earlyexit.pipeline.characters import CharacterTokenizer
from spacy_earlyexit.pipeline.merging import merge_tokens
from spacy_earlyexit.pipeline.tasks import SegTask


class Annotation(NamedTuple):
    """All that depends on what is learned.

    read: One label per word, "" for a word that has no annotation.
    write: A copy of the Doc's words that carries the labels and nothing else.
    score: Scores of predicted against gold Docs, as fractions; the first one chooses the epoch.
    """

    read: Callable[[Doc], list[str]]
    write: Callable[[Doc, Sequence[str]], Doc]
    score: Callable[[Iterable[Doc], Iterable[Doc]], dict[str, float]]


def read_iob(doc: Doc) -> list[str]:
    return [f"{w.ent_iob_}-{w.ent_type_}" if w.ent_type else w.ent_iob_ for w in doc]


def write_iob(doc: Doc, labels: Sequence[str]) -> Doc:
    return copy_words(doc, ents=repair_iob(labels))


def score_entities(predicted: Iterable[Doc], gold: Iterable[Doc]) -> dict[str, float]:
    prf = get_ner_prf([Example(x, y) for x, y in zip(predicted, gold, strict=True)])
    # None where nothing was there to score.
    return {key: prf[f"ents_{key}"] or 0.0 for key in ("f", "p", "r")}


def read_attribute(doc: Doc, attribute: str) -> list[str]:
    return [getattr(word, f"{attribute}_") for word in doc]


def write_attribute(doc: Doc, labels: Sequence[str], argument: str) -> Doc:
    return copy_words(doc, **{argument: list(labels)})


def score_attribute(
    predicted: Iterable[Doc], gold: Iterable[Doc], attribute: str
) -> dict[str, float]:
    examples = [Example(x, y) for x, y in zip(predicted, gold, strict=True)]
    return {"acc": Scorer.score_token_attr(examples, attribute)[f"{attribute}_acc"] or 0.0}


def annotate_attribute(attribute: str, argument: str) -> Annotation:
    return Annotation(
        partial(read_attribute, attribute=attribute),
        partial(write_attribute, argument=argument),
        partial(score_attribute, attribute=attribute),
    )


def to_characters(doc: Doc) -> Doc:
    """The characters of a Doc's text as words, tagged with their place in its words (BMES); its
    names are over characters, too.
    """
    characters = CharacterTokenizer(doc.vocab)(doc.text)
    gold = SegTask().gold(Example(characters, doc))
    tagged = write_attribute(characters, [label or "" for label in gold], "tags")
    if doc.has_annotation("ENT_IOB"):
        spans = (
            tagged.char_span(name.start_char, name.end_char, name.label_, alignment_mode="expand")
            for name in doc.ents
        )
        tagged.set_ents([span for span in spans if span])
    return tagged


def join_words(doc: Doc) -> Doc:
    """The words that the tags of a Doc's characters say. Whatever they are, a word has no
    whitespace inside, and does not go on behind its end.
    """
    starts = [True] * len(doc)
    for before, word in pairwise(doc):
        apart = before.whitespace_ or before.is_space or word.is_space
        starts[word.i] = bool(apart) or word.tag_ not in ("M", "E") or before.tag_ in ("E", "S")
    return merge_tokens(doc, np.asarray(starts, dtype=bool))


def score_words(predicted: Iterable[Doc], gold: Iterable[Doc]) -> dict[str, float]:
    examples = [Example(join_words(x), join_words(y)) for x, y in zip(predicted, gold, strict=True)]
    scores = Scorer.score_tokenization(examples)
    return {key: scores[f"token_{key}"] or 0.0 for key in ("f", "p", "r")}


ANNOTATIONS = {
    "ner": Annotation(read_iob, write_iob, score_entities),
    "tag": annotate_attribute("tag", "tags"),
    "pos": annotate_attribute("pos", "pos"),
    "seg": annotate_attribute("tag", "tags")._replace(score=score_words),
}


def main_score(scores: dict[str, float]) -> float:
    return next(iter(scores.values()))


def copy_words(doc: Doc, **annotation: Any) -> Doc:
    return Doc(
        doc.vocab,
        words=[word.text for word in doc],
        spaces=[bool(word.whitespace_) for word in doc],
        **annotation,
    )


def repair_iob(labels: Sequence[str]) -> list[str]:
    """Let an I-x that continues no entity of its type begin one; no label is outside."""
    repaired = []
    previous = "O"
    for label in (label or "O" for label in labels):
        if label.startswith("I-") and label[2:] != previous[2:]:
            label = f"B-{label[2:]}"
        repaired.append(label)
        previous = label
    return repaired
