"""The shim between thinc and the torch module: its bytes and its optimiser steps."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import safetensors.torch
import srsly
import torch
from thinc.api import Optimizer, get_torch_default_device, torch2xp, xp2torch
from thinc.shims import PyTorchShim
from torch import nn

from .encoders import Encoder, EncoderConfig
from .engine import MultiExitModule
from .offramps import OffRamps


class MultiExitShim(PyTorchShim):
    """Holds a MultiExitModule, or None before it is initialised.

    Differs from thinc's PyTorchShim in three ways: the bytes are a config and safetensors, never a
    pickle; the gradient is clipped by one global norm over all parameters; learning rate and
    weight decay depend on what a parameter is.

    encoder_lr_scale, offramp_lr_scale (float): Factors on the optimiser's learning rate.
    """

    def __init__(self, encoder_lr_scale: float = 1.0, offramp_lr_scale: float = 1.0):
        super().__init__(None)
        self.lr_scales = {"encoder": encoder_lr_scale, "offramps": offramp_lr_scale}

    @property
    def module(self) -> MultiExitModule | None:
        return self._model

    @module.setter
    def module(self, module: MultiExitModule) -> None:
        self._model = module.to(get_torch_default_device()).eval()

    def finish_update(self, optimizer: Optimizer) -> None:
        """Apply the collected gradients and clear them.

        optimizer (Optimizer): thinc's. Its grad_clip is the global norm, its L2 spares norms and
            biases.
        """
        if self._model is None:
            return
        params = [(n, p) for n, p in self._model.named_parameters() if p.grad is not None]
        if not params:
            return
        clip, decay = optimizer.grad_clip, optimizer.L2
        if clip:
            nn.utils.clip_grad_norm_([p for _, p in params], clip)
        try:
            optimizer.grad_clip = 0.0
            for name, param in params:
                optimizer.L2 = 0.0 if "norm" in name or name.endswith("bias") else decay
                data, _ = optimizer(
                    (self.id, name),
                    cast(Any, torch2xp(param.data)),
                    cast(Any, torch2xp(param.grad)),
                    lr_scale=self.lr_scales[name.split(".")[0]],
                )
                # In place with every thinc ops there is. Assigning the array to param.data would
                # chain each step's views to those of the step before, and never free any.
                stepped = xp2torch(data, device=param.device)
                if stepped.data_ptr() != param.data_ptr():
                    param.data.copy_(stepped)
                param.grad = None
        finally:
            optimizer.grad_clip, optimizer.L2 = clip, decay

    @contextmanager
    def use_params(self, params: dict[Any, Any]) -> Iterator[None]:
        """Use other values (the optimiser's averages) for a while.

        params (Dict): Values by (shim id, parameter name), as the optimiser keeps them.
        """
        own = dict(self._model.named_parameters()) if self._model is not None else {}
        backup = {}
        for name, param in own.items():
            if (self.id, name) in params:
                backup[name] = param.data
                param.data = xp2torch(params[(self.id, name)], device=param.device)
        try:
            yield
        finally:
            for name, data in backup.items():
                own[name].data = data

    def copy(self) -> "MultiExitShim":
        """RETURNS (MultiExitShim): A copy with an id of its own, by which optimisers go."""
        copied = MultiExitShim(*self.lr_scales.values())
        copied._model = copy.deepcopy(self._model)
        return copied

    def to_bytes(self) -> bytes:
        if self._model is None:
            return srsly.msgpack_dumps(None)
        encoder, offramps = self._model.encoder, self._model.offramps
        state = {n: t.detach().cpu().contiguous() for n, t in self._model.state_dict().items()}
        return srsly.msgpack_dumps(
            {
                "encoder": encoder.config.to_dict(),
                "classes": offramps.classes,
                "state": safetensors.torch.save(state),
            }
        )

    def from_bytes(self, bytes_data: bytes) -> "MultiExitShim":
        data = srsly.msgpack_loads(bytes_data)
        if data is None:
            self._model = None
            return self
        config = EncoderConfig(**data["encoder"])
        with torch.device("meta"):  # the shapes only; the weights come from the bytes
            encoder = Encoder(config)
            offramps = OffRamps(data["classes"], config.n_layers, config.hidden)
            module = MultiExitModule(encoder, offramps)
        state = safetensors.torch.load(data["state"])
        # Pipelines of before there were temperatures.
        state.setdefault("offramps.temperature", torch.ones(offramps.temperature.shape))
        module.load_state_dict(state, assign=True)
        self.module = module
        return self
