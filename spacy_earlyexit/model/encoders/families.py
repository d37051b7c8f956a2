"""From Hugging Face model families to the canonical encoder: one table of what differs."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig

from ...errors import Errors
from .layers import Encoder, EncoderConfig

Names = str | tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """How a family names its weights and settings.

    weights (Mapping[Names, Names]): Canonical parameters (without .weight / .bias) and the
        family's. Where one side has several they are one matrix on the other, one behind the
        other. `{i}` stands for the layer, `{group}` and `{inner}` for where it is in its group.
    settings (Mapping[str, str]): Canonical setting to the name in the family's config.
    derived (Callable): Canonical settings that are made of several, or are the family's way.
    """

    weights: Mapping[Names, Names]
    settings: Mapping[str, str]
    derived: Callable[[Any], dict[str, Any]]


_BERT_SETTINGS = {
    "n_vocab": "vocab_size",
    "n_types": "type_vocab_size",
    "n_positions": "max_position_embeddings",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "hidden": "hidden_size",
    "inner": "intermediate_size",
    "activation": "hidden_act",
    "norm_eps": "layer_norm_eps",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
}
_EMBEDDINGS: dict[Names, Names] = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
}


def _layers(prefix: str, **names: str) -> dict[Names, Names]:
    """The weights of layers with separate queries, keys and values."""
    theirs = {name: f"{prefix}.{there}" for name, there in names.items()}
    key_value = (theirs.pop("key"), theirs.pop("value"))
    return {
        "layers.{i}.key_value": key_value,
        **{f"layers.{{i}}.{name}": there for name, there in theirs.items()},
    }


_BERT_WEIGHTS = _EMBEDDINGS | _layers(
    "encoder.layer.{i}",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    output="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    inner="intermediate.dense",
    outer="output.dense",
    norm="output.LayerNorm",
)


def _bert(config: Any) -> dict[str, Any]:
    return {}


def _roberta(config: Any) -> dict[str, Any]:
    first = config.pad_token_id + 1
    return {"first_position": first, "n_positions": config.max_position_embeddings - first}


def _electra(config: Any) -> dict[str, Any]:
    projects = config.embedding_size != config.hidden_size
    return {"embedding": config.embedding_size if projects else None}


def _distilbert(config: Any) -> dict[str, Any]:
    return {"norm_eps": 1e-12, "output_dropout": 0.0}


def _albert(config: Any) -> dict[str, Any]:
    inner = config.inner_group_num
    per_group = config.num_hidden_layers / config.num_hidden_groups
    groups = [int(i / per_group) for i in range(config.num_hidden_layers)]
    return {
        "n_layers": len(groups) * inner,
        "blocks": [group * inner + i for group in groups for i in range(inner)],
        "embedding": config.embedding_size,
        "embedding_dropout": config.hidden_dropout_prob,
        "output_dropout": config.hidden_dropout_prob,
        "hidden_dropout": 0.0,
    }


def _modernbert(config: Any) -> dict[str, Any]:
    every = config.global_attn_every_n_layers
    is_global = [i % every == 0 for i in range(config.num_hidden_layers)]
    far, near = config.global_rope_theta, config.local_rope_theta
    return {
        "pre_norm": True,
        "gated": True,
        "hidden_dropout": 0.0,
        "windows": [None if g else config.local_attention // 2 for g in is_global],
        "thetas": [far if g or near is None else near for g in is_global],
    }


_ROBERTA = Family(_BERT_WEIGHTS, _BERT_SETTINGS, _roberta)
FAMILIES = {
    "bert": Family(_BERT_WEIGHTS, _BERT_SETTINGS, _bert),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "electra": Family({**_BERT_WEIGHTS, "project": "embeddings_project"}, _BERT_SETTINGS, _electra),
    "distilbert": Family(
        _EMBEDDINGS
        | _layers(
            "transformer.layer.{i}",
            query="attention.q_lin",
            key="attention.k_lin",
            value="attention.v_lin",
            output="attention.out_lin",
            attention_norm="sa_layer_norm",
            inner="ffn.lin1",
            outer="ffn.lin2",
            norm="output_layer_norm",
        ),
        {
            "n_vocab": "vocab_size",
            "n_positions": "max_position_embeddings",
            "n_layers": "n_layers",
            "n_heads": "n_heads",
            "hidden": "dim",
            "inner": "hidden_dim",
            "activation": "activation",
            "hidden_dropout": "dropout",
            "attention_dropout": "attention_dropout",
        },
        _distilbert,
    ),
    "albert": Family(
        {**_EMBEDDINGS, "project": "encoder.embedding_hidden_mapping_in"}
        | _layers(
            "encoder.albert_layer_groups.{group}.albert_layers.{inner}",
            query="attention.query",
            key="attention.key",
            value="attention.value",
            output="attention.dense",
            attention_norm="attention.LayerNorm",
            inner="ffn",
            outer="ffn_output",
            norm="full_layer_layer_norm",
        ),
        _BERT_SETTINGS,
        _albert,
    ),
    "modernbert": Family(
        {
            "words": "embeddings.tok_embeddings",
            "norm": "embeddings.norm",
            ("layers.{i}.query", "layers.{i}.key_value"): "layers.{i}.attn.Wqkv",
            "layers.{i}.output": "layers.{i}.attn.Wo",
            "layers.{i}.attention_norm": "layers.{i}.attn_norm",
            "layers.{i}.inner": "layers.{i}.mlp.Wi",
            "layers.{i}.outer": "layers.{i}.mlp.Wo",
            "layers.{i}.norm": "layers.{i}.mlp_norm",
            "final_norm": "final_norm",
        },
        {
            "n_vocab": "vocab_size",
            "n_positions": "max_position_embeddings",
            "n_layers": "num_hidden_layers",
            "n_heads": "num_attention_heads",
            "hidden": "hidden_size",
            "inner": "intermediate_size",
            "activation": "hidden_activation",
            "norm_eps": "norm_eps",
            "attention_dropout": "attention_dropout",
            "embedding_dropout": "embedding_dropout",
            "output_dropout": "attention_dropout",
            "inner_dropout": "mlp_dropout",
            "attention_bias": "attention_bias",
            "inner_bias": "mlp_bias",
            "norm_bias": "norm_bias",
        },
        _modernbert,
    ),
}
SUPPORTED = ", ".join(sorted(FAMILIES))

# Any of these files is enough for a tokenizer.
_TOKENIZERS = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
)
# Settings of a checkpoint that would make another encoder of it: the only value supported.
_ONLY = {"position_embedding_type": "absolute", "is_decoder": False, "rope_scaling": None}


def read_config(
    name: str, overrides: dict[str, Any], component: str = "transformer"
) -> tuple[PretrainedConfig, EncoderConfig]:
    """The config of an encoder, without its weights.

    name (str): Hub name or folder of a Hugging Face encoder.
    overrides (Dict[str, Any]): Settings to change, in the family's own names, such as
        hidden_dropout_prob.
    component (str): The component that wants it, for messages.
    RETURNS (Tuple[PretrainedConfig, EncoderConfig]): The family's and the canonical one.
    RAISES (ValueError): If the family, or a setting of this encoder, is not supported.
    RAISES (OSError): If the encoder can't be found or read.
    """
    with explained(name, component):
        hf_config = AutoConfig.from_pretrained(name, **overrides)
    return hf_config, canonical_config(hf_config, name, component)


def canonical_config(
    hf_config: PretrainedConfig, name: str, component: str = "transformer"
) -> EncoderConfig:
    """The canonical config of an encoder.

    hf_config (PretrainedConfig): The family's.
    name, component: See read_config.
    RAISES (ValueError): If the family, or a setting of this encoder, is not supported.
    """
    family = FAMILIES.get(hf_config.model_type)
    if family is None:
        raise ValueError(
            Errors.E002.format(
                name=name, family=hf_config.model_type, supported=SUPPORTED, component=component
            )
        )
    for setting, expected in _ONLY.items():
        found = getattr(hf_config, setting, expected)
        if found != expected:
            raise ValueError(
                Errors.E045.format(
                    name=name, setting=setting, expected=expected, value=found, component=component
                )
            )
    settings = {ours: getattr(hf_config, theirs) for ours, theirs in family.settings.items()}
    settings |= {"family": hf_config.model_type, **family.derived(hf_config)}
    return EncoderConfig(**settings)


def load_tokenizer(name: str, overrides: dict[str, Any], component: str = "transformer") -> Any:
    """The tokenizer of an encoder.

    name, component: See read_config.
    overrides (Dict[str, Any]): Passed on to AutoTokenizer.
    RETURNS (PreTrainedTokenizerBase): The tokenizer.
    RAISES (OSError): If it can't be found or read.
    """
    with explained(name, component):
        return AutoTokenizer.from_pretrained(name, **overrides)


def load_encoder(
    name: str,
    overrides: dict[str, Any],
    aligned: bool = False,
    catch_up: int = 0,
    component: str = "transformer",
) -> Encoder:
    """Load pretrained weights into a canonical encoder.

    name, overrides, component: See read_config.
    aligned (bool), catch_up (int): See EncoderConfig.
    RETURNS (Encoder): The encoder with its weights, in float32.
    RAISES (ValueError, OSError): See read_config.
    """
    hf_config, config = read_config(name, overrides, component)
    with explained(name, component):
        hf_model = AutoModel.from_pretrained(name, config=hf_config, torch_dtype=torch.float32)
    return canonical_encoder(hf_model, config, aligned, catch_up)


def canonical_encoder(
    hf_model: Any, config: EncoderConfig, aligned: bool = False, catch_up: int = 0
) -> Encoder:
    """A canonical encoder with the weights of a family's model.

    hf_model (PreTrainedModel): The family's.
    config (EncoderConfig): Its canonical config.
    aligned (bool), catch_up (int): See EncoderConfig.
    RETURNS (Encoder): The encoder, in float32.
    """
    encoder = Encoder(replace(config, aligned=aligned))
    state = canonical_state(hf_model.state_dict(), hf_model.config, encoder)
    if aligned:
        state["align"] = encoder.align.detach()
    encoder.load_state_dict(state)
    encoder.set_catch_up(catch_up)
    return encoder


@contextmanager
def explained(name: str, component: str) -> Iterator[None]:
    """Turn what the libraries raise when an encoder can't be read into a message that says what is
    wrong with its folder.

    RAISES (OSError): In place of any other error.
    """
    problem = _problem(Path(name))
    if problem:  # the libraries would guess, or try the hub
        raise OSError(Errors.E001.format(name=name, error=problem, component=component))
    try:
        yield
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or repr(error)
        raise OSError(Errors.E001.format(name=name, error=reason, component=component)) from error


def _problem(folder: Path) -> str:
    """What is wrong with an encoder's folder, as far as its files say. Nothing: an empty string."""
    if not folder.exists():
        return ""
    if not folder.is_dir():
        return "this is a file, not a folder"
    if (folder / "config.cfg").is_file():
        return "this folder is a spaCy pipeline, not an encoder"
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        if (folder / file).is_file():
            try:
                json.loads((folder / file).read_text(encoding="utf8"))
            except (ValueError, RecursionError):
                return f"{file} is not valid JSON"
    if not (folder / "config.json").is_file():
        return "config.json is missing"
    if not any((folder / file).is_file() for file in _TOKENIZERS):
        return f"the tokenizer is missing ({', '.join(_TOKENIZERS)})"
    weights = [file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin")]
    if not weights:
        return "the weights are missing (model.safetensors or pytorch_model.bin)"
    for path in weights:
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, framework="pt") as tensors:
                    tensors.keys()
            except Exception:
                return f"{path.name} is damaged or cut short"
    return ""


def canonical_state(
    state: Mapping[str, Tensor], hf_config: PretrainedConfig, encoder: Encoder
) -> dict[str, Tensor]:
    """Weights of a Hugging Face encoder under the names of the canonical one.

    state (Mapping[str, Tensor]): By the family's names.
    hf_config (PretrainedConfig): The family's config.
    encoder (Encoder): Gives names and shapes.
    RETURNS (Dict[str, Tensor]): By our names.
    """
    sizes = {name: len(weight) for name, weight in encoder.state_dict().items()}
    group_size = getattr(hf_config, "inner_group_num", 1)
    canonical: dict[str, Tensor] = {}
    for ours, theirs in FAMILIES[hf_config.model_type].weights.items():
        for i in range(len(encoder.layers)) if "{i}" in str(ours) else [0]:
            at = {"i": i, "group": i // group_size, "inner": i % group_size}
            for kind in ("weight", "bias"):
                names = [name for name in _names(ours, kind, at) if name in sizes]
                if names:
                    parts = [state[name] for name in _names(theirs, kind, at)]
                    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
                    split = whole.split([sizes[name] for name in names])
                    canonical.update(zip(names, split, strict=True))
    return canonical


def _names(names: Names, kind: str, at: Mapping[str, int]) -> list[str]:
    each = (names,) if isinstance(names, str) else names
    return [f"{name.format(**at)}.{kind}" for name in each]
