"""What is stored of a transformer beside its weights, and what is checked when it is read."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import srsly
from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version
from spacy.language import Language
from spacy.strings import get_string_id
from spacy.vocab import Vocab
from thinc.api import Config, Model

from ..about import __title__, __version__
from ..errors import Errors
from ..model.architecture import module_of
from ..model.engine import MultiExitModule
from .meta import KEY
from .regime import is_regime
from .tasks import find_task

# A table of the vocab: it is what spaCy writes last, so that an id in it says that all is there.
IDS = "earlyexit_ids"
CFG: dict[str, type] = {"labels": dict, "auxiliary": list, "points": dict}


def write_cfg(cfg: Mapping[str, Any]) -> bytes:
    """RETURNS (bytes): The component's own data as JSON, numbers exactly as they are."""
    return json.dumps(cfg, indent=2, ensure_ascii=False).encode("utf8")


def read_cfg(data: bytes, source: str) -> dict[str, Any]:
    """data (bytes): What write_cfg gave.
    source (str): Where they come from, for the message.
    RETURNS (Dict[str, Any]): The component's own data.
    RAISES (ValueError): If they are something else.
    """
    try:
        cfg = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError(Errors.E062.format(source=source, problem="it is not JSON")) from None
    if not isinstance(cfg, dict):
        raise ValueError(Errors.E062.format(source=source, problem="it is no JSON object"))
    for key, kind in CFG.items():
        if not isinstance(cfg.get(key), kind):
            problem = f"`{key}` is missing" if key not in cfg else f"`{key}` is no {kind.__name__}"
            raise ValueError(Errors.E062.format(source=source, problem=problem))
    regime = cfg.get("regime")
    if regime is not None and not is_regime(regime):
        problem = "`regime` is not what training stores"
        raise ValueError(Errors.E062.format(source=source, problem=problem))
    return cfg


def read_model(model: Model, data: bytes, source: str) -> None:
    """Load weights.

    model (Model): A MultiExitTransformer.
    data (bytes): What model.to_bytes gave.
    source (str): Where they come from, for the message.
    RAISES (ValueError): If they are something else, or do not fit the model's settings.
    """
    try:
        message = srsly.msgpack_loads(data)
        names = [node["name"] for node in message["nodes"]]
    except Exception:  # whatever the bytes make of a decoder
        problem = "it is cut short, or no file of a model"
        raise ValueError(Errors.E063.format(source=source, problem=problem)) from None
    if "hf-pytorch" in names:
        raise ValueError(Errors.E064.format(source=source))
    expected = [node.name for node in model.walk()]
    if names != expected:
        problem = f"its layers are {', '.join(names)}, not {', '.join(expected)}"
        raise ValueError(Errors.E063.format(source=source, problem=problem))
    try:
        model.from_dict(message)  # what from_bytes does, without decoding it once more
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    except BaseException as error:  # a panic of the tokenizers library is no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
            raise
        problem = str(error).split("\n")[0] or type(error).__name__
        raise ValueError(Errors.E063.format(source=source, problem=problem)) from None


def check_labels(model: Model, labels: Mapping[str, Sequence[str]], source: str) -> None:
    """Compare labels with the classes of the off-ramps.

    RAISES (ValueError): If they are not those that the weights were trained with.
    """
    classes = module_of(model).offramps.classes
    if list(labels) != list(classes):
        raise ValueError(
            Errors.E065.format(
                source=source, found=", ".join(labels), expected=", ".join(classes), what="tasks"
            )
        )
    for task, found in labels.items():
        known = find_task(task)  # the code of a task need not be there to predict
        if known is not None and known.classes(found) != classes[task]:
            raise ValueError(
                Errors.E065.format(
                    source=source,
                    found=", ".join(known.classes(found)),
                    expected=", ".join(classes[task]),
                    what=f"classes of the task '{task}'",
                )
            )


def check_setting(name: str, setting: str, here: Any, stored: Any, source: str) -> None:
    """RAISES (ValueError): If a setting is not what the weights were trained with."""
    here, stored = json.loads(json.dumps(here)), json.loads(json.dumps(stored))
    if here != stored:
        raise ValueError(
            Errors.E066.format(
                name=name,
                setting=setting,
                here=json.dumps(here),
                stored=json.dumps(stored),
                source=source,
            )
        )


def check_stored(
    name: str,
    model: Model,
    labels: Mapping[str, Sequence[str]],
    tasks: Sequence[str] | None,
    block: Mapping[str, Any] | None,
    source: str,
) -> None:
    """Compare what was loaded with what the weights were trained with.

    name (str): The transformer's.
    labels (Mapping[str, Sequence[str]]): By task, as they were stored.
    tasks (Optional[Sequence[str]]): Those of the config; None if it names none.
    block (Optional[Mapping[str, Any]]): See model_block.
    source (str): Where all comes from, for messages.
    RAISES (ValueError): If something differs.
    """
    check_labels(model, labels, source)
    if tasks is not None:
        check_setting(name, "tasks", tasks, list(labels), source)
    stored = module_of(model).settings
    if block is not None and "get_spans" in stored:
        check_setting(name, "model.get_spans", block.get("get_spans"), stored["get_spans"], source)


def model_block(nlp: Language | None, name: str) -> dict[str, Any] | None:
    """RETURNS (Optional[Dict[str, Any]]): The block of a transformer's model in the config of its
    pipeline, if that is known.
    """
    if nlp is None or name not in nlp._pipe_configs:
        return None
    return nlp.config.interpolate()["components"][name].get("model", {})


def remember_block(module: MultiExitModule | None, block: Mapping[str, Any] | None) -> None:
    """Keep the span getter with the weights: it says what units they were trained on.

    module (Optional[MultiExitModule]): The weights, if there are any.
    block (Optional[Mapping[str, Any]]): See model_block.
    """
    if module is not None and block is not None and "get_spans" in block:
        module.settings["get_spans"] = block["get_spans"]


def check_pipeline(folder: Path, name: str, lang: str | None, own_id: str | None) -> None:
    """Check the files of a pipeline that a transformer is loaded from.

    folder (Path): The pipeline's. What is not there is not checked.
    name (str): The transformer's.
    lang (Optional[str]): The language of the pipeline that is loaded.
    own_id (Optional[str]): The id stored with the transformer.
    RAISES (ValueError): If they are of another language, of a later version, or of two pipelines.
    """
    path = folder / "meta.json"
    if not path.is_file():
        return
    try:
        meta = json.loads(path.read_text(encoding="utf8"))
    except (ValueError, RecursionError):
        raise ValueError(Errors.E062.format(source=path, problem="it is not JSON")) from None
    if lang is not None and meta.get("lang") not in (None, lang):
        raise ValueError(Errors.E067.format(path=path, found=meta["lang"], expected=lang))
    _check_requirements(meta, path)
    entry = meta.get(KEY)
    own = entry.get(name, {}) if isinstance(entry, dict) else {}
    _check_version(own.get("version"), path)
    ids = {str(path): own.get("id"), str(folder / name / "cfg"): own_id}
    lookups = folder / "vocab" / "lookups.bin"
    if lookups.is_file():
        ids[str(lookups)] = _read_id(lookups, name)
    known = {file: found for file, found in ids.items() if found is not None}
    if len(set(known.values())) > 1:
        raise ValueError(Errors.E068.format(folder=folder, files=", ".join(known)))


def exit_in_file(folder: Path, name: str) -> str | None:
    """RETURNS (Optional[str]): The exit setting that a pipeline's config.cfg names, if it does."""
    path = folder / "config.cfg"
    if not path.is_file():
        return None
    value = Config().from_disk(path, interpolate=False)["components"].get(name, {}).get("exit")
    return value if isinstance(value, str) else None


def store_id(vocab: Vocab, name: str, own_id: str) -> None:
    """Keep the id where spaCy writes last."""
    known = vocab.lookups.get_table(IDS) if vocab.lookups.has_table(IDS) else {}
    ids = {**known, get_string_id(name): own_id}
    if vocab.lookups.has_table(IDS):
        vocab.lookups.remove_table(IDS)
    vocab.lookups.add_table(IDS, ids)


def _read_id(path: Path, name: str) -> str | None:
    from spacy.lookups import Lookups

    lookups = Lookups().from_disk(path.parent, filename=path.name)
    return lookups.get_table(IDS).get(name) if lookups.has_table(IDS) else None


def _check_version(found: Any, path: Path) -> None:
    try:
        later = isinstance(found, str) and Version(found) > Version(__version__)
    except InvalidVersion:
        return
    if later:
        raise ValueError(Errors.E060.format(found=found, here=__version__) + f" ({path})")


def _check_requirements(meta: Mapping[str, Any], path: Path) -> None:
    for text in meta.get("requirements") or []:
        try:
            requirement = Requirement(str(text))
        except InvalidRequirement:
            continue
        if requirement.name.replace("_", "-").lower() == __title__:
            if not requirement.specifier.contains(__version__, prereleases=True):
                raise ValueError(Errors.E060.format(found=text, here=__version__) + f" ({path})")
