"""The registered architecture: documents -> pieces -> packed multi-exit forward pass."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from spacy.tokens import Doc
from thinc.api import Model
from torch import Tensor
from transformers import AutoTokenizer

from .criteria import ExitCriterion
from .encoders import load_encoder
from .engine import MultiExitModule, full_depth_macs, run
from .errors import Errors
from .offramps import OffRamps
from .pieces import Pieces, PieceTokenizer, piece_encoder
from .shim import MultiExitShim
from .spans import SpanGetter


@dataclass
class Request:
    """What to run: the documents, and how far.

    criterion (Optional[ExitCriterion]): Who leaves when; None for full depth.
    sampler (Optional[Callable]): Instead of a criterion, makes one for a number of units (stage 2).
    tasks (Optional[Sequence[str]]): The tasks that are scored and rule the exit; None for all.
    max_rows (int): The budget of rows of one batch in prediction.
    """

    docs: list[Doc]
    criterion: ExitCriterion | None = None
    sampler: Callable[[int], ExitCriterion] | None = None
    tasks: Sequence[str] | None = None
    max_rows: int = 4096


@dataclass
class MultiExitOutput:
    """What the forward pass says about the words of `pieces`, in their order.

    slices (Mapping[str, slice]): Where each task's classes lie in the scores.
    scores (ndarray): At each word's exit, shape (n_words, n_classes).
    exit_layer (ndarray): From 1, shape (n_words,).
    uncertainty (ndarray): At each word's exit, in [0, 1], shape (n_words,).
    macs, macs_full (ndarray): Multiply-accumulates spent on each unit and at full depth,
        shape (n_units,).
    layer_scores (List[Tuple[int, Tensor, Tensor]]): In training: layer, words, scores with graph.
    """

    pieces: Pieces
    slices: Mapping[str, slice]
    scores: np.ndarray
    exit_layer: np.ndarray
    uncertainty: np.ndarray
    macs: np.ndarray
    macs_full: np.ndarray
    layer_scores: list[tuple[int, Tensor, Tensor]]


def MultiExitTransformer(
    name: str,
    get_spans: SpanGetter,
    tokenizer_config: dict[str, Any],
    transformer_config: dict[str, Any],
    encoder_lr_scale: float,
    offramp_lr_scale: float,
) -> Model[list[Doc] | Request, MultiExitOutput]:
    """A pretrained encoder with an off-ramp per layer
    (registered as spacy-earlyexit.MultiExitTransformer.v1).

    name (str): Hub name or folder of the encoder; read at initialisation only.
    get_spans (SpanGetter): Proposes the units that are encoded and finished.
    tokenizer_config, transformer_config (Dict[str, Any]): Passed on to AutoTokenizer and AutoConfig
        when the encoder is loaded, for example {"hidden_dropout_prob": 0.2}.
    encoder_lr_scale, offramp_lr_scale (float): Factors on the optimiser's learning rate. The
        paper's code gives off-ramps ten times the encoder's rate.
    RETURNS (Model): The model. Its shapes are known after `initialize` or `from_bytes`.
    RAISES (ValueError): If a setting is impossible.
    """
    for setting, value in (
        ("encoder_lr_scale", encoder_lr_scale),
        ("offramp_lr_scale", offramp_lr_scale),
    ):
        if value < 0:
            raise ValueError(Errors.E019.format(setting=setting, expected=">= 0", value=value))
    return Model(
        "multi_exit_transformer",
        _forward,
        init=_init,
        layers=[piece_encoder(get_spans)],
        shims=[MultiExitShim(encoder_lr_scale, offramp_lr_scale)],
        dims={"nO": None},
        attrs={
            "name": name,
            "tokenizer_config": tokenizer_config,
            "transformer_config": transformer_config,
            "dropout_rate": 0.0,  # set by thinc's set_dropout_rate
            "classes": {},
        },
    )


def module_of(model: Model) -> MultiExitModule:
    """The torch module inside the thinc model.

    RAISES (ValueError): If it has no weights yet.
    """
    module = cast(MultiExitShim, model.shims[0]).module
    if module is None:
        raise ValueError(Errors.E004.format(name=model.attrs["name"]))
    return module


def _init(model: Model, X: Any = None, Y: Any = None) -> None:
    """Load the encoder's weights and build off-ramps for model.attrs["classes"]."""
    name = model.attrs["name"]
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **model.attrs["tokenizer_config"])
    except (OSError, ValueError, ImportError) as error:  # no folder, no config, no tokenizer
        raise _not_found(name, error) from error
    try:
        encoder = load_encoder(name, model.attrs["transformer_config"])
    except OSError as error:
        raise _not_found(name, error) from error
    offramps = OffRamps(
        model.attrs["classes"],
        encoder.config.n_layers,
        encoder.config.hidden,
    )
    cast(MultiExitShim, model.shims[0]).module = MultiExitModule(encoder, offramps)
    pieces = model.layers[0]
    pieces.shims[0]._model = PieceTokenizer.from_transformers(tokenizer, name)
    pieces.attrs["max_positions"] = encoder.config.n_positions
    model.set_dim("nO", encoder.config.hidden, force=True)


def _not_found(name: str, error: Exception) -> OSError:
    reason = str(error).strip().split("\n")[0]
    return OSError(Errors.E001.format(name=name, error=reason, component="transformer"))


def _forward(
    model: Model, X: list[Doc] | Request, is_train: bool
) -> tuple[MultiExitOutput, Callable[[Tensor], list]]:
    """A list of documents runs at full depth with all tasks; a Request says otherwise."""
    request = X if isinstance(X, Request) else Request(X)
    module = module_of(model)
    pieces = model.layers[0].predict(request.docs)
    tasks = list(module.offramps.classes) if request.tasks is None else list(request.tasks)
    if is_train:
        module.offramps.dropout.p = model.attrs["dropout_rate"]
        return _train(module, pieces, request, tasks)
    with torch.inference_mode():
        return _predict(module, pieces, request, tasks), lambda _: []


def _predict(
    module: MultiExitModule, pieces: Pieces, request: Request, tasks: list[str]
) -> MultiExitOutput:
    output = _empty_output(module, pieces, tasks)
    for units in pieces.batches(request.max_rows):
        batch, out = run(module, pieces, units, request.criterion, tasks)
        words = batch.pieces_word
        output.scores[words] = out.scores.cpu().numpy()
        output.exit_layer[words] = out.exit_layer
        output.uncertainty[words] = out.uncertainty.cpu().numpy()
        output.macs[units] = out.macs
    return output


def _train(
    module: MultiExitModule, pieces: Pieces, request: Request, tasks: list[str]
) -> tuple[MultiExitOutput, Callable[[Tensor], list]]:
    output = _empty_output(module, pieces, tasks)
    if pieces.n_units:
        units = np.argsort(np.diff(pieces.unit_starts), kind="stable")
        criterion = request.criterion
        if request.sampler is not None:
            criterion = request.sampler(len(units))
        module.train()
        batch, out = run(module, pieces, units, criterion, tasks, every_offramp=True)
        module.eval()
        words = batch.pieces_word
        index = batch.upload(words)
        output.layer_scores = [(layer, index[w], s) for layer, w, s in out.layer_scores]
        output.exit_layer[words] = out.exit_layer
        output.macs[units] = out.macs

    def backprop(loss: Tensor) -> list:
        torch.autograd.backward(loss)
        return []

    return output, backprop


def _empty_output(module: MultiExitModule, pieces: Pieces, tasks: list[str]) -> MultiExitOutput:
    slices, _ = module.offramps.select(tasks)
    n_classes = sum(part.stop - part.start for part in slices.values())
    n_words = len(pieces.word_row)
    return MultiExitOutput(
        pieces=pieces,
        slices=slices,
        scores=np.zeros((n_words, n_classes), dtype=np.float32),
        exit_layer=np.zeros(n_words, dtype=np.int64),
        uncertainty=np.zeros(n_words, dtype=np.float32),
        macs=np.zeros(pieces.n_units),
        macs_full=full_depth_macs(
            module.encoder.config,
            np.diff(pieces.unit_starts),
            np.diff(pieces.word_starts),
            n_classes,
        ),
        layer_scores=[],
    )
