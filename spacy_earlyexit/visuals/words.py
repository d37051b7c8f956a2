"""What all pictures of exit depth share: words with their layers, colours, and line breaks."""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from spacy.tokens import Doc

from ..errors import Errors
from ..pipeline.extensions import exit_layers, exit_stats
from .printable import printable

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
MOST_LAYERS = 1000  # no encoder is deeper; a picture of more would not end


class Word(NamedTuple):
    """A token as the pictures show it."""

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

    @property
    def title(self) -> str:
        """What a tooltip says."""
        layer = f"layer {self.layer}" if self.layer else "no layer"
        return ", ".join(part for part in (self.text, self.tag, self.ent, layer) if part)


def read_words(doc: Doc) -> list[Word]:
    """What the pictures show of a Doc. White space tokens are no words.

    doc (Doc): The document.
    RETURNS (List[Word]): Its words, with text that is safe to print.
    RAISES (ValueError): If it is no Doc, or if none of its words has an exit layer.
    """
    if not isinstance(doc, Doc):
        raise ValueError(Errors.E018.format(setting="doc", expected="a Doc", value=doc))
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


def _clean(text: str) -> str:
    return printable(" ".join(text.split()))


def shown_depth(n_layers: int | None, words: Sequence[Word]) -> int:
    """How many layers a picture has.

    n_layers (Optional[int]): What was asked for; None: as many as the deepest exit layer.
    words (Sequence[Word]): All words that are shown.
    RETURNS (int): The layers.
    RAISES (ValueError): If n_layers is no such number, or less than the deepest exit layer.
    """
    deepest = max((word.layer for word in words), default=0)
    if n_layers is None:
        return deepest
    whole = isinstance(n_layers, int) and not isinstance(n_layers, bool)
    if not whole or not deepest <= n_layers <= MOST_LAYERS:
        expected = f"a whole number between the deepest exit layer ({deepest}) and {MOST_LAYERS}"
        raise ValueError(Errors.E018.format(setting="n_layers", expected=expected, value=n_layers))
    return n_layers


def color_number(layer: int, depth: int) -> int:
    """The place of a layer's colour in RAMP: the first layer has the first, the last the last."""
    return round((layer - 1) / max(depth - 1, 1) * (len(RAMP) - 1))


def summary(doc: Doc, words: Sequence[Word], n_layers: int | None) -> str:
    """RETURNS (str): How many words there are, how deep they went and what that saved."""
    stats = exit_stats(doc)
    of = f" of {n_layers}" if n_layers else ""
    number = "1 word" if len(words) == 1 else f"{len(words)} words"
    mean = f"mean exit layer {stats['mean_depth']:.2f}{of}"
    return f"{number}, {mean}, MAC speed-up {stats['speedup']:.2f}×"


# Where things go: the same for characters and for pixels


def chunks(words: Sequence[Word]) -> Iterator[range]:
    """What should stay together: the words of an entity, or one word."""
    start = 0
    for end in range(1, len(words) + 1):
        if end == len(words) or not words[end].ent or words[end].begins:
            yield range(start, end)
            start = end


def widen(
    words: Sequence[Word], sizes: Sequence[Any], measure: Callable[[str], Any], gap: Any
) -> list[Any]:
    """Columns wide enough for the labels of entities, which lie across all columns of theirs."""
    sizes = list(sizes)
    for chunk in chunks(words):
        has = sum(sizes[i] for i in chunk) + gap * (len(chunk) - 1)
        sizes[chunk[-1]] += max(0, measure(words[chunk[0]].ent) - has)
    return sizes


def break_lines(
    words: Sequence[Word], sizes: Sequence[float], gap: float, room: float
) -> list[slice]:
    """Lines that fit into the room; entities are cut only if they are longer than a line."""
    lines: list[slice] = []
    start, used = 0, -gap
    for chunk in chunks(words):
        whole = sum(sizes[i] for i in chunk) + gap * (len(chunk) - 1) <= room
        for part in [chunk] if whole else [range(i, i + 1) for i in chunk]:
            size = sum(sizes[i] + gap for i in part)
            if part.start > start and used + size > room:
                lines.append(slice(start, part.start))
                start, used = part.start, -gap
            used += size
    return [*lines, slice(start, len(words))] if words else []


def cut(text: str, room: float, measure: Callable[[str], float]) -> str:
    """RETURNS (str): The text, or as much of its begin as fits before "…"."""
    if measure(text) > room:
        left = room - measure("…")
        for end, char in enumerate(text):
            left -= measure(char)
            if left < 0:
                return text[:end] + "…"
    return text
