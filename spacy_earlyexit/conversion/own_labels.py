"""Training data for a pipeline that is converted: gold where there is some, else the pipeline's own
predictions.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from spacy.language import Language
from spacy.pipeline.textcat import TextCategorizer
from spacy.pipeline.textcat_multilabel import MultiLabel_TextCategorizer
from spacy.tokens import Doc, DocBin, Span
from spacy.training import Example
from spacy.vocab import Vocab
from wasabi import Printer

from ..errors import Errors
from ..pipeline.finding import bare_doc

# Layers that the pipeline's own predictions can fill, and the attributes that make each up.
# Sentences come after the parse, which brings its own.
LAYERS: dict[str, list[str | int]] = {
    "TAG": ["TAG"],
    "POS": ["POS"],
    "MORPH": ["MORPH"],
    "LEMMA": ["LEMMA"],
    "DEP": ["HEAD", "DEP"],
    "SENT_START": ["SENT_START"],
    "ENT_IOB": ["ENT_IOB", "ENT_TYPE"],
}


def read(path: Path | str, vocab: Vocab) -> list[Doc]:
    """The Docs of a .spacy file."""
    return list(DocBin().from_disk(path).get_docs(vocab))


def tokens_of(doc: Doc) -> Doc:
    """The tokens of a Doc, with nothing on them: not even sentence boundaries, which are for the
    pipeline to find.
    """
    return bare_doc(doc, sentences=False)


def gold_tokens(path: str) -> Callable[[Language], Iterator[Example]]:
    """Whole documents with gold tokens, for the training of this command. (spacy.Corpus.v1 makes
    new tokens, or cuts documents into sentences.)
    """

    def corpus(nlp: Language) -> Iterator[Example]:
        for doc in read(path, nlp.vocab):
            yield Example(tokens_of(doc), doc)

    return corpus


def prepare(
    nlp: Language,
    name: str,
    train_path: Path,
    dev_path: Path | None,
    folder: Path,
    *,
    labels: str,
    seed: int,
    msg: Printer | None = None,
) -> None:
    """Write train.spacy and dev.spacy, as they are learned from, to a folder.

    nlp (Language): The original pipeline.
    name (str): Its transformer.
    labels (str): "gold": the data as they are. "fill": where a document has no annotation at all in
        one of LAYERS, in doc.cats or in a group of doc.spans, it gets the pipeline's prediction on
        its tokens, if there is one. "own": for training, all annotation is the pipeline's; dev data
        keep their gold and are filled.
    RAISES (ValueError): If there are too few documents, or labels that no component knows.
    """
    msg = msg or Printer(no_print=True)
    train = read(train_path, nlp.vocab)
    if dev_path is not None:
        dev = read(dev_path, nlp.vocab)
    else:
        held_out = set(random.Random(seed).sample(range(len(train)), -(-len(train) // 10)))
        dev = [doc for i, doc in enumerate(train) if i in held_out]
        train = [doc for i, doc in enumerate(train) if i not in held_out]
        msg.info(f"No --dev: {len(dev)} of the {len(dev) + len(train)} training documents held out")
    if not train or not dev:
        raise ValueError(
            Errors.E031.format(n_train=len(train), n_dev=len(dev), path=dev_path or train_path)
        )
    if labels == "own":
        train = [tokens_of(doc) for doc in train]
    if labels != "gold":
        for part, docs in {"train": train, "dev": dev}.items():
            docs[:], filled = fill(nlp, docs)
            if filled:
                counts = ", ".join(f"{layer} of {n}" for layer, n in filled.items())
                msg.info(f"The pipeline's own labels in {len(docs)} {part} documents: {counts}")
                if part == "dev":
                    msg.info("Scores of these layers compare with the original's predictions")
    check_labels(nlp, name, train, train_path)
    for part, docs in {"train": train, "dev": dev}.items():
        DocBin(docs=docs, store_user_data=True).to_disk(folder / f"{part}.spacy")


def fill(nlp: Language, docs: Sequence[Doc]) -> tuple[list[Doc], Counter[str]]:
    """Give Docs the pipeline's own predictions where they have no annotation. Sentence boundaries
    that a Doc has are kept to.

    RETURNS (Tuple[List[Doc], Counter]): Copies, and in how many of them each layer was filled.
    """
    filled: Counter[str] = Counter()
    merged = []
    for gold, own in zip(docs, nlp.pipe(bare_doc(doc) for doc in docs), strict=True):
        doc = gold.copy()
        for layer, attrs in LAYERS.items():
            if not doc.has_annotation(layer) and own.has_annotation(layer):
                values: Any = own.to_array(attrs)
                doc.from_array(attrs, values)
                filled[layer] += 1
        if own.cats and not doc.cats:
            doc.cats = hard_cats(nlp, own.cats)
            filled["cats"] += 1
        for key in set(own.spans) - set(doc.spans):
            doc.spans[key] = [
                Span(doc, span.start, span.end, label=span.label) for span in own.spans[key]
            ]
            filled[f"spans[{key!r}]"] += 1
        merged.append(doc)
    return merged, filled


def hard_cats(nlp: Language, cats: dict[str, float]) -> dict[str, float]:
    """Predicted categories as gold, which is 0 or 1."""
    gold = {label: float(value >= 0.5) for label, value in cats.items()}
    for _, pipe in nlp.pipeline:
        if isinstance(pipe, MultiLabel_TextCategorizer):
            threshold: Any = pipe.cfg["threshold"]
            gold |= {label: float(cats[label] >= threshold) for label in pipe.labels}
        elif isinstance(pipe, TextCategorizer):
            best = max(pipe.labels, key=lambda label: cats[label])
            gold |= {label: float(label == best) for label in pipe.labels}
    return gold


def check_labels(nlp: Language, name: str, docs: Sequence[Doc], path: Path) -> None:
    """RAISES (ValueError): If a head that learns would meet a label that it does not know."""
    read_by: dict[str, Callable[[Doc], set[str]]] = {
        "tagger": lambda doc: {token.tag_ for token in doc if token.tag_},
        "ner": lambda doc: {ent.label_ for ent in doc.ents},
    }
    transformer: Any = nlp.get_pipe(name)
    for head in transformer.listening_components:
        pipe: Any = nlp.get_pipe(head)
        labels_of = read_by.get(nlp.get_pipe_meta(head).factory)
        if labels_of is not None:
            if unknown := sorted(set().union(*map(labels_of, docs)) - set(pipe.labels)):
                raise ValueError(
                    Errors.E032.format(
                        path=path,
                        name=head,
                        unknown=", ".join(unknown),
                        labels=", ".join(pipe.labels),
                    )
                )
