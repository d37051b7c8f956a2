"""Finished pipelines on the packed engine: the same weights, the same labels, sooner. No data."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from spacy.language import Language
from spacy.training import Example
from spacy.util import replace_model_node
from spacy_transformers import Transformer
from spacy_transformers.layers import TransformerModel
from thinc.api import Model
from transformers import AutoTokenizer

from ..errors import Errors
from ..model.architecture import (
    MultiExitTransformer,
    set_classes,
    set_width,
    settings_of,
    states_at_exit,
)
from ..model.encoders import FAMILIES, SUPPORTED
from ..model.shim import PRECISIONS
from ..pipeline.transformer import EarlyExitTransformer

OWN_COPY = "spacy-transformers.Tok2VecTransformer."


def accelerate(nlp: Language, precision: str = "float32") -> Language:
    """Replace the transformers of a finished pipeline by ours with the same weights, those that
    components listen to and those that a component has for itself. All components say the same, but
    for what rounding does. Nothing is trained, and nothing leaves early; `convert` adds exits.

    nlp (Language): A pipeline that uses spacy-transformers; changed.
    precision (str): "float32" or "int8", see the component's setting. Transformers that a component
        has for itself stay in float32.
    RETURNS (Language): The pipeline.
    RAISES (ValueError): If there is nothing to replace, or an encoder is not supported.
    """
    if precision not in PRECISIONS:  # before anything is changed
        expected = f"one of {', '.join(PRECISIONS)}"
        raise ValueError(
            Errors.E018.format(setting="precision", expected=expected, value=precision)
        )
    stock: dict[str, Any] = {
        name: pipe for name, pipe in nlp.components if isinstance(pipe, Transformer)
    }
    pipes: dict[str, Any] = dict(nlp.components)
    own = {
        name: found
        for name, pipe in pipes.items()
        if name not in stock and (found := list(_own_copies(pipe)))
    }
    if not stock and not own:
        components = [f"{n} ({nlp.get_pipe_meta(n).factory})" for n in nlp.component_names]
        raise ValueError(Errors.E090.format(components=", ".join(components) or "nothing"))
    for name, transformer in stock.items():
        check_family(name, transformer.model)
    for name, copies in own.items():
        for _, model in copies:
            check_family(name, model)
    for name, transformer in stock.items():
        block = nlp.config.interpolate()["components"][name]
        config = {
            "tasks": [],
            "precision": precision,
            "max_batch_items": block["max_batch_items"],
            "set_extra_annotations": block["set_extra_annotations"],
            "model": {
                "@architectures": "spacy-earlyexit.MultiExitTransformer.v1",
                **_model_block(block["model"]),
            },
        }
        example = Example(nlp.make_doc("x"), nlp.make_doc("x"))
        replace_stock(nlp, name, config, loaded_objects(transformer.model), [example])
    for name, copies in own.items():
        blocks = list(_own_blocks(nlp.get_pipe_config(name)))
        for (parent, model), block in zip(copies, blocks, strict=True):
            settings = _model_block(block)
            _replace_copy(pipes[name].model, parent, model, settings)
            for key in ("pooling", "grad_factor"):
                if key in block:
                    settings[key] = block[key]
            block.clear()
            block["@architectures"] = "spacy-earlyexit.Tok2VecMultiExit.v1"
            block.update(settings)
    return nlp


def _model_block(block: Mapping[str, Any]) -> dict[str, Any]:
    """RETURNS (Dict[str, Any]): The settings of a stock model that ours has, too."""
    return {
        "name": block["name"],
        "get_spans": block["get_spans"],
        "tokenizer_config": block["tokenizer_config"],
        "transformer_config": block.get("transformer_config", {}),
        "pieces": "spans",
    }


def _own_copies(pipe: Any) -> Iterator[tuple[Model, Any]]:
    """The transformers that a component has for itself, after `nlp.replace_listeners` or in a
    Tok2VecTransformer.

    YIELDS (Tuple[Model, TransformerModel]): What has it and the layer that splits its output as
        its first two layers; and itself.
    """
    model = getattr(pipe, "model", None)
    for node in model.walk() if isinstance(model, Model) else ():
        if len(node.layers) > 1 and isinstance(node.layers[0], TransformerModel):
            yield node, node.layers[0]


def _replace_copy(model: Model, parent: Model, stock: Any, settings: dict[str, Any]) -> None:
    """model (Model): Of the component.
    parent, stock: See _own_copies.
    settings (Dict[str, Any]): Of the new one; a copy in memory has lost the name of its encoder.
    """
    own = MultiExitTransformer(**{**settings, "get_spans": stock.attrs["get_spans"]})
    settings_of(own).loaded = loaded_objects(stock)
    set_classes(own, {})
    own.initialize()
    settings_of(own).loaded = None
    set_width(own)
    states = states_at_exit(own, None)
    if len(parent.layers) == 2:
        replace_model_node(model, parent, states)
    else:
        parent.layers[:2] = [states]


def _own_blocks(config: Any) -> Iterator[dict[str, Any]]:
    """YIELDS (Dict[str, Any]): The blocks of own transformers in the config of a component."""
    if isinstance(config, dict):
        if str(config.get("@architectures")).startswith(OWN_COPY):
            yield config
        for value in config.values():
            yield from _own_blocks(value)


def check_family(name: str, model: Any) -> None:
    """name (str): A transformer's.
    model (TransformerModel): Its model.
    RAISES (ValueError): If its encoder is not supported.
    """
    family = model.transformer.config.model_type
    if family not in FAMILIES:
        encoder = model.attrs["name"]
        raise ValueError(
            Errors.E034.format(name=name, encoder=encoder, family=family, supported=SUPPORTED)
        )


def loaded_objects(model: Any) -> tuple[Any, Any]:
    """model (TransformerModel): Of spacy-transformers.
    RETURNS (Tuple[PreTrainedModel, PreTrainedTokenizerFast]): What it holds.
    """
    tokenizer = model.tokenizer
    if not tokenizer.is_fast:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True)
    return model.transformer, tokenizer


def replace_stock(
    nlp: Language,
    name: str,
    config: dict[str, Any],
    loaded: tuple[Any, Any],
    examples: Sequence[Example],
) -> EarlyExitTransformer:
    """Put an earlyexit_transformer with the same weights where a stock one is.

    nlp (Language): The pipeline; changed.
    name (str): Of the component.
    config (Dict[str, Any]): Of the new one.
    loaded (Tuple[PreTrainedModel, PreTrainedTokenizerFast]): Encoder and tokenizer.
    examples (Sequence[Example]): To initialise with.
    RETURNS (EarlyExitTransformer): The new component.
    """
    transformer: Any = nlp.replace_pipe(name, "earlyexit_transformer", config=config)
    # The name that is stored stays that of the encoder it came from; what it holds is fine-tuned.
    settings_of(transformer.model).loaded = loaded
    try:
        transformer.initialize(lambda: examples, nlp=nlp)
    finally:
        settings_of(transformer.model).loaded = None
    return transformer
