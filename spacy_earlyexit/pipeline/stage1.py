"""What stage 2 takes over from a pipeline of stage 1."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import spacy
from spacy.training import Example
from thinc.api import Config, Model

from ..errors import Errors
from ..model.architecture import module_of, pieces_of, settings_of, take_weights
from ..model.catch_up import FIT_ROWS, fit_catch_up

# What stage 2 may change. Everything else that weights depend on has to be the same.
FREE = ("special_share", "reach", "catch_up")
# What stage 2 may leave out; then it is that of stage 1.
INHERITED = ("name", "tokenizer_config", "transformer_config")


def load_stage1(path: Path, name: str) -> Any:
    """The transformer of a pipeline.

    path (Path): The pipeline's folder.
    name (str): Of its transformer.
    RETURNS (EarlyExitTransformer): The component.
    RAISES (ValueError): If there is none.
    """
    if not (path / "config.cfg").is_file():
        raise _wrong(name, path, "there is no pipeline in this folder")
    config = Config().from_disk(path / "config.cfg", interpolate=False)
    if config["components"].get(name, {}).get("factory") != "earlyexit_transformer":
        raise _wrong(name, path, f"it has no earlyexit_transformer named '{name}'")
    others = [other for other in config["nlp"]["pipeline"] if other != name]
    return spacy.load(path, exclude=others).get_pipe(name)


def take_over(
    model: Model,
    stage1: Model,
    name: str,
    path: Path,
    get_examples: Callable[[], Iterable[Example]],
) -> dict[str, Any]:
    """Weights, tokenizer and off-ramps of stage 1; with `catch_up` also maps for halted rows, which
    are fitted unless stage 1 has some that have learned.

    model (Model): Gets them.
    stage1 (Model): Loses them.
    name (str): The component's.
    path (Path): The pipeline of stage 1, for messages.
    get_examples (Callable): Returns the training data.
    RETURNS (Dict[str, Any]): Settings that were left out, with the values of stage 1.
    RAISES (ValueError): If the two do not fit.
    """
    settings, stored = settings_of(model), module_of(stage1).settings
    inherited = _inherit(name, path, settings, stored)
    settings.check(stored, source=f"'{path}'", free=FREE)
    take_weights(model, stage1)
    module = module_of(model)
    module.settings = {**stored, **settings.to_dict()}
    # What was fitted for weights that now change.
    module.offramps.temperature.fill_(1.0)
    module.encoder.set_catch_up(settings.catch_up)
    if settings.catch_up and not module.encoder.catch_up.up.any():
        pieces = pieces_of(model, _first_docs(get_examples()))
        if not pieces.n_units:
            problem = "the maps of catch_up are fitted on training text, and there is none"
            raise _wrong(name, path, problem)
        fit_catch_up(module.encoder, pieces, FIT_ROWS)
    return inherited


def _inherit(name: str, path: Path, settings: Any, stored: dict[str, Any]) -> dict[str, Any]:
    """Fill settings that were left out with those of stage 1."""
    inherited = {}
    for setting in INHERITED:
        here, there = getattr(settings, setting), stored[setting]
        left_out = here is None
        if isinstance(here, dict):
            left_out = here.items() <= {"use_fast": True, **there}.items()
        if left_out and here != there:
            inherited[setting] = there
            setattr(settings, setting, there)
    return inherited


def _first_docs(examples: Iterable[Example]) -> list[Any]:
    """As many Docs as the maps are fitted on; a token has at least one row."""
    docs, n_tokens = [], 0
    for example in examples:
        docs.append(example.predicted)
        n_tokens += len(example.predicted)
        if n_tokens > FIT_ROWS:
            break
    return docs


def _wrong(name: str, path: Path, problem: str) -> ValueError:
    return ValueError(Errors.E016.format(name=name, path=path, problem=problem))
