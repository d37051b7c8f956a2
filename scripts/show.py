"""Show where the words of a text leave a trained pipeline, and how to use it from Python."""

import json
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import spacy
import typer
from wasabi import msg

from spacy_earlyexit.files import write_bytes
from spacy_earlyexit.model.architecture import module_of
from spacy_earlyexit.pipeline.finding import find_transformer
from spacy_earlyexit.visuals.html import depth_html
from spacy_earlyexit.visuals.svg import depth_svg
from spacy_earlyexit.visuals.terminal import depth_text


def show_cli(
    pipeline: Annotated[str, typer.Argument(help="Folder or package of a trained pipeline")],
    text: Annotated[str, typer.Argument(help="What it should read")],
    exit_: Annotated[
        str | None, typer.Option("--exit", help="Operating point, such as 2x (else: full depth)")
    ] = None,
    svg: Annotated[Path | None, typer.Option(help="Save a picture to this file")] = None,
    html: Annotated[Path | None, typer.Option(help="Save a web page to this file")] = None,
) -> None:
    """Print under each word what the pipeline says about it and the layer it left at."""
    try:
        nlp = spacy.load(pipeline)
        transformer = find_transformer(nlp)
        n_layers = module_of(transformer.model).encoder.config.n_layers
        with transformer.use(exit_):
            doc = nlp(text)
        shown = depth_text(doc, n_layers)
        if svg is not None:
            write_bytes(svg, depth_svg(doc, n_layers).encode())
        if html is not None:
            page = depth_html(doc, n_layers, page=True, jupyter=False)
            write_bytes(html, (page or "").encode())
    except (OSError, ValueError) as error:
        msg.fail(f"Can't show what the pipeline '{pipeline}' does", str(error), exits=1)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # for terminals that lack a character
    print(f"\n{shown}\n")
    for path in (svg, html):
        if path is not None:
            msg.good(f"Saved to {path}")
    print(f"The pipeline is in {pipeline}. To use it:")
    print(usage(pipeline, text, exit_, transformer.name))


def usage(pipeline: str, text: str, exit_: str | None, transformer: str) -> str:
    """The same in Python.

    RETURNS (str): Indented lines.
    """
    lines = ["import spacy", f"nlp = spacy.load({quote(pipeline)})"]
    if exit_ is not None:
        lines.append(f"nlp.get_pipe({quote(transformer)}).exit = {quote(exit_)}")
    lines.append(f"doc = nlp({quote(text)}); print(doc._.exit_layers)")
    return "\n".join(f"    {line}" for line in lines)


def quote(text: str) -> str:
    """As Python writes it, but always in double quotes."""
    return json.dumps(text, ensure_ascii=False)  # whose strings are Python's, too


if __name__ == "__main__":
    typer.run(show_cli)
