"""The thinc layer from packed pieces to scores at exit. Its shim holds encoder and off-ramps."""

import functools
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from thinc.api import Model

from ..errors import Errors
from .costs import full_depth_macs
from .encoders import canonical_config, canonical_encoder, load_encoder
from .engine import MultiExitModule, run
from .kernels.memory import keep_freed_memory
from .offramps import OffRamps
from .output import MultiExitOutput, OutputGradient, Packed
from .self_sampling import SampledExit
from .settings import Settings
from .shim import MultiExitShim

Backprop = Callable[[OutputGradient], list]


def multi_exit_encoder(
    settings: Settings,
    encoder_lr_scale: float,
    offramp_lr_scale: float,
    mixed_precision: bool = False,
) -> Model[Packed, MultiExitOutput]:
    """Takes the pieces of documents through an encoder with off-ramps.

    settings (Settings): What the weights depend on.
    encoder_lr_scale, offramp_lr_scale, mixed_precision: See architecture.MultiExitTransformer.
    RAISES (ValueError): If a learning rate scale is negative.
    """
    for setting, value in (
        ("encoder_lr_scale", encoder_lr_scale),
        ("offramp_lr_scale", offramp_lr_scale),
    ):
        if not value >= 0:
            raise ValueError(Errors.E018.format(setting=setting, expected=">= 0", value=value))
    return Model(
        "multi_exit_encoder",
        _forward,
        init=_init,
        shims=[MultiExitShim(settings, encoder_lr_scale, offramp_lr_scale, mixed_precision)],
        dims={"nO": None},
        attrs={
            "settings": settings,
            "dropout_rate": 0.0,  # set by thinc's set_dropout_rate
            "classes": {},
        },
    )


def shim_of(model: Model) -> MultiExitShim:
    """RETURNS (MultiExitShim): Of a multi_exit_encoder."""
    return cast(MultiExitShim, model.shims[0])


def _init(model: Model, X: Any = None, Y: Any = None) -> None:
    """Load the encoder's weights and build off-ramps for model.attrs["classes"]."""
    settings: Settings = model.attrs["settings"]
    extras = settings.align_exits, settings.catch_up
    if settings.loaded is not None:
        hf_model, _ = settings.loaded
        config = canonical_config(hf_model.config, settings.source, settings.component)
        encoder = canonical_encoder(hf_model, config, *extras)
    else:
        encoder = load_encoder(
            settings.source, settings.transformer_config, *extras, settings.component
        )
    config = encoder.config
    offramps = OffRamps(
        model.attrs["classes"], config.n_layers, config.hidden, settings.offramp_context
    )
    shim_of(model).module = MultiExitModule(encoder, offramps, settings.to_dict())
    model.set_dim("nO", config.hidden, force=True)


def _forward(model: Model, X: Packed, is_train: bool) -> tuple[MultiExitOutput, Backprop]:
    shim = shim_of(model)
    if shim.module is None:
        settings: Settings = model.attrs["settings"]
        raise ValueError(Errors.E004.format(name=settings.name, component=settings.component))
    if is_train:
        shim.module.offramps.dropout.p = model.attrs["dropout_rate"]
        return _train(shim, X, model.attrs["settings"])
    module = shim.for_prediction(X.run.precision)
    with torch.inference_mode():
        return _predict(module, X, model.attrs["settings"]), lambda _: []


def _predict(module: MultiExitModule, X: Packed, settings: Settings) -> MultiExitOutput:
    if next(module.parameters()).device.type == "cpu":
        keep_freed_memory()
    output = _empty_output(module, X)
    if X.run.every_layer:
        shape = (module.encoder.config.n_layers, *output.scores.shape)
        output.every_layer = np.zeros(shape, dtype=np.float32)
    for units in X.pieces.batches(X.run.max_rows):
        batch, out = run(
            module,
            X.pieces,
            units,
            X.run.criterion,
            list(output.slices),
            rules=settings.rules,
            every_offramp=X.run.every_layer,
            states=X.run.states,
        )
        words = batch.pieces_word
        if output.every_layer is not None:
            for layer, in_batch, scores in out.layer_scores:
                scored = words[in_batch.cpu().numpy()]
                output.every_layer[layer - 1, scored] = scores.cpu().numpy()
        if output.states is not None and out.states is not None:
            output.states[batch.upload(batch.pieces_row)] = out.states
        output.scores[words] = out.scores.cpu().numpy()
        output.exit_layer[words] = out.exit_layer
        output.uncertainty[words] = out.uncertainty.cpu().numpy()
        output.macs[units] = out.macs
    return output


def _train(shim: MultiExitShim, X: Packed, settings: Settings) -> tuple[MultiExitOutput, Backprop]:
    module = cast(MultiExitModule, shim.module)
    output = _empty_output(module, X)
    if X.pieces.n_units:
        units = np.argsort(np.diff(X.pieces.unit_starts), kind="stable")
        criterion = X.run.criterion
        if X.run.sampler is not None:
            criterion = X.run.sampler(len(units), module.encoder.config.n_layers)
        module.train()
        try:
            batch, out = run(
                module,
                X.pieces,
                units,
                criterion,
                list(output.slices),
                rules=settings.rules,
                every_offramp=True,
                states=X.run.states,
                mixed_precision=shim.mixed_precision,
            )
        finally:  # also when interrupted, or dropout would go on at prediction
            module.eval()
        if X.run.sampler is not None:
            sampled = cast(SampledExit, criterion)
            X.run.sampler.follow(sampled, out.macs, output.macs_full[units])
        words = batch.pieces_word
        index = batch.upload(words)
        output.layer_scores = [(layer, index[w], s) for layer, w, s in out.layer_scores]
        output.exit_layer[words] = out.exit_layer
        output.macs[units] = out.macs
        if out.states is not None:
            output.states = out.states[batch.upload(np.argsort(batch.pieces_row))]
    return output, functools.partial(_backprop, output)


def _backprop(output: MultiExitOutput, dY: OutputGradient) -> list:
    """Add to the weights' gradients what a gradient of the output comes to."""
    tensors, gradients = [], []
    if dY.layer_scores is not None:
        tensors += [scores for _, _, scores in output.layer_scores]
        gradients += list(dY.layer_scores)
    if dY.states is not None and output.states is not None:
        tensors.append(output.states)
        gradients.append(dY.states)
    if tensors:
        torch.autograd.backward(tensors, gradients)
    return []


def _empty_output(module: MultiExitModule, X: Packed) -> MultiExitOutput:
    pieces, tasks = X.pieces, X.run.tasks
    states = None
    if X.run.states:
        width = module.encoder.config.hidden
        states = next(module.parameters()).new_zeros(len(pieces.ids), width)
    slices, _ = module.offramps.select(list(module.offramps.classes) if tasks is None else tasks)
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
            module.offramps.width * n_classes,
        ),
        layer_scores=[],
        states=states,
    )
