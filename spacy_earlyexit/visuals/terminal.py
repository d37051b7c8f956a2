"""Where words leave, for a terminal."""

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from io import StringIO

import wasabi
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text
from spacy.tokens import Doc

from .words import (
    RAMP,
    WHITE_FROM,
    Word,
    break_lines,
    chunks,
    color_number,
    cut,
    read_words,
    shown_depth,
    summary,
    widen,
)

LONGEST = 24  # columns; longer words are cut
GREY = "color(244)"  # readable on black and on white
GUTTER, GAP, CHIP = len("entity") + 2, 2, 4


def depth_text(
    doc: Doc,
    n_layers: int | None = None,
    *,
    color: bool | None = None,
    width: int | None = None,
) -> str:
    """Where words leave, for a terminal: under each word its tag, its entity and its exit layer.

    doc (Doc): The document.
    n_layers (Optional[int]): The layers of the encoder, over which the colours are spread. None:
        the deepest exit layer in the Doc, which does not know how many layers there were.
    color (Optional[bool]): None: if standard output is a terminal that can show colours and
        neither NO_COLOR nor ANSI_COLORS_DISABLED is set.
    width (Optional[int]): Longest line, at least 20. None: the terminal's width.
    RETURNS (str): Lines, without a newline behind the last. Without colour there is no legend.
    RAISES (ValueError): If it is no Doc or has no exit layers, or if n_layers is no whole number
        between the Doc's deepest exit layer and 1000.
    """
    words = read_words(doc)
    depth = shown_depth(n_layers, words)
    if color is None:
        color = sys.stdout.isatty() and not os.getenv("NO_COLOR") and wasabi.util.supports_ansi()
    if width is None:
        width = shutil.get_terminal_size().columns
    width = max(width, 20)
    room = width - GUTTER

    sizes = [max(cell_len(w.text), cell_len(w.tag), len(str(w.layer))) for w in words]
    sizes = [min(size, LONGEST) for size in sizes]
    sizes = [min(size, room) for size in widen(words, sizes, cell_len, GAP)]
    lines: list[Text] = []
    for line in break_lines(words, sizes, GAP, room):
        lines += [*_rows(words[line], sizes[line], depth, color), Text()]
    if color:
        lines += _legend(depth, room // CHIP)
    lines += map(Text, textwrap.wrap(summary(doc, words, n_layers), width))
    return _render(lines, color)


def _render(lines: Sequence[Text], color: bool) -> str:
    for line in lines:
        line.rstrip()
    if not color:
        return "\n".join(line.plain for line in lines)
    console = Console(
        file=StringIO(),
        force_terminal=True,
        color_system="256",
        no_color=False,
        legacy_windows=False,
    )
    with console.capture() as capture:
        for line in lines:
            console.print(line, soft_wrap=True, highlight=False)
    return capture.get().removesuffix("\n")


def _rows(words: Sequence[Word], sizes: Sequence[int], depth: int, color: bool) -> list[Text]:
    """One line of words, and what stands below them; rows without content are left out."""
    sized = list(zip(words, sizes, strict=True))
    rows = {
        "": [Text(_fit(word.text, size), "bold") for word, size in sized],
        "tag": [Text(_fit(word.tag, size)) for word, size in sized],
        "entity": [Text(cell) for cell in _entity_cells(words, sizes)],
        "layer": [_chip(word.layer, size, depth, color) for word, size in sized],
    }
    return [
        Text.assemble((f"{name:{GUTTER}}", GREY), Text(" " * GAP).join(cells))
        for name, cells in rows.items()
        if any(cell.plain.strip() for cell in cells)
    ]


def _legend(depth: int, per_line: int) -> list[Text]:
    names = [_chip(layer, CHIP, depth, True) for layer in range(1, depth + 1)]
    return [
        Text.assemble(
            (f"{'' if first else 'layers':{GUTTER}}", GREY), *names[first : first + per_line]
        )
        for first in range(0, depth, per_line)
    ]


def _chip(layer: int, size: int, depth: int, color: bool) -> Text:
    """The number of a layer, on its colour."""
    text = f"{layer or '-':{'^' if color else '<'}{size}}"
    if not layer:
        return Text(text)
    number = color_number(layer, depth)
    ink = 231 if number >= WHITE_FROM else 16
    return Text(text, f"bold color({ink}) on color({RAMP[number][0]})")


def _entity_cells(words: Sequence[Word], sizes: Sequence[int]) -> list[str]:
    """The label of each entity, and a line below all of its words."""
    cells: list[str] = []
    for chunk in chunks(words):
        first = words[chunk[0]]
        size = sum(sizes[i] for i in chunk) + GAP * (len(chunk) - 1)
        cells.append(_fit(first.ent if first.begins else "", size, "─" if first.ent else " "))
    return cells


def _fit(text: str, size: int, fill: str = " ") -> str:
    text = cut(text, size, cell_len)
    return text + fill * (size - cell_len(text))
