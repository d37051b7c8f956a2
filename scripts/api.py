"""One page of API reference, made from the docstrings of what people import and configure."""

import importlib
import inspect
import re
from pathlib import Path
from typing import Annotated, Any

import typer

import spacy_earlyexit
from spacy_earlyexit.files import write_bytes

PAGE = Path(__file__).parent.parent / "docs" / "api.md"
# Registered under a name, or a component: not in __all__, but configured or asked for.
CONFIGURED = {
    "Components": {
        "earlyexit_transformer": "pipeline.factory:make_transformer",
        "earlyexit_ner": "pipeline.ner:make_ner",
        "earlyexit_tagger": "pipeline.tagger:make_tagger",
        "earlyexit_segmenter": "pipeline.segmenter:make_segmenter",
    },
    "Registered functions": {
        "spacy-earlyexit.MultiExitTransformer.v1": "model.architecture:MultiExitTransformer",
        "spacy-earlyexit.Tok2VecMultiExit.v1": "model.architecture:Tok2VecMultiExit",
        "spacy-earlyexit.JointLoss.v1": "model.offramps:make_joint_loss",
        "spacy-earlyexit.SelfSampling.v1": "model.self_sampling:make_self_sampling",
        "spacy-earlyexit.exit_scorer.v1": "training.exit_scorer:make_exit_scorer",
        "spacy-earlyexit.ConsoleLogger.v1": "training.logger:console_logger",
    },
}
COMPONENT = "pipeline.transformer:EarlyExitTransformer"
# What is spaCy's own API is in its documentation.
MEMBERS: tuple[str, ...] = (
    *("exit", "use", "points", "set_points", "criterion", "precision", "record", "tasks"),
    *("active_tasks", "label_data", "temperatures", "predict", "update", "initialize"),
)
# Given by spaCy.
HIDDEN = ("self", "name")

app = typer.Typer(add_completion=False)


@app.command()
def api_cli(
    check: Annotated[bool, typer.Option(help="Only say whether the page is up to date")] = False,
) -> None:
    """Write docs/api.md."""
    text = make_page()
    if check:
        raise typer.Exit(code=int(PAGE.read_text(encoding="utf8") != text))
    write_bytes(PAGE, text.encode("utf8"))


def make_page() -> str:
    """RETURNS (str): The page."""
    parts = ["# API", "`python scripts/api.py` makes this page from the docstrings."]
    parts.append("## `spacy_earlyexit`")
    for name in sorted(spacy_earlyexit.__all__, key=str.lower):
        thing = getattr(spacy_earlyexit, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            parts.append(describe(name, thing))
    for title, functions in CONFIGURED.items():
        parts.append(f"## {title}")
        parts += [describe(name, find(place)) for name, place in functions.items()]
    parts.append('## The transformer, `nlp.get_pipe("transformer")`')
    component = find(COMPONENT)
    for name in MEMBERS:
        member = inspect.getattr_static(component, name)
        if isinstance(member, property):
            parts.append(describe(name, member.fget, is_property=True))
        else:
            parts.append(describe(name, member))
    return "\n\n".join(parts) + "\n"


def find(place: str) -> Any:
    """place (str): "module:name". RETURNS (Any): What is there."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"spacy_earlyexit.{module}"), name)


def describe(name: str, thing: Any, *, is_property: bool = False) -> str:
    """RETURNS (str): Heading, signature and docstring of a function or class."""
    lines = [f"### `{name}`"]
    try:
        parameters = [] if is_property else list(inspect.signature(thing).parameters)
    except ValueError:  # of a class of spaCy's compiled ones, without arguments
        parameters = []
    if shown := [parameter for parameter in parameters if parameter not in HIDDEN]:
        lines.append(f"`({', '.join(shown)})`")
    return "\n\n".join([*lines, *paragraphs(inspect.getdoc(thing) or "")])


def paragraphs(doc: str) -> list[str]:
    """A docstring as Markdown: entries of parameters become a list."""
    found: list[str] = []
    for block in re.split(r"\n\s*\n", doc.strip()):
        entries: list[str] = []
        for line in block.split("\n"):
            if re.match(r"[\w, ]+ \(.+?\): |[a-z_]\w*(, \w+)*: ", line) or not entries:
                entries.append(line)
            else:
                entries[-1] += " " + line.strip()
        listed = re.match(r"[\w, ]+ \(.+?\): |[a-z_]\w*(, \w+)*: ", entries[0])
        found.append("\n".join(f"- {entry}" for entry in entries) if listed else entries[0])
        if not listed and len(entries) > 1:
            found.append("\n".join(f"- {entry}" for entry in entries[1:]))
    return found


if __name__ == "__main__":
    app()
