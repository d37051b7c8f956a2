"""The shim between thinc and the torch module: its bytes and its optimiser steps."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from thinc.api import Optimizer, get_torch_default_device, torch2xp, xp2torch
from thinc.shims import PyTorchShim
from torch import nn

from ..errors import Errors, Warnings
from .encoders import quantize
from .engine import MultiExitModule
from .settings import Settings
from .weights import read_module, write_module

PRECISIONS = ("float32", "int8")


class MultiExitShim(PyTorchShim):
    """Holds a MultiExitModule, or None before it is initialised.

    Differs from thinc's PyTorchShim in four ways: the bytes are a config and safetensors, never a
    pickle, and are checked; the gradient is clipped by one global norm over all parameters;
    learning rate and weight decay depend on what a parameter is; and thinc's Adam, whose step runs
    on one core, is carried out by torch's with thinc's settings.

    settings (Settings): What weights that are loaded have to be trained with.
    encoder_lr_scale, offramp_lr_scale (float): Factors on the optimiser's learning rate.
    mixed_precision (bool): Train with bfloat16 products.
    """

    def __init__(
        self,
        settings: Settings,
        encoder_lr_scale: float = 1.0,
        offramp_lr_scale: float = 1.0,
        mixed_precision: bool = False,
    ):
        super().__init__(None)
        self.settings = settings
        self.mixed_precision = mixed_precision
        self.lr_scales = {"encoder": encoder_lr_scale, "offramps": offramp_lr_scale}
        self._int8: MultiExitModule | None = None  # made of the module when it is first wanted
        # torch's Adam with its moments, and the thinc optimiser whose settings it follows
        self._adam: tuple[torch.optim.AdamW, Optimizer] | None = None

    @property
    def module(self) -> MultiExitModule | None:
        return self._model

    @module.setter
    def module(self, module: MultiExitModule) -> None:
        module.encoder.lay_out()
        self._model = module.to(get_torch_default_device()).eval()
        self._adam = self._int8 = None

    def to_device(self, device_type: str, device_id: int) -> None:
        """Move the weights, if there are any. int8 weights and the optimiser's moments are made
        anew there.

        device_type (str): "cpu" or "gpu".
        device_id (int): Of the GPU.
        """
        if self._model is None:
            return
        self._adam = self._int8 = None
        super().to_device(device_type, device_id)

    def check_precision(self, precision: str) -> None:
        """RAISES (ValueError): If the weights can't be multiplied in this precision."""
        if precision not in PRECISIONS:
            expected = " or ".join(f'"{name}"' for name in PRECISIONS)
            raise ValueError(
                Errors.E018.format(setting="precision", expected=expected, value=precision)
            )
        if precision == "int8" and self._model is not None:
            device = next(self._model.parameters()).device
            if device.type != "cpu":
                component = self.settings.component
                raise ValueError(Errors.E046.format(device=device, component=component))

    def for_prediction(self, precision: str) -> MultiExitModule:
        """The module that predicts.

        precision (str): "float32" or "int8".
        RETURNS (MultiExitModule): The module itself, or one with int8 products that shares its
            off-ramps and is made anew when the weights have changed.
        RAISES (ValueError): If "int8" is asked of weights on a GPU.
        """
        assert self._model is not None
        if precision == "float32":
            return self._model
        self.check_precision(precision)
        if self._int8 is None:
            self._int8 = MultiExitModule(quantize(self._model.encoder), self._model.offramps).eval()
        return self._int8

    def warn_if_slow(self, name: str) -> None:
        """Warn where `mixed_precision` is on and the processor would only imitate bfloat16.

        name (str): The component's.
        """
        if self.mixed_precision and get_torch_default_device().type == "cpu":
            if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
                warnings.warn(Warnings.W002.format(name=name), stacklevel=2)

    def __getstate__(self) -> dict[str, Any]:
        # Optimisers can't be pickled, nor does a copy for another process need them. int8 weights
        # are made again in no time.
        return {**self.__dict__, "_adam": None, "_int8": None}

    def finish_update(self, optimizer: Optimizer) -> None:
        """Apply the collected gradients and clear them.

        optimizer (Optimizer): thinc's. Its grad_clip is the global norm, its L2 spares norms and
            biases. Adam without averages keeps its moments here.
        """
        if self._model is None:
            return
        self._int8 = None
        params = [(n, p) for n, p in self._model.named_parameters() if p.grad is not None]
        if not params:
            return
        if optimizer.grad_clip:
            nn.utils.clip_grad_norm_([p for _, p in params], optimizer.grad_clip)
        if _is_adamw(optimizer):
            self._step(optimizer)
        else:
            self._thinc_step(optimizer, params)

    def _step(self, optimizer: Optimizer) -> None:
        """torch's AdamW with the settings that thinc's has now."""
        if self._adam is None or self._adam[1] is not optimizer:
            self._adam = (_make_adam(self.module, self.lr_scales), optimizer)
        adam = self._adam[0]
        for group in adam.param_groups:
            group["lr"] = optimizer.learn_rate * group["lr_scale"]
            group["weight_decay"] = optimizer.L2 if group["decays"] else 0.0
            group["betas"], group["eps"] = (optimizer.b1, optimizer.b2), optimizer.eps
        adam.step()
        adam.zero_grad(set_to_none=True)

    def _thinc_step(self, optimizer: Optimizer, params: list[tuple[str, nn.Parameter]]) -> None:
        """thinc's own step (averages, RAdam, SGD), parameter by parameter."""
        clip, decay = optimizer.grad_clip, optimizer.L2
        try:
            optimizer.grad_clip = 0.0
            for name, param in params:
                optimizer.L2 = decay if _decays(name) else 0.0
                gradient = cast(torch.Tensor, param.grad)
                data, _ = optimizer(
                    (self.id, name),
                    cast(Any, torch2xp(param.data.contiguous())),
                    cast(Any, torch2xp(gradient.contiguous())),
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
        self._int8 = None
        try:
            yield
        finally:
            self._int8 = None
            for name, data in backup.items():
                own[name].data = data

    def copy(self) -> "MultiExitShim":
        """RETURNS (MultiExitShim): A copy with an id of its own, by which optimisers go."""
        encoder, offramps = self.lr_scales.values()
        copied = MultiExitShim(copy.copy(self.settings), encoder, offramps, self.mixed_precision)
        copied._model = copy.deepcopy(self._model)
        return copied

    def to_bytes(self) -> bytes:
        """RETURNS (bytes): See weights.write_module; empty before there are weights."""
        return b"" if self._model is None else write_module(self._model)

    def from_bytes(self, bytes_data: bytes) -> "MultiExitShim":
        """bytes_data (bytes): What to_bytes gave.
        RAISES (ValueError): If it is something else, or was trained with other settings.
        """
        if not bytes_data:
            self._model = self._adam = self._int8 = None
            return self
        module = read_module(bytes_data)
        self.settings.check(module.settings, source="this pipeline")
        self.module = module
        return self


def _decays(name: str) -> bool:
    """Norms and biases are spared by the weight decay."""
    return not ("norm" in name or name.endswith("bias"))


def _is_adamw(optimizer: Optimizer) -> bool:
    """Whether torch's AdamW does the same. A subclass may do something else."""
    decoupled = optimizer.L2_is_weight_decay or not optimizer.L2
    plain = optimizer.averages is None and not optimizer.use_radam
    is_adam = type(optimizer) is Optimizer and optimizer.b1 > 0 and optimizer.b2 > 0
    return is_adam and plain and decoupled


def _make_adam(module: nn.Module | None, lr_scales: dict[str, float]) -> torch.optim.AdamW:
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, param in module.named_parameters() if module is not None else ():
        groups.setdefault((name.split(".")[0], _decays(name)), []).append(param)
    return torch.optim.AdamW(
        [
            {"params": params, "lr_scale": lr_scales[part], "decays": decays}
            for (part, decays), params in groups.items()
        ],
        fused=True,
    )
