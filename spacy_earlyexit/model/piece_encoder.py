"""The thinc layer from documents to packed pieces."""

from collections.abc import Callable
from typing import Any

from spacy.tokens import Doc
from thinc.api import Model

from ..errors import Errors
from .encoders import canonical_config, load_tokenizer, read_config
from .output import Packed, Request
from .pieces import Pieces, PieceTokenizer, TokenizerShim, encode_docs
from .settings import Settings
from .text_pieces import encode_texts
from .units import SpanGetter


def piece_encoder(get_spans: SpanGetter, settings: Settings) -> Model[Request, Packed]:
    """Cuts the words of documents into sub-word pieces. Its shim holds the tokenizer.

    get_spans (SpanGetter): Proposes the units.
    settings (Settings): Say where the tokenizer is.
    """
    return Model(
        "piece_encoder",
        _forward,
        init=_init,
        attrs={"get_spans": get_spans, "max_positions": 512, "settings": settings},
        shims=[TokenizerShim(None)],
    )


def encode(model: Model, docs: list[Doc]) -> Pieces:
    """The packed pieces of documents.

    model (Model): A piece_encoder.
    RAISES (ValueError): If it has no tokenizer yet.
    """
    tokenizer: PieceTokenizer | None = model.shims[0]._model
    if tokenizer is None:
        settings: Settings = model.attrs["settings"]
        raise ValueError(Errors.E004.format(name=settings.name, component=settings.component))
    cut = encode_texts if model.attrs["settings"].pieces == "spans" else encode_docs
    return cut(docs, tokenizer, model.attrs["get_spans"], model.attrs["max_positions"])


def _init(model: Model, X: Any = None, Y: Any = None) -> None:
    """Load the tokenizer."""
    settings: Settings = model.attrs["settings"]
    if settings.loaded is not None:
        hf_model, tokenizer = settings.loaded
        config = canonical_config(hf_model.config, settings.source, settings.component)
    else:
        _, config = read_config(settings.source, settings.transformer_config, settings.component)
        tokenizer = load_tokenizer(settings.source, settings.tokenizer_config, settings.component)
    model.shims[0]._model = PieceTokenizer.from_transformers(tokenizer, settings.source)
    model.attrs["max_positions"] = config.n_positions


def _forward(model: Model, X: Request | list[Doc], is_train: bool) -> tuple[Packed, Callable]:
    """Documents alone run at full depth with all tasks."""
    request = X if isinstance(X, Request) else Request(list(X))
    pieces = request.run.pieces or encode(model, request.docs)
    return Packed(pieces, request.run), lambda _: []
