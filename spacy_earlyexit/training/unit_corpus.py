"""Whole documents as training data: each unit that the transformer will see is an example."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from spacy.training.corpus import create_docbin_reader

from ..model.units import SpanGetter
from ..pipeline.transformer import EarlyExitTransformer

Reader = Callable[[Language], Iterable[Example]]


def make_unit_corpus(path: Path | None, gold_preproc: bool = False, limit: int = 0) -> Reader:
    """Read Docs, give them the pipeline's own tokens, and cut them into units, which then are
    shuffled and batched: documents of any length train in batches of the size that is set.

    A unit is what the earlyexit_transformer of the pipeline encodes as a whole (its `get_spans`),
    so nothing is lost by the cut. It is not cut where the gold tokens or a gold entity go on; such
    units are one example.

    path (Optional[Path]): The data (.spacy), or a folder of them.
    gold_preproc (bool): Gold tokens and sentences, as in spacy.Corpus.v1; nothing is cut then.
    limit (int): First documents only, 0 for all.
    RETURNS (Callable): The reader.
    RAISES (ValueError): If there is no path.
    """
    reader = create_docbin_reader(path, gold_preproc=gold_preproc, limit=limit)
    return reader if gold_preproc else partial(read_units, reader)


def read_units(reader: Reader, nlp: Language) -> Iterator[Example]:
    """The units of all documents; documents where no earlyexit_transformer is.

    reader (Callable): Gives the documents, with the pipeline's tokens.
    nlp (Language): The pipeline.
    YIELDS (Example): One per unit.
    """
    transformers = [pipe for _, pipe in nlp.components if isinstance(pipe, EarlyExitTransformer)]
    get_spans = transformers[0].model.layers[0].attrs["get_spans"] if transformers else None
    for example in reader(nlp):
        yield from cut_example(example, get_spans) if get_spans is not None else [example]


def cut_example(example: Example, get_spans: SpanGetter) -> Iterator[Example]:
    """The units of one document as examples, in the order of the text. What is said of the whole
    document (`doc.cats`, `doc.spans`) keeps it whole; a parse keeps its sentences.

    example (Example): Predicted and gold Doc, of the same text.
    get_spans (SpanGetter): Cuts the predicted Doc.
    YIELDS (Example): A unit, or several that could not be cut.
    """
    predicted, gold = example.predicted, example.reference
    try:
        (spans,) = get_spans([predicted])
    except ValueError:  # it needs what a component in front will annotate; else that one fails, too
        spans = []
    if len(spans) < 2 or gold.cats or gold.spans or predicted.text != gold.text:
        yield example
        return
    parsed = gold.has_annotation("DEP")
    # where the gold can be cut: in front of a token that goes on with nothing
    starts = {
        token.idx: token.i
        for token in gold
        if token.ent_iob != 1 and (token.is_sent_start or not parsed)
    }
    at, at_gold = 0, 0
    for cut in [*(span.end for span in spans[:-1]), len(predicted)]:
        ends = cut == len(predicted)
        cut_gold = len(gold) if ends else starts.get(predicted[cut].idx, 0)
        if cut > at and cut_gold > at_gold:
            yield Example(_part(predicted, at, cut), _part(gold, at_gold, cut_gold))
            at, at_gold = cut, cut_gold


def _part(doc: Doc, start: int, end: int) -> Doc:
    return doc[start:end].as_doc(copy_user_data=bool(doc.user_data))
