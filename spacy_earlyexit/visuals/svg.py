"""Where words leave, as an SVG picture."""

import unicodedata
from collections.abc import Sequence
from itertools import accumulate
from math import cos, radians, sin
from typing import NamedTuple

from rich.cells import cell_len
from spacy.displacy import get_doc_settings
from spacy.tokens import Doc

from .markup import template
from .words import (
    RAMP,
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

# In pixels
WORD, SMALL, CELL = 14, 10, 13  # sizes of text, and the height of a cell
LONGEST = 170  # longer words are cut
LEFT, GAP, ROOM = 60.0, 3.0, 1020.0
TILT = 55  # degrees, of words that do not fit upright


class Column(NamedTuple):
    """A word and the place of its cells."""

    word: Word
    text: str
    """As much of the word as fits."""
    x: float
    size: float

    @property
    def middle(self) -> float:
        return self.x + self.size / 2


class Entity(NamedTuple):
    """A bar below the words of an entity, or below those that are in this line."""

    label: str
    """Nothing where the label stands elsewhere."""
    x: float
    size: float


class Band(NamedTuple):
    """One line of words with the layers below it."""

    columns: list[Column]
    entities: list[Entity]
    edge: float
    """Where the names of the layers end."""
    text: float
    """The lower edge of the words."""
    grid: float
    """The upper edge of the first layer."""
    bottom: float
    right: float


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
    depth = shown_depth(n_layers, words)
    sizes = [max(min(_px(word.text), LONGEST), _px(word.tag, SMALL), 16) + 8 for word in words]
    sizes = widen(words, sizes, lambda label: _px(label, SMALL) + 4, GAP)
    upright = sum(sizes) + GAP * (len(words) - 1) <= ROOM
    if not upright:
        sizes = [22.5] * len(words)

    bands: list[Band] = []
    bottom = 8.0
    for line in break_lines(words, sizes, GAP, ROOM):
        rtl = get_doc_settings(doc)["direction"] == "rtl"
        columns = _columns(words[line], sizes[line], upright, rtl)
        bands.append(_band(columns, depth, bottom + 12, upright))
        bottom = bands[-1].bottom
    caption = summary(doc, words, n_layers)
    right = max([LEFT + max(_px(caption, 12), 250), *(band.right for band in bands)])
    return template("depth.svg").render(
        bands=bands,
        caption=caption,
        colors=[RAMP[color_number(layer, depth)][1] for layer in range(1, depth + 1)],
        key_color=RAMP[color_number(max(1, depth // 3), depth)][1],
        upright=upright,
        left=LEFT,
        bottom=bottom,
        width=round(right + 20),
        height=round(bottom + 72),
        word=WORD,
        small=SMALL,
        cell=CELL,
        tilt=TILT,
    )


def _columns(
    words: Sequence[Word], sizes: Sequence[float], upright: bool, rtl: bool
) -> list[Column]:
    starts = [LEFT + x for x in accumulate([size + GAP for size in sizes[:-1]], initial=0.0)]
    if rtl:
        end = starts[-1] + sizes[-1]
        starts = [LEFT + end - x - size for x, size in zip(starts, sizes, strict=True)]
    return [
        Column(word, cut(word.text, size if upright else LONGEST, _px), x, size)
        for word, x, size in zip(words, starts, sizes, strict=True)
    ]


def _band(columns: Sequence[Column], depth: int, top: float, upright: bool) -> Band:
    right = max(column.x + column.size for column in columns)
    if upright:
        text = top + WORD
        tags = 16 * any(column.word.tag for column in columns)
        labels = 16 * any(column.word.ent for column in columns)
        bars = text + tags + labels
    else:
        longs = [_tilted_length(column) for column in columns]
        text = bars = top + max(longs) * sin(radians(TILT))
        ends = [
            column.middle + long * cos(radians(TILT))
            for column, long in zip(columns, longs, strict=True)
        ]
        right = max(right, *ends)
    grid = bars + 12
    return Band(
        columns=list(columns),
        entities=_entities(columns, upright),
        edge=min(column.x for column in columns) - 9,
        text=text,
        grid=grid,
        bottom=grid + depth * (CELL + 2),
        right=right,
    )


def _entities(columns: Sequence[Column], upright: bool) -> list[Entity]:
    entities: list[Entity] = []
    for chunk in chunks([column.word for column in columns]):
        first = columns[chunk[0]].word
        if first.ent:
            x = min(columns[i].x for i in chunk)
            end = max(columns[i].x + columns[i].size for i in chunk)
            entities.append(Entity(first.ent if upright and first.begins else "", x, end - x))
    return entities


def _tilted_length(column: Column) -> float:
    """A word with its tag and the label of the entity that it begins."""
    word = column.word
    parts = [(column.text, WORD), (word.tag, SMALL), (word.ent if word.begins else "", SMALL)]
    return sum(_px(text, size) + 5 for text, size in parts if text)


def _px(text: str, size: float = WORD) -> float:
    """About as wide as a text is drawn; rather more than less, since fonts differ."""
    return size * sum(_em(char) for char in text)


def _em(char: str) -> float:
    cells = cell_len(char)
    if cells != 1 or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return cells / 2 if cells != 1 else 0.0
    if char in "iljtfrI.,:;'|!()[]-\"`":
        return 0.4
    if char in "mwMW@%&…—":
        return 0.95
    return 0.72 if char.isupper() else 0.6
