"""python -m spacy earlyexit info"""

import json
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Annotated, Any

import typer
from wasabi import msg

from .options import CodePath
from .tables import print_table, printable

if TYPE_CHECKING:
    from ..pipeline.transformer import EarlyExitTransformer

LABELS_SHOWN = 12
TRAINED_WITH = ("special_share", "reach", "mean_pieces", "offramp_context")


def info_cli(
    pipeline: Annotated[str, typer.Argument(help="Folder or package of a trained pipeline")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables")] = False,
    code_path: CodePath = None,
) -> None:
    """Show what is inside a pipeline with an earlyexit_transformer: its encoder, its tasks and
    who reads them, how words exit, operating points and temperatures.
    """
    from spacy.cli._util import import_code

    import_code(code_path)
    try:
        data = info(pipeline)
    except (OSError, ValueError) as error:
        msg.fail(f"Can't describe the pipeline '{pipeline}'", str(error), exits=1)
    if as_json:
        print(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        print_info(data)


def info(pipeline: str | Path) -> dict[str, Any]:
    """Load a pipeline and describe its early exits.

    pipeline (Union[str, Path]): What spacy.load takes.
    RETURNS (Dict[str, Any]): See describe, and the pipeline as it was given.
    RAISES (OSError): If there is no such pipeline.
    RAISES (ValueError): If it has no earlyexit_transformer.
    """
    import spacy

    from ..files import restore

    restore(Path(pipeline))
    return {"pipeline": str(pipeline), **describe(spacy.load(pipeline))}


def describe(nlp: Any) -> dict[str, Any]:
    """See info.

    nlp (Language): The pipeline.
    RETURNS (Dict[str, Any]): component, enabled, components (of the whole pipeline), encoder (None
        without weights), span_getter, regime (None where it is not known), tasks, readers, exit,
        points and temperatures, all ready for JSON.
    """
    from ..pipeline.finding import find_transformer

    transformer = find_transformer(nlp)
    config = nlp.config.interpolate()["components"].get(transformer.name, {})
    readers = [
        {
            "name": consumer.name,
            "factory": nlp.get_pipe_meta(consumer.name).factory,
            "tasks": list(consumer.tasks),
            "enabled": consumer.name in nlp.pipe_names,
        }
        for consumer in transformer.consumers
    ]
    readers += [
        {"name": name, "factory": nlp.get_pipe_meta(name).factory, "tasks": [], "enabled": True}
        for name in transformer.listening_components
        if name not in {reader["name"] for reader in readers}
    ]
    active = transformer.active_tasks
    return {
        "component": transformer.name,
        "enabled": transformer.name in nlp.pipe_names,
        "components": nlp.component_names,
        "encoder": _encoder(transformer),
        "span_getter": config.get("model", {}).get("get_spans"),
        "regime": transformer.regime,
        "tasks": {
            task: {
                "labels": list(transformer.label_data.get(task, [])),
                "rules_exit": task in active,
            }
            for task in transformer.tasks
        },
        "readers": readers,
        "exit": _exit(transformer),
        "points": transformer.points,
        "temperatures": transformer.temperatures,
    }


def _encoder(transformer: "EarlyExitTransformer") -> dict[str, Any] | None:
    from ..model.architecture import module_of

    try:
        module = module_of(transformer.model)
    except ValueError:  # saved before it was initialised
        return None
    config = module.encoder.config
    return {
        "name": encoder_name(module.settings["name"]),
        "family": config.family,
        "layers": config.n_layers,
        "hidden": config.hidden,
        "heads": config.n_heads,
        "positions": config.n_positions,
        "parameters": sum(p.numel() for p in module.encoder.parameters()),
        "offramp_parameters": sum(p.numel() for p in module.offramps.parameters()),
        "pieces": module.settings.get("pieces", "tokens"),
        "trained_with": {name: module.settings[name] for name in TRAINED_WITH},
    }


def encoder_name(name: str) -> str:
    """RETURNS (str): The encoder's name; of a path its last folder, not where it was trained."""
    path = PureWindowsPath(name)  # it reads both kinds of slashes
    local = path.root or path.drive or name.startswith((".", "~")) or len(path.parts) > 2
    return path.name if local else name


def _exit(transformer: "EarlyExitTransformer") -> dict[str, Any]:
    """The setting as it was made, and the criterion that it comes to (None: full depth)."""
    setting = transformer.exit
    name = setting if setting is None or isinstance(setting, str) else None
    try:
        criterion = transformer.criterion
    except ValueError:  # without weights a criterion can't be checked
        return {"name": name, "criterion": None}
    return {"name": name, "criterion": criterion.to_config() if criterion else None}


def print_info(data: dict[str, Any]) -> None:
    """Print what info returned as tables.

    data (Dict[str, Any]): As returned by info.
    """
    msg.divider(f"Pipeline {printable(data['pipeline'])}")
    encoder = data["encoder"]
    rows = {"Components": ", ".join(data["components"]), "Transformer": data["component"]}
    if encoder is not None:
        rows |= {
            "Encoder": encoder["name"],
            "Family": encoder["family"],
            "Layers": str(encoder["layers"]),
            "Hidden size": str(encoder["hidden"]),
            "Heads": str(encoder["heads"]),
            "Positions": str(encoder["positions"]),
            "Parameters": f"{encoder['parameters']:,}",
            "Off-ramps' parameters": f"{encoder['offramp_parameters']:,}",
        }
    rows |= {
        "Span getter": format_block(data["span_getter"]),
        "Exit": format_exit(data["exit"]),
        "Temperatures": format_temperatures(data["temperatures"]),
    }
    print_table(list(rows.items()), aligns="ll")
    if encoder is None:
        msg.warn("The transformer has no weights: the pipeline was saved before initialisation")
    if not data["enabled"]:
        msg.warn(f"'{printable(data['component'])}' is disabled")

    accelerated = encoder is not None and encoder["pieces"] == "spans"
    if encoder is not None and not accelerated:
        msg.divider("Trained with")
        print_table([*format_regime(data["regime"]), *encoder["trained_with"].items()], aligns="ll")

    msg.divider("Tasks")
    tasks = [
        (task, len(own["labels"]), "yes" if own["rules_exit"] else "no", shorten(own["labels"]))
        for task, own in data["tasks"].items()
    ]
    if tasks:
        print_table(tasks, ("task", "labels", "rules exit", ""), "lrll")
    elif accelerated:
        msg.text("None: it was accelerated, and runs at full depth for what listens to it.")
    else:
        msg.text("None yet: they are known after training.")

    msg.divider("Components reading the exits")
    readers = [
        (
            reader["name"],
            reader["factory"],
            ", ".join(reader["tasks"]) or "(vectors)",
            "yes" if reader["enabled"] else "no",
        )
        for reader in data["readers"]
    ]
    if readers:
        print_table(readers, ("component", "factory", "reads", "enabled"), "llll")
    else:
        msg.warn("No component reads the exits")

    if not accelerated:
        msg.divider("Operating points")
    points = [
        (
            f"{name} (in force)" if name == data["exit"]["name"] else name,
            _number(point.get("dev_score"), 100),
            _number(point.get("dev_speedup"), unit="x"),
            _number(point.get("dev_mean_depth")),
            format_block(point.get("exit")),
        )
        for name, point in data["points"].items()
    ]
    if points:
        header = ("point", "dev score", "MAC speed-up", "mean depth", "criterion")
        print_table(points, header, "lrrrl")
    elif not accelerated:
        msg.text("None: find some with `python -m spacy earlyexit calibrate`.")


def format_regime(regime: dict[str, Any] | None) -> list[tuple[str, str]]:
    """What a pipeline was trained on, as rows.

    regime (Optional[Dict[str, Any]]): As Sample.describe returns it.
    """
    if regime is None:
        return []
    return [("tokens", regime["tokens"]), ("words of a unit", f"{regime['unit_length']:.0f}")]


def format_exit(data: dict[str, Any]) -> str:
    """The exit setting in words.

    data (Dict[str, Any]): name and criterion, as in describe.
    """
    criterion = format_block(data["criterion"])
    return f"{data['name']}: {criterion}" if data["name"] else criterion


def format_temperatures(temperatures: dict[str, list[float]]) -> str:
    """The range of each task's temperatures over the layers.

    temperatures (Dict[str, List[float]]): As in EarlyExitTransformer.temperatures.
    """
    if all(value == 1 for own in temperatures.values() for value in own):
        return "not fitted"
    return ", ".join(
        f"{task} {min(own):.2f} to {max(own):.2f}" for task, own in temperatures.items()
    )


def format_block(block: dict[str, Any] | None) -> str:
    """A config's block as a call: TokenExit.v1(threshold=0.1, window=2).

    block (Optional[Dict[str, Any]]): With the function's name under "@…". None: full depth.
    """
    if block is None:
        return "full depth"
    name = next((str(value) for key, value in block.items() if key.startswith("@")), "?")
    settings = ", ".join(
        f"{key}={_setting(value)}" for key, value in block.items() if not key.startswith("@")
    )
    name = name.removeprefix("spacy-earlyexit.")
    return f"{name}({settings})" if settings else name


def _setting(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        if len(value) > 4:  # thresholds of all layers
            return f"[{_setting(value[0])}, …, {_setting(value[-1])}]"
        return f"[{', '.join(_setting(v) for v in value)}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def shorten(labels: Iterable[str], most: int = LABELS_SHOWN) -> str:
    """The first labels, and how many more there are."""
    labels = list(labels)
    rest = f", … ({len(labels) - most} more)" if len(labels) > most else ""
    return ", ".join(labels[:most]) + rest


def _number(value: float | None, factor: float = 1, unit: str = "") -> str:
    return "-" if value is None else f"{factor * value:.2f}{unit}"
