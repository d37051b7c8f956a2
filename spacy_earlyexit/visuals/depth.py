"""Pictures of where words leave: for a terminal, as SVG, and as HTML in the manner of displaCy."""

import os
import re
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from math import cos, radians, sin
from typing import Any, NamedTuple
from xml.sax.saxutils import escape, quoteattr

import spacy.util
import wasabi
from spacy.displacy import get_doc_settings
from spacy.tokens import Doc

from ..errors import Errors
from ..pipeline.extensions import exit_layers, exit_stats

# From shallow to deep, for a terminal (xterm's number) and for the screen. Green, yellow, red, and
# from the yellow on ever darker: deep words stand out also to those who can't tell red from green.
RAMP = (
    (77, "#6fcf76"),
    (113, "#93d66b"),
    (149, "#b7db63"),
    (185, "#dade5e"),
    (221, "#f8d255"),
    (215, "#fab44c"),
    (208, "#f69447"),
    (202, "#ee7443"),
    (196, "#e05640"),
    (160, "#c93a39"),
    (124, "#ab2433"),
    (88, "#8a132b"),
)
WHITE_FROM = 8  # from this colour on, text on it is white
INK, GREY, HALTED, ACCENT = "#1f2328", "#59636e", "#eceff2", "#8250df"
LONGEST, LONGEST_PX = 24, 170  # longer words are cut
WORD, SMALL, CELL = 14, 10, 13  # font sizes and the height of a cell in the SVG, in pixels
TILT = 55  # degrees, of words that do not fit upright
FONTS = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"

# What XML can't hold, and what would steer a terminal.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Word(NamedTuple):
    space: str
    """The white space before it."""
    text: str
    tag: str
    ent: str
    """The label of the entity it is in, or nothing."""
    begins: bool
    """Whether it is the first word of that entity."""
    layer: int
    """0 if it was never encoded."""


def read_words(doc: Doc) -> list[Word]:
    """What the pictures show of a Doc. White space tokens are no words.

    doc (Doc): The document.
    RETURNS (List[Word]): Its words, with text that is safe to print.
    RAISES (ValueError): If none of them has an exit layer.
    """
    layers = exit_layers(doc)
    tokens = [token for token in doc if not token.is_space]
    if tokens and not any(layers):
        raise ValueError(Errors.E021.format(text=textwrap.shorten(doc.text, 40)))
    # not by token.ent_iob_: an entity may begin with white space
    heads = {next((t.i for t in ent if not t.is_space), -1) for ent in doc.ents}
    words: list[Word] = []
    text, end = doc.text, 0
    for token in tokens:
        words.append(
            Word(
                space=text[end : token.idx],
                text=_clean(token.text),
                tag=_clean(token.tag_ or token.pos_),
                ent=_clean(token.ent_type_),
                begins=token.i in heads,
                layer=layers[token.i],
            )
        )
        end = token.idx + len(token)
    return words


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
    RAISES (ValueError): If the Doc has no exit layers, or deeper ones than n_layers.
    """
    words = read_words(doc)
    depth = _depth(n_layers, words)
    if color is None:
        color = sys.stdout.isatty() and not os.getenv("NO_COLOR") and wasabi.util.supports_ansi()
    if width is None:
        width = shutil.get_terminal_size().columns
    gutter, gap = len("entity") + 2, 2
    room = max(width, 20) - gutter

    def paint(text: str, **style: Any) -> str:
        return wasabi.color(text, **style) if color else text

    def chip(layer: int, size: int) -> str:
        text = f"{layer or '-':{'^' if color else '<'}{size}}"
        if not layer:
            return text
        step = _step(layer, depth)
        return paint(text, fg=231 if step >= WHITE_FROM else 16, bg=RAMP[step][0], bold=True)

    def row_name(name: str) -> str:
        return paint(f"{name:{gutter}}", fg=244)  # a grey readable on black and on white

    sizes = [max(_cells(w.text), _cells(w.tag), len(str(w.layer))) for w in words]
    sizes = [min(size, LONGEST) for size in sizes]
    sizes = [min(size, room) for size in _widen(words, sizes, _cells, gap)]

    lines: list[str] = []
    for line in _lines(words, sizes, gap, room):
        own = list(zip(words[line], sizes[line], strict=True))
        rows = {
            "": [paint(_fit(word.text, size), bold=True) for word, size in own],
            "tag": [_fit(word.tag, size) for word, size in own],
            "entity": _entity_cells(words[line], sizes[line], gap),
            "layer": [chip(word.layer, size) for word, size in own],
        }
        for name, cells in rows.items():
            if any(cell.strip() for cell in cells):
                lines.append((row_name(name) + (" " * gap).join(cells)).rstrip())
        lines.append("")
    if color:
        legend = [chip(layer, 4) for layer in range(1, depth + 1)]
        per_line = room // 4
        for first in range(0, depth, per_line):
            name = row_name("" if first else "layers")
            lines.append(name + "".join(legend[first : first + per_line]))
    lines += textwrap.wrap(_summary(doc, words, n_layers), gutter + room)
    return "\n".join(lines)


def depth_svg(doc: Doc, n_layers: int | None = None) -> str:
    """Where words leave, as a picture: a column for each word and a row for each layer, coloured
    as far down as the word went.

    Words stand upright if all fit into one line. Else they are rotated, which makes room for 40 in
    a line, and what is longer takes several.

    doc (Doc): The document.
    n_layers (Optional[int]): As for depth_text.
    RETURNS (str): An SVG document that needs nothing else, on a white ground of its own.
    RAISES (ValueError): As for depth_text.
    """
    words = read_words(doc)
    depth = _depth(n_layers, words)
    left, gap, room = 60.0, 3.0, 1020.0
    sizes = [max(min(_px(word.text), LONGEST_PX), _px(word.tag, SMALL), 16) + 8 for word in words]
    sizes = _widen(words, sizes, lambda label: _px(label, SMALL) + 4, gap)
    upright = sum(sizes) + gap * (len(words) - 1) <= room
    if not upright:
        sizes = [22.5] * len(words)

    parts: list[str] = []
    bottom, right = 8.0, left
    for line in _lines(words, sizes, gap, room):
        own = sizes[line]
        starts = [left + x for x in accumulate([size + gap for size in own[:-1]], initial=0.0)]
        if get_doc_settings(doc)["direction"] == "rtl":
            end = starts[-1] + own[-1]
            starts = [left + end - x - size for x, size in zip(starts, own, strict=True)]
        band, bottom, edge = _svg_band(words[line], starts, own, depth, bottom + 12, upright)
        parts += band
        right = max(right, edge)

    summary = _summary(doc, words, n_layers)
    step = _step(max(1, depth // 3), depth)
    y = bottom + 20
    parts += [
        _svg_cell(left, y, 22, RAMP[step][1], "key"),
        _svg_dot(left + 11, y, "key"),
        _svg_text(left + 28, y + 11, "leaves here", SMALL, GREY),
        _svg_cell(left + 108, y, 22, HALTED, "key"),
        _svg_text(left + 136, y + 11, "halted", SMALL, GREY),
        _svg_text(left, y + 36, summary, 12, INK),
    ]
    width = round(max(right, left + max(_px(summary, 12), 250)) + 20)
    height = round(y + 52)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" role="img" font-family="{FONTS}">',
            f"<title>{escape(summary)}</title>",
            f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="10" '
            'fill="#ffffff" stroke="#d1d9e0"/>',
            *parts,
            "</svg>\n",
        ]
    )


def depth_html(
    docs: Doc | Iterable[Doc],
    n_layers: int | None = None,
    *,
    page: bool = False,
    jupyter: bool | None = None,
) -> str | None:
    """Where words leave, as running text whose words are coloured by their exit layer.

    docs (Union[Doc, Iterable[Doc]]): One document or several, which then share their colours.
    n_layers (Optional[int]): As for depth_text; None: the deepest exit layer in all of them.
    page (bool): Return a full HTML page, not just its content.
    jupyter (Optional[bool]): Show it in the notebook. None: if this is run in one.
    RETURNS (Optional[str]): The markup, also well-formed as XML; None if it was shown.
    RAISES (ValueError): As for depth_text.
    """
    docs = [docs] if isinstance(docs, Doc) else list(docs)
    for doc in docs:
        if not isinstance(doc, Doc):
            expected = "a Doc or an iterable of Docs"
            raise ValueError(Errors.E018.format(setting="docs", expected=expected, value=doc))
    read = [read_words(doc) for doc in docs]
    depth = _depth(n_layers, [word for words in read for word in words])
    parts: list[str] = []
    for doc, words in zip(docs, read, strict=True):
        settings = get_doc_settings(doc)
        parts.append(
            f'<div class="exits" lang={quoteattr(settings["lang"])} style="line-height: 2.6; '
            f'direction: {settings["direction"]}">{"".join(_html_words(words, depth))}</div>\n'
            f'<div class="summary" style="font-size: 0.8em; opacity: 0.75; margin: 0.3em 0 1.5em">'
            f"{escape(_summary(doc, words, n_layers))}</div>\n"
        )
    legend = " ".join(
        _html_mark(str(layer), layer, depth, f"layer {layer}") for layer in range(1, depth + 1)
    )
    parts.append(f'<div class="legend" style="font-size: 0.7em">layers {legend}</div>\n')
    html = f'<figure style="margin: 0; direction: ltr">\n{"".join(parts)}</figure>\n'
    if page:
        settings = get_doc_settings(docs[0]) if docs else {"lang": "en", "direction": "ltr"}
        html = (
            f"<!DOCTYPE html>\n<html lang={quoteattr(settings['lang'])}>\n<head>"
            '<meta charset="utf-8"/><title>Exit layers</title></head>\n'
            f'<body style="font: 16px {FONTS}; padding: 4rem 2rem; '
            f'direction: {settings["direction"]}">\n{html}</body>\n</html>\n'
        )
    if jupyter or (jupyter is None and spacy.util.is_in_jupyter()):
        from IPython.display import HTML, display

        # as displaCy does: the class keeps MathJax away from the text
        display(HTML(f'<span class="tex2jax_ignore">{html}</span>'))
        return None
    return html


def _title(word: Word) -> str:
    """What a tooltip says."""
    layer = f"layer {word.layer}" if word.layer else "no layer"
    return ", ".join(part for part in (word.text, word.tag, word.ent, layer) if part)


def _clean(text: str) -> str:
    return _CONTROL.sub("\ufffd", " ".join(text.split()))


def _depth(n_layers: int | None, words: Sequence[Word]) -> int:
    deepest = max((word.layer for word in words), default=0)
    if n_layers is not None and n_layers < deepest:
        expected = f"at least the deepest exit layer ({deepest})"
        raise ValueError(Errors.E018.format(setting="n_layers", expected=expected, value=n_layers))
    return deepest if n_layers is None else n_layers


def _step(layer: int, depth: int) -> int:
    """The colour of a layer: the first layer has the first, the last layer the last."""
    return round((layer - 1) / max(depth - 1, 1) * (len(RAMP) - 1))


def _summary(doc: Doc, words: Sequence[Word], n_layers: int | None) -> str:
    stats = exit_stats(doc)
    of = f" of {n_layers}" if n_layers else ""
    number = "1 word" if len(words) == 1 else f"{len(words)} words"
    mean = f"mean exit layer {stats['mean_depth']:.2f}{of}"
    return f"{number}, {mean}, MAC speed-up {stats['speedup']:.2f}×"


# Where things go: the same for characters and for pixels


def _chunks(words: Sequence[Word]) -> Iterator[range]:
    """What should stay together: the words of an entity, or one word."""
    start = 0
    for end in range(1, len(words) + 1):
        if end == len(words) or not words[end].ent or words[end].begins:
            yield range(start, end)
            start = end


def _widen(
    words: Sequence[Word], sizes: Sequence[Any], measure: Callable[[str], Any], gap: Any
) -> list[Any]:
    """Columns wide enough for the labels of entities, which lie across all columns of theirs."""
    sizes = list(sizes)
    for chunk in _chunks(words):
        has = sum(sizes[i] for i in chunk) + gap * (len(chunk) - 1)
        sizes[chunk[-1]] += max(0, measure(words[chunk[0]].ent) - has)
    return sizes


def _lines(words: Sequence[Word], sizes: Sequence[float], gap: float, room: float) -> list[slice]:
    """Lines that fit into the room; entities are cut only if they are longer than a line."""
    lines: list[slice] = []
    start, used = 0, -gap
    for chunk in _chunks(words):
        whole = sum(sizes[i] for i in chunk) + gap * (len(chunk) - 1) <= room
        for part in [chunk] if whole else [range(i, i + 1) for i in chunk]:
            size = sum(sizes[i] + gap for i in part)
            if part.start > start and used + size > room:
                lines.append(slice(start, part.start))
                start, used = part.start, -gap
            used += size
    return [*lines, slice(start, len(words))] if words else []


def _cut(text: str, room: float, measure: Callable[[str], float]) -> str:
    if measure(text) > room:
        left = room - measure("…")
        for end, char in enumerate(text):
            left -= measure(char)
            if left < 0:
                return text[:end] + "…"
    return text


# Terminal


def _cells(text: str) -> int:
    """Columns of a terminal that a text takes."""
    return sum(_char_cells(char) for char in text)


def _char_cells(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):  # they go on top of another
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _fit(text: str, size: int, fill: str = " ") -> str:
    text = _cut(text, size, _cells)
    return text + fill * (size - _cells(text))


def _entity_cells(words: Sequence[Word], sizes: Sequence[int], gap: int) -> list[str]:
    """The label of each entity, and a line below all of its words."""
    cells: list[str] = []
    for chunk in _chunks(words):
        first = words[chunk[0]]
        size = sum(sizes[i] for i in chunk) + gap * (len(chunk) - 1)
        cells.append(_fit(first.ent if first.begins else "", size, "─" if first.ent else " "))
    return cells


# SVG


def _px(text: str, size: float = WORD) -> float:
    """About as wide as a text is drawn; rather more than less, since fonts differ."""
    return size * sum(_em(char) for char in text)


def _em(char: str) -> float:
    cells = _char_cells(char)
    if cells != 1:
        return cells / 2
    if char in "iljtfrI.,:;'|!()[]-\"`":
        return 0.4
    if char in "mwMW@%&…—":
        return 0.95
    return 0.72 if char.isupper() else 0.6


def _svg_band(
    words: Sequence[Word],
    starts: Sequence[float],
    sizes: Sequence[float],
    depth: int,
    top: float,
    upright: bool,
) -> tuple[list[str], float, float]:
    """One line of words with the layers below it.

    RETURNS (Tuple[List[str], float, float]): The markup, its lower and its right edge.
    """
    middles = [x + size / 2 for x, size in zip(starts, sizes, strict=True)]
    right = max(x + size for x, size in zip(starts, sizes, strict=True))
    if upright:
        parts, grid = _svg_upright(words, middles, sizes, top)
    else:
        parts, grid, reach = _svg_tilted(words, middles, top)
        right = max(right, reach)
    for chunk in _chunks(words):
        if label := words[chunk[0]].ent:
            x = min(starts[i] for i in chunk)
            end = max(starts[i] + sizes[i] for i in chunk)
            if upright and words[chunk[0]].begins:
                middle = (x + end) / 2
                parts.append(_svg_text(middle, grid, label, SMALL, ACCENT, anchor="middle"))
            parts.append(
                f'<rect class="entity" x="{x:g}" y="{grid + 5:g}" width="{end - x:g}" '
                f'height="2.5" rx="1.25" fill="{ACCENT}"/>'
            )
    grid += 12
    edge = min(starts) - 9
    parts.append(_svg_text(edge, grid - 4, "layer", SMALL, GREY, anchor="end"))
    for layer in range(1, depth + 1):
        y = grid + (layer - 1) * (CELL + 2) + CELL - 3
        parts.append(_svg_text(edge, y, str(layer), SMALL, GREY, anchor="end"))
    for word, x, size in zip(words, starts, sizes, strict=True):
        parts.append(f'<g class="column"><title>{escape(_title(word))}</title>')
        for layer in range(1, depth + 1):
            y = grid + (layer - 1) * (CELL + 2)
            on = layer <= word.layer
            fill = RAMP[_step(layer, depth)][1] if on else HALTED
            parts.append(_svg_cell(x, y, size, fill, "active" if on else "halted"))
            if layer == word.layer:
                parts.append(_svg_dot(x + size / 2, y, "exit"))
        parts.append("</g>")
    return parts, grid + depth * (CELL + 2), right


def _svg_upright(
    words: Sequence[Word], middles: Sequence[float], sizes: Sequence[float], top: float
) -> tuple[list[str], float]:
    """Words and tags; room for the labels of entities. And where that ends."""
    parts: list[str] = []
    y = top + WORD
    for word, x, size in zip(words, middles, sizes, strict=True):
        parts.append(_svg_text(x, y, _cut(word.text, size, _px), WORD, INK, anchor="middle"))
    if any(word.tag for word in words):
        y += 16
        for word, x in zip(words, middles, strict=True):
            parts.append(_svg_text(x, y, word.tag, SMALL, GREY, anchor="middle"))
    return parts, y + 16 if any(word.ent for word in words) else y


def _svg_tilted(
    words: Sequence[Word], middles: Sequence[float], top: float
) -> tuple[list[str], float, float]:
    """Words with their tags and the labels of entities behind them. And where that ends."""
    parts: list[str] = []
    rows = [
        [
            (_cut(word.text, LONGEST_PX, _px), WORD, INK),
            (word.tag, SMALL, GREY),
            (word.ent if word.begins else "", SMALL, ACCENT),
        ]
        for word in words
    ]
    longs = [sum(_px(text, size) + 5 for text, size, _ in row if text) for row in rows]
    y = top + max(longs) * sin(radians(TILT))
    for row, x in zip(rows, middles, strict=True):
        spans = "".join(
            f'<tspan font-size="{size}" fill="{fill}" dx="{5 if i else 0}">{escape(text)}</tspan>'
            for i, (text, size, fill) in enumerate(row)
            if text
        )
        place = f"translate({x + 4:g} {y:g}) rotate(-{TILT})"
        parts.append(f'<text transform="{place}">{spans}</text>')
    ends = [x + long * cos(radians(TILT)) for x, long in zip(middles, longs, strict=True)]
    return parts, y, max(ends)


def _svg_text(x: float, y: float, text: str, size: float, fill: str, anchor: str = "start") -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{fill}" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )


def _svg_cell(x: float, y: float, size: float, fill: str, name: str) -> str:
    return (
        f'<rect class="{name}" x="{x:g}" y="{y:g}" width="{size:g}" height="{CELL}" rx="3" '
        f'fill="{fill}"/>'
    )


def _svg_dot(x: float, y: float, name: str) -> str:
    return (
        f'<circle class="{name}" cx="{x:g}" cy="{y + CELL / 2:g}" r="4" fill="#ffffff" '
        f'stroke="{INK}" stroke-width="1.5"/>'
    )


# HTML


# a box that is cut at the end of a line is closed, and its direction is its own affair
_WRAP = "unicode-bidi: isolate; -webkit-box-decoration-break: clone; box-decoration-break: clone"
_SMALL = "font-size: 0.65em; margin-inline-start: 0.35em"
_BOX = f"border: 1.5px solid {ACCENT}; border-radius: 0.45em; padding: 0.35em 0.3em; {_WRAP}"


def _html_words(words: Sequence[Word], depth: int) -> Iterator[str]:
    for chunk in _chunks(words):
        parts: list[str] = []
        for i in chunk:
            word = words[i]
            space = "<br/>" * word.space.count("\n") or " " * bool(word.space)
            parts.append(space)
            text = f"<span title={quoteattr(_title(word))}>{escape(word.text)}</span>"
            if word.layer:
                # without it in what is selected, a copy of the text is the text
                number = f'<sub style="{_SMALL}; user-select: none">{word.layer}</sub>'
                text = _html_mark(escape(word.text) + number, word.layer, depth, _title(word))
            parts.append(text)
        space, *marks = parts
        yield space
        if label := words[chunk[0]].ent:
            # nothing that could be broken between the last word and the label
            marks.append(f'<b style="{_SMALL}; user-select: none">{escape(label)}</b>')
            yield f'<span class="entity" style="{_BOX}">{"".join(marks)}</span>'
        else:
            yield from marks


def _html_mark(content: str, layer: int, depth: int, title: str) -> str:
    step = _step(layer, depth)
    ink = "#ffffff" if step >= WHITE_FROM else "#000000"
    return (
        f'<mark title={quoteattr(title)} style="background: {RAMP[step][1]}; color: {ink}; '
        f'padding: 0.2em 0.35em; border-radius: 0.3em; line-height: 1; {_WRAP}">{content}</mark>'
    )
