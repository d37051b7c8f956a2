"""What stage 2 takes over from a pipeline of stage 1."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import spacy
from spacy.training import Example
from thinc.api import Config

from ..errors import Errors
from ..model.architecture import module_of
from ..model.catch_up import FIT_ROWS, fit_catch_up

if TYPE_CHECKING:
    from .transformer import EarlyExitTransformer

# What has to be the same in both stages.
SHAPES = ("offramp_context", "align_exits")
# What stage 2 may leave out, but not change. (The encoder's name is where stage 1 began.)
LOADED = ("tokenizer_config", "transformer_config")


def take_over(
    transformer: "EarlyExitTransformer",
    path: Path,
    labels: dict[str, list[str]] | None,
    examples: Sequence[Example],
) -> dict[str, list[str]]:
    """Weights, tokenizer and off-ramps of the component of the same name; with `catch_up` also maps
    for halted rows, fitted unless stage 1 has some that have learned.

    transformer (EarlyExitTransformer): Gets them.
    path (Path): The pipeline's folder.
    labels (Optional[Dict[str, List[str]]]): Labels by task that stage 2 wants; None: any.
    examples (Sequence[Example]): The training data.
    RETURNS (Dict[str, List[str]]): The labels of stage 1.
    RAISES (ValueError): If the pipeline does not fit.
    """
    name, model = transformer.name, transformer.model

    def fail(problem: str) -> ValueError:
        return ValueError(Errors.E017.format(name=name, path=path, problem=problem))

    if not (path / "config.cfg").is_file():
        raise fail("there is no pipeline in this folder")
    config = Config().from_disk(path / "config.cfg", interpolate=False)
    if config["components"].get(name, {}).get("factory") != "earlyexit_transformer":
        raise fail(f"it has no earlyexit_transformer named '{name}'")
    others = [other for other in config["nlp"]["pipeline"] if other != name]
    stage1 = cast("EarlyExitTransformer", spacy.load(path, exclude=others).get_pipe(name))
    stored = stage1.label_data
    wanted = {task: {**stored, **(labels or {})}.get(task, []) for task in transformer.tasks}
    if wanted != stored:
        raise ValueError(Errors.E018.format(path=path, old=stored, new=wanted))
    for setting in SHAPES:
        has, here = stage1.model.attrs[setting], model.attrs[setting]
        if has != here:
            raise fail(f"it has {setting} = {has}, [components.{name}.model] here {here}")
    for setting in LOADED:
        has = {"use_fast": True, **stage1.model.attrs[setting]}
        here = model.attrs[setting]
        if not here.items() <= has.items():
            raise fail(
                f"it was made with {setting} = {stage1.model.attrs[setting]}, and what "
                f"[components.{name}.model] says here, {here}, would change nothing any more"
            )
    rank = model.attrs["catch_up"]
    model.from_bytes(stage1.model.to_bytes())
    model.attrs["catch_up"] = rank
    module = module_of(model)
    # What was fitted for weights that now change.
    module.offramps.temperature.fill_(1.0)
    module.encoder.set_catch_up(rank)
    if rank and not module.encoder.catch_up.up.any():
        # A word has at least one row.
        n_words = np.cumsum([len(eg.predicted) for eg in examples])
        enough = int(np.searchsorted(n_words, FIT_ROWS)) + 1
        pieces = model.layers[0].predict([eg.predicted for eg in examples[:enough]])
        if not pieces.n_units:
            raise fail("the maps of catch_up are fitted on training text, and there is none")
        fit_catch_up(module.encoder, pieces, FIT_ROWS)
    return stored
