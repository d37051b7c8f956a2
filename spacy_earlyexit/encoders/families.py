"""From Hugging Face model families to the canonical encoder: one table of what differs."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PretrainedConfig

from ..errors import Errors
from .layers import Encoder, EncoderConfig


@dataclass(frozen=True)
class Family:
    """How a family names its weights and settings.

    weights (Dict[str, str]): Canonical parameter name (without .weight / .bias) to the family's;
        `{i}` stands for the layer.
    config (Callable): The family's config to the canonical one.
    """

    weights: Mapping[str, str]
    config: Callable[[PretrainedConfig], EncoderConfig]


def _bert_config(config: PretrainedConfig) -> EncoderConfig:
    return EncoderConfig(
        family=config.model_type,
        n_vocab=config.vocab_size,
        n_types=config.type_vocab_size,
        n_positions=config.max_position_embeddings,
        first_position=0,
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        hidden=config.hidden_size,
        inner=config.intermediate_size,
        activation=config.hidden_act,
        norm_eps=config.layer_norm_eps,
        hidden_dropout=config.hidden_dropout_prob,
        attention_dropout=config.attention_probs_dropout_prob,
    )


_BERT_WEIGHTS = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
    "layers.{i}.query": "encoder.layer.{i}.attention.self.query",
    "layers.{i}.key": "encoder.layer.{i}.attention.self.key",
    "layers.{i}.value": "encoder.layer.{i}.attention.self.value",
    "layers.{i}.output": "encoder.layer.{i}.attention.output.dense",
    "layers.{i}.attention_norm": "encoder.layer.{i}.attention.output.LayerNorm",
    "layers.{i}.inner": "encoder.layer.{i}.intermediate.dense",
    "layers.{i}.outer": "encoder.layer.{i}.output.dense",
    "layers.{i}.norm": "encoder.layer.{i}.output.LayerNorm",
}

FAMILIES = {"bert": Family(_BERT_WEIGHTS, _bert_config)}
SUPPORTED = ", ".join(sorted(FAMILIES))


def load_encoder(name: str, overrides: dict[str, Any]) -> Encoder:
    """Load pretrained weights into a canonical encoder.

    name (str): Hub name or folder of a Hugging Face encoder.
    overrides (Dict[str, Any]): Settings of its config to change, such as hidden_dropout_prob.
    RETURNS (Encoder): The encoder with its weights, in float32.
    RAISES (ValueError): If the family is not supported.
    RAISES (OSError): If the encoder can't be found.
    """
    hf_config = AutoConfig.from_pretrained(name, **overrides)
    family = FAMILIES.get(hf_config.model_type)
    if family is None:
        raise ValueError(
            Errors.E002.format(name=name, family=hf_config.model_type, supported=SUPPORTED)
        )
    hf_model = AutoModel.from_pretrained(name, config=hf_config, torch_dtype=torch.float32)
    encoder = Encoder(family.config(hf_config))
    encoder.load_state_dict(_canonical_state(hf_model.state_dict(), family, encoder.config))
    return encoder


def _canonical_state(
    state: Mapping[str, Tensor], family: Family, config: EncoderConfig
) -> dict[str, Tensor]:
    """Rename the family's weights; keys and values become one matrix."""
    names: dict[str, str] = {}
    for ours, theirs in family.weights.items():
        for i in range(config.n_layers) if "{i}" in ours else [0]:
            for kind in ("weight", "bias"):
                source = f"{theirs.format(i=i)}.{kind}"
                if source in state:
                    names[f"{ours.format(i=i)}.{kind}"] = source
    canonical = {ours: state[theirs] for ours, theirs in names.items()}
    for ours in [name for name in canonical if re.search(r"\.key\.", name)]:
        value = canonical.pop(ours.replace(".key.", ".value."))
        fused = ours.replace(".key.", ".key_value.")
        canonical[fused] = torch.cat([canonical.pop(ours), value])
    return canonical
