"""The bytes of a multi-exit module: safetensors, with everything else in their header.

What is read is checked before memory is taken for it: the header says which tensors there are, and
they have to be those of the encoder and off-ramps that it describes; a checksum has to be right.
"""

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import safetensors.torch
import torch

from ..about import __version__
from ..errors import Errors
from .encoders import Encoder, EncoderConfig
from .engine import MultiExitModule
from .offramps import OffRamps

# The header's entry that says what is stored beside the tensors. One entry: their order is random.
_ABOUT = "multi_exit"
FORMAT = 2
_LONGEST_HEADER = 2**24  # what is longer is none
_MOST_LAYERS = 1024


class WrongWeights(ValueError):
    """Bytes that are no weights of a multi-exit transformer, or damaged ones."""


def write_module(module: MultiExitModule) -> bytes:
    """RETURNS (bytes): Weights, shapes, classes and settings of a module."""
    encoder, offramps = module.encoder, module.offramps
    about = {
        "format": FORMAT,
        "version": __version__,
        "encoder": encoder.config.to_dict(),
        "classes": offramps.classes,
        "context": offramps.context,
        "settings": module.settings,
    }
    state = {n: t.detach().cpu().contiguous() for n, t in module.state_dict().items()}
    parts = [memoryview(state[name].numpy().reshape(-1)).cast("B") for name in sorted(state)]
    text = json.dumps({**about, "checksum": _checksum(about, parts)})
    return safetensors.torch.save(state, metadata={_ABOUT: text})


def read_module(data: bytes) -> MultiExitModule:
    """data (bytes): What write_module gave.
    RETURNS (MultiExitModule): The module.
    RAISES (WrongWeights): If the bytes are something else, damaged, or of a later version.
    """
    about, tensors, start = _read_header(data)
    module = _shapes(about, tensors)
    _check_checksum(data, about, tensors, start)
    try:
        state = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError) as error:
        raise WrongWeights(Errors.E058.format(problem=str(error))) from None
    if not all(math.isfinite(float(t.sum())) for t in state.values() if t.is_floating_point()):
        raise WrongWeights(Errors.E059)
    module.load_state_dict(state, assign=True)
    return module


def _read_header(data: bytes) -> tuple[dict[str, Any], dict[str, Any], int]:
    """RETURNS (Tuple[Dict, Dict, int]): What is stored beside the tensors; type, shape and place of
    each of these; and where the tensors begin.
    """
    # A safetensors file is the length of its header, the header and the tensors.
    size = int.from_bytes(data[:8], "little")
    if not 0 < size <= min(_LONGEST_HEADER, len(data) - 8):
        problem = "they begin with no header of safetensors, or are cut short"
        raise WrongWeights(Errors.E058.format(problem=problem))
    try:
        header = json.loads(data[8 : 8 + size])
        metadata = header.pop("__metadata__")
        about = json.loads(metadata[_ABOUT])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        problem = "their header is not that of an earlyexit_transformer"
        raise WrongWeights(Errors.E058.format(problem=problem)) from None
    if not isinstance(about.get("format"), int):
        raise WrongWeights(Errors.E050)
    if about["format"] > FORMAT:
        raise WrongWeights(Errors.E060.format(found=about.get("version"), here=__version__))
    return about, header, 8 + size


def _shapes(about: Mapping[str, Any], tensors: Mapping[str, Any]) -> MultiExitModule:
    """The module without its weights.

    RAISES (WrongWeights): If it would not have these tensors.
    """
    try:
        config = EncoderConfig(**about["encoder"])
        classes = {task: [str(name) for name in names] for task, names in about["classes"].items()}
        per_layer: Sequence[Sequence[Any]] = (config.blocks, config.windows, config.thetas)
        plausible = (
            0 < config.n_layers <= _MOST_LAYERS
            and all(len(each) in (0, config.n_layers) for each in per_layer)
            and all(0 <= block < config.n_layers for block in config.blocks)
        )
        if not plausible:
            raise ValueError(f"it claims {config.n_layers:,} layers")
        with torch.device("meta"):
            encoder = Encoder(config)
            offramps = OffRamps(classes, config.n_layers, config.hidden, about["context"])
            module = MultiExitModule(encoder, offramps, about["settings"])
        found = {name: list(entry["shape"]) for name, entry in tensors.items()}
    except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        problem = f"their header describes no encoder ({str(error) or type(error).__name__})"
        raise WrongWeights(Errors.E058.format(problem=problem)) from None
    expected = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            problem = (
                f"the tensor {name} has the shape {found.get(name, 'nothing')}, and their header "
                f"describes {expected.get(name, 'nothing')}"
            )
            raise WrongWeights(Errors.E058.format(problem=problem))
    return module


def _check_checksum(
    data: bytes, about: Mapping[str, Any], tensors: Mapping[str, Any], start: int
) -> None:
    view = memoryview(data)
    try:
        places = [tensors[name]["data_offsets"] for name in sorted(tensors)]
        parts = [view[start + first : start + last] for first, last in places]
        if len(data) - start != sum(len(part) for part in parts):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise WrongWeights(Errors.E058.format(problem="they are cut short")) from None
    described = {key: value for key, value in about.items() if key != "checksum"}
    if _checksum(described, parts) != about.get("checksum"):
        raise WrongWeights(Errors.E061)


def _checksum(about: Mapping[str, Any], parts: Sequence[memoryview]) -> str:
    checksum = zlib.crc32(json.dumps(about, sort_keys=True).encode("utf8"))
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return f"{checksum:08x}"
