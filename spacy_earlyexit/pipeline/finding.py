"""Finding the transformer of a pipeline, and making Docs as they come to it."""

import warnings
from collections.abc import Sequence

from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from spacy.vocab import Vocab

from ..errors import Errors, Warnings
from .transformer import EarlyExitTransformer


def find_transformer(nlp: Language) -> EarlyExitTransformer:
    """The pipeline's (first) earlyexit_transformer, disabled or not.

    nlp (Language): The pipeline.
    RETURNS (EarlyExitTransformer): The component; a warning says if there are others.
    RAISES (ValueError): If it has none; the message names what it has.
    """
    transformers = [pipe for _, pipe in nlp.components if isinstance(pipe, EarlyExitTransformer)]
    if len(transformers) > 1:
        names = ", ".join(pipe.name for pipe in transformers)
        warnings.warn(Warnings.W004.format(names=names, name=transformers[0].name), stacklevel=2)
    if transformers:
        return transformers[0]
    found = ", ".join(f"{name} ({nlp.get_pipe_meta(name).factory})" for name in nlp.component_names)
    raise ValueError(Errors.E088.format(found=found or "nothing"))


def bare_doc(doc: Doc, *, sentences: bool = True, vocab: Vocab | None = None) -> Doc:
    """The tokens of a Doc with nothing on them.

    sentences (bool): Keep sentence boundaries, if there are any.
    vocab (Optional[Vocab]): That of the new Doc; None: that of the old one.
    """
    starts: list[bool | int | None] = [token.is_sent_start for token in doc] if sentences else []
    return Doc(
        vocab or doc.vocab,
        words=[token.text for token in doc],
        spaces=[bool(token.whitespace_) for token in doc],
        sent_starts=starts if any(s is not None for s in starts) else None,
    )


def fresh_docs(transformer: EarlyExitTransformer, examples: Sequence[Example]) -> list[Doc]:
    """Docs as they come to a transformer: tokens, and what the components in front of it say.

    Sentence boundaries are taken over only where no component of the pipeline finds them: those
    of a Doc that went through the pipeline are its answer, not part of the question. So are its
    tokens where a component retokenizes: then the text is tokenized anew.

    transformer (EarlyExitTransformer): In its pipeline.
    examples (Sequence[Example]): Their predicted Docs give the tokens.
    RETURNS (List[Doc]): New Docs.
    RAISES (ValueError): If the transformer is disabled.
    """
    nlp = transformer.nlp
    if transformer.name not in nlp.pipe_names:
        raise ValueError(Errors.E042.format(name=transformer.name))
    finders = {"token.is_sent_start", "doc.sents"}
    found = any(finders & set(nlp.get_pipe_meta(name).assigns) for name in nlp.pipe_names)
    if any(nlp.get_pipe_meta(name).retokenizes for name in nlp.pipe_names):
        docs = [nlp.make_doc(eg.predicted.text) for eg in examples]
    else:
        docs = [bare_doc(eg.predicted, sentences=not found) for eg in examples]
    at = nlp.pipe_names.index(transformer.name)
    if at > 0:
        docs = list(nlp.pipe(docs, disable=nlp.pipe_names[at:]))
    return docs


def segmenters(nlp: Language) -> list[str]:
    """RETURNS (List[str]): The enabled components that make words of characters."""
    return [name for name, pipe in nlp.pipeline if getattr(pipe, "makes_words", False)]
