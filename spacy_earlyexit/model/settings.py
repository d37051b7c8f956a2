"""What a multi-exit transformer is made with, and what its weights were trained with."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import Errors
from .batch import Rules

# Every setting that the weights depend on. They are stored with the weights.
TRAINED_WITH = (
    "name",
    "tokenizer_config",
    "transformer_config",
    "special_share",
    "reach",
    "mean_pieces",
    "offramp_context",
    "align_exits",
    "catch_up",
    "pieces",
)

# Cut into sub-word pieces: every token on its own, or the text of a span as a whole.
PIECES = ("tokens", "spans")


@dataclass
class Settings:
    """The settings of a MultiExitTransformer that its weights depend on; see there.

    component (str): Name of the component that has the model, for messages.
    loaded (Optional[Tuple[PreTrainedModel, PreTrainedTokenizerFast]]): Model and tokenizer that are
        taken at initialisation in place of those of `name`.
    """

    name: str | None
    tokenizer_config: dict[str, Any]
    transformer_config: dict[str, Any]
    special_share: float
    reach: int | None
    mean_pieces: bool
    offramp_context: int
    align_exits: bool
    catch_up: int
    pieces: str = "tokens"
    component: str = field(default="transformer", compare=False)
    loaded: tuple[Any, Any] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """RAISES (ValueError): If a setting is impossible."""
        checks: list[tuple[str, str, bool]] = [
            (
                "special_share",
                "in [0, 1] (a share of a unit's words)",
                _is_number(self.special_share) and 0 <= self.special_share <= 1,
            ),
            ("reach", "a whole number of words >= 0, or null", _is_count(self.reach, none=True)),
            ("offramp_context", "a whole number of words >= 0", _is_count(self.offramp_context)),
            ("catch_up", "a rank >= 0", _is_count(self.catch_up)),
            ("pieces", f"one of {', '.join(PIECES)}", self.pieces in PIECES),
        ]
        for setting, expected, fits in checks:
            if not fits:
                value = getattr(self, setting)
                raise ValueError(
                    Errors.E018.format(setting=setting, expected=expected, value=value)
                )

    @property
    def source(self) -> str:
        """RETURNS (str): Hub name or folder of the encoder.

        RAISES (ValueError): If there is none.
        """
        if not self.name:
            raise ValueError(Errors.E051.format(component=self.component))
        return self.name

    @property
    def rules(self) -> Rules:
        return Rules(self.special_share, self.reach, self.mean_pieces)

    def to_dict(self) -> dict[str, Any]:
        """RETURNS (Dict[str, Any]): What is stored with the weights, ready for JSON."""
        return json.loads(json.dumps({key: getattr(self, key) for key in TRAINED_WITH}))

    def check(self, stored: Mapping[str, Any], *, source: str, free: Collection[str] = ()) -> None:
        """Compare with what weights were trained with.

        stored (Mapping[str, Any]): What `to_dict` gave then.
        source (str): Where the weights come from, for the message.
        free (Collection[str]): Settings that may differ.
        RAISES (ValueError): If another one differs.
        """
        for setting, here in self.to_dict().items():
            if setting not in free and setting in stored and stored[setting] != here:
                raise ValueError(
                    Errors.E052.format(
                        component=self.component,
                        setting=setting,
                        here=json.dumps(here),
                        stored=json.dumps(stored[setting]),
                        source=source,
                    )
                )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: Any, *, none: bool = False) -> bool:
    if value is None:
        return none
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
