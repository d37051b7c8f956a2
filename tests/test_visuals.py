"""Pictures of where words leave: what lies under what, what fits, and what can't break them."""

import contextlib
import importlib.util
import io
import re
import sys
import types
import unicodedata
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import spacy
import typer
from spacy.tokens import Doc, DocBin
from typer.testing import CliRunner

from spacy_earlyexit.pipeline.extensions import record
from spacy_earlyexit.visuals.html import depth_html
from spacy_earlyexit.visuals.svg import depth_svg
from spacy_earlyexit.visuals.terminal import depth_text
from spacy_earlyexit.visuals.words import RAMP

SVG = "{http://www.w3.org/2000/svg}"
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
RENDERERS = [depth_text, depth_svg, depth_html]

WORDS = ["Ann", "of", "New", "York", "City", "<b>", "&", "co", "left", "."]
LAYERS = [4, 1, 5, 6, 3, 2, 1, 1, 2, 1]
ENTS = ["B-PER", "O", "B-LOC", "I-LOC", "I-LOC", "O", "O", "O", "O", "O"]


def make_doc(words, layers, ents=None, lang="en", depth=6, **kwargs):
    """A Doc whose words left at these layers. White space was not encoded."""
    doc = Doc(spacy.blank(lang).vocab, words=words, ents=ents, **kwargs)
    tokens = np.array([token.i for token in doc if not token.is_space and layers[token.i]])
    own = np.array(layers)[tokens]
    chars = np.array([[doc[i].idx, doc[i].idx + len(doc[i])] for i in tokens]).reshape(-1, 2)
    units, macs = np.array([[0, len(doc.text)]]), np.array([[own.sum(), depth * len(own)]])
    none = np.zeros_like(tokens)
    record([doc], none, chars, {"layer": own}, none[:1], units, macs)
    return doc


def load_show():
    path = Path(__file__).parent.parent / "scripts" / "show.py"
    spec = importlib.util.spec_from_file_location("show", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def char_cells(char):
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def cells(text):
    return sum(map(char_cells, text))


def runs(line):
    """Where each piece of a line begins, in columns of the terminal, and the pieces."""
    return {cells(line[: match.start()]): match[0] for match in re.finditer(r"\S+", line)}


def blocks(text):
    """The rows of each block by name, without what comes behind the blocks."""
    found = []
    for block in text.split("\n\n")[:-1]:
        lines = [runs(line) for line in block.splitlines()]
        found.append({"words": lines[0], **{line.pop(0): line for line in lines[1:]}})
    return found


def columns(svg):
    """Per word of an SVG: its cells as (class, y), its dots' y, and where it is."""
    found = []
    for group in ElementTree.fromstring(svg).iter(f"{SVG}g"):
        rects = list(group.iter(f"{SVG}rect"))
        found.append(
            {
                "title": group.find(f"{SVG}title").text,
                "cells": [(rect.get("class"), float(rect.get("y"))) for rect in rects],
                "fills": [rect.get("fill") for rect in rects],
                "x": {float(rect.get("x")) for rect in rects},
                "dots": [float(dot.get("cy")) for dot in group.iter(f"{SVG}circle")],
            }
        )
    return found


def parse_html(markup):
    return ElementTree.fromstring(f"<all>{markup}</all>")


def text_of(element):
    """What a person would copy: the words, without layers and labels."""
    if element.tag in ("sub", "b"):
        return ""
    own = "\n" if element.tag == "br" else element.text or ""
    return own + "".join(text_of(child) + (child.tail or "") for child in element)


@pytest.fixture
def doc():
    return make_doc(WORDS, LAYERS, ENTS)


# Terminal


@pytest.mark.parametrize(
    "words",
    [
        ["Representatives", "of", "a", "state", "left", "."],
        ["東京", "は", "ﾆﾎﾝ", "Ｎｏ", "首都です", "。"],
        ["cafe\u0301", "n\u0303", "a\u0308o\u0308", "한국", "x", "!"],
    ],
)
def test_all_rows_line_up(words):
    layers = [1, 12, 3, 10, 5, 2]
    tags = ["NNS", "IN", "DT", "PROPN", "VBD", "."]
    doc = make_doc(words, layers, ["O", "O", "O", "B-GPE", "O", "O"], tags=tags, depth=12)
    (block,) = blocks(depth_text(doc, 12, color=False, width=100))
    assert list(block["words"].values()) == words
    assert dict(zip(block["words"], tags, strict=True)) == block["tag"]
    assert dict(zip(block["words"], map(str, layers), strict=True)) == block["layer"]
    start = list(block["words"])[3]
    assert block["entity"] == {start: "GPE".ljust(max(cells(words[3]), len("PROPN")), "─")}


def test_an_entity_is_underlined_from_its_first_to_its_last_word(doc):
    (block,) = blocks(depth_text(doc, 6, color=False, width=100))
    at = {word: start for start, word in block["words"].items()}
    wide = at["City"] + len("City") - at["New"]
    assert block["entity"] == {at["Ann"]: "PER", at["New"]: "LOC".ljust(wide, "─")}


def test_neighbouring_entities_of_one_label_are_two():
    doc = make_doc(["Ann", "Bob", "Lee"], [1, 1, 1], ["B-PER", "B-PER", "I-PER"])
    (block,) = blocks(depth_text(doc, color=False, width=100))
    assert list(block["entity"].values()) == ["PER", "PER─────"]


def test_a_label_longer_than_its_entity_pushes_the_next_word_away():
    doc = make_doc(["On", "it", "we", "go"], [1] * 4, ["B-creative-work", "I-creative-work"] * 2)
    (block,) = blocks(depth_text(doc, color=False, width=100))
    first, second = block["entity"]
    assert list(block["words"])[::2] == [first, second]
    assert second == first + len("creative-work") + 2


def test_rows_without_content_are_left_out():
    text = depth_text(make_doc(["so", "it", "is"], [1, 2, 3]), color=False, width=100)
    assert blocks(text)[0].keys() == {"words", "layer"}


def test_parts_of_speech_stand_in_for_tags():
    doc = make_doc(["so", "is"], [1, 2], pos=["ADV", "AUX"])
    assert list(blocks(depth_text(doc, color=False))[0]["tag"].values()) == ["ADV", "AUX"]


def test_the_last_line_sums_up(doc):
    last = depth_text(doc, 6, color=False, width=100).splitlines()[-1]
    assert last == "10 words, mean exit layer 2.60 of 6, MAC speed-up 2.31×"
    # the Doc does not know how many layers there were
    assert " of " not in depth_text(doc, color=False, width=100).splitlines()[-1]


@pytest.mark.parametrize("width", [20, 21, 30, 47, 80, 200])
@pytest.mark.parametrize("color", [True, False])
def test_no_line_is_longer_than_the_terminal(doc, width, color):
    text = ESCAPE.sub("", depth_text(doc, 24, color=color, width=width))
    assert max(map(cells, text.splitlines())) <= width
    found = blocks(text)
    shown = [word for block in found for word in block["words"].values()]
    if not color:
        assert shown == WORDS
        assert [n for b in found for n in b["layer"].values()] == [str(n) for n in LAYERS]


def test_entities_stay_in_one_line_if_they_can(doc):
    for width in range(24, 60):
        for block in blocks(depth_text(doc, color=False, width=width)):
            shown = list(block["words"].values())
            assert ("New" in shown) == ("City" in shown)


def test_an_entity_longer_than_a_line_goes_on_in_the_next():
    doc = make_doc(["a" * 8] * 3, [1] * 3, ["B-LOC", "I-LOC", "I-LOC"])
    found = blocks(depth_text(doc, color=False, width=20))
    assert [list(b["entity"].values()) for b in found] == [["LOC─────"], ["─" * 8], ["─" * 8]]


def test_the_width_is_the_terminals(doc, monkeypatch):
    monkeypatch.setenv("COLUMNS", "33")
    assert depth_text(doc, color=False) == depth_text(doc, color=False, width=33)
    assert depth_text(doc, color=False) != depth_text(doc, color=False, width=80)


@pytest.mark.parametrize("char", ["x", "語", "e\u0301"])
def test_long_words_are_cut(char):
    doc = make_doc([char * 100, "b"], [1, 2])
    (block,) = blocks(depth_text(doc, color=False, width=100))
    cut = next(iter(block["words"].values()))
    assert cut.endswith("…") and cut[:-1] == (char * 100)[: len(cut) - 1] and cells(cut) <= 24
    assert list(block["words"]) == list(block["layer"])


def test_without_colour_there_are_no_escape_codes(doc):
    assert "\x1b" not in depth_text(doc, color=False)


def test_colours_go_from_green_to_red_whatever_the_number_of_layers():
    def colors(layers, n_layers):
        doc = make_doc(["x"] * len(layers), layers)
        line = depth_text(doc, n_layers, color=True, width=200).splitlines()[1]
        return [int(number) for number in re.findall(r"48;5;(\d+)m", line)]

    ramp = [number for number, _ in RAMP]
    assert colors(list(range(1, 13)), 12) == ramp
    assert len(set(ramp)) == 12
    for n_layers in (1, 2, 6, 24):
        own = colors(list(range(1, n_layers + 1)), n_layers)
        assert own[0] == ramp[0] and (n_layers == 1 or own[-1] == ramp[-1])
        assert [ramp.index(number) for number in own] == sorted(map(ramp.index, own))
    assert colors([1, 6], None) == colors([1, 6], 6) != colors([1, 6], 12)


def test_the_legend_names_every_layer(doc):
    legend = depth_text(doc, 12, color=True, width=100).splitlines()[-2]
    assert ESCAPE.sub("", legend).split() == ["layers", *map(str, range(1, 13))]
    assert re.findall(r"48;5;(\d+)m", legend) == [str(number) for number, _ in RAMP]


@pytest.mark.parametrize(
    ("tty", "variables", "colored"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"ANSI_COLORS_DISABLED": "1"}, False),
    ],
)
def test_colour_is_for_terminals_that_want_it(doc, monkeypatch, tty, variables, colored):
    for name in ("NO_COLOR", "ANSI_COLORS_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", types.SimpleNamespace(isatty=lambda: tty))
    assert ("\x1b" in depth_text(doc, width=80)) == colored


# SVG


@pytest.mark.parametrize("n_layers", [6, 12])
def test_svg_has_a_cell_per_word_and_layer_and_a_dot_where_it_left(doc, n_layers):
    found = columns(depth_svg(doc, n_layers))
    assert len(found) == len(WORDS)
    for column, layer in zip(found, LAYERS, strict=True):
        names = [name for name, _ in column["cells"]]
        assert names == ["active"] * layer + ["halted"] * (n_layers - layer)
        heights = [y for _, y in column["cells"]]
        assert heights == sorted(set(heights)) == [y for _, y in found[0]["cells"]]
        (dot,) = column["dots"]
        assert 0 < dot - heights[layer - 1] < heights[1] - heights[0]
        assert len(column["x"]) == 1  # one above the other
    assert len(set(found[3]["fills"][:6])) == 6
    assert found[3]["fills"][0] == RAMP[0][1]


def test_svg_shows_words_labels_and_figures(doc):
    root = ElementTree.fromstring(depth_svg(doc, 6))
    shown = [element.text for element in root.iter(f"{SVG}text")]
    assert [text for text in shown if text in WORDS] == WORDS
    assert shown.count("PER") == shown.count("LOC") == 1
    assert [str(n) for n in range(1, 7)] == [text for text in shown if text.isdigit()]
    assert "10 words, mean exit layer 2.60 of 6, MAC speed-up 2.31×" in shown
    assert [c["title"] for c in columns(depth_svg(doc, 6))][3:6] == [
        "York, LOC, layer 6",
        "City, LOC, layer 3",
        "<b>, layer 2",
    ]


def test_svg_marks_an_entity_over_all_its_columns(doc):
    svg = depth_svg(doc, 6)
    bars = [r for r in ElementTree.fromstring(svg).iter(f"{SVG}rect") if r.get("class") == "entity"]
    xs = [min(column["x"]) for column in columns(svg)]
    assert [float(bar.get("x")) for bar in bars] == [xs[0], xs[2]]
    end = float(bars[1].get("x")) + float(bars[1].get("width"))
    assert xs[4] < end < xs[5]


@pytest.mark.parametrize("n_words", [1, 2, 10, 30, 41, 100])
def test_svg_keeps_everything_inside(n_words):
    words = ["extraordinarily", "w" * 60, "so"] * 40
    doc = make_doc(words[:n_words], ([1, 2, 3] * 40)[:n_words])
    root = ElementTree.fromstring(depth_svg(doc, 12))
    width, height = float(root.get("width")), float(root.get("height"))
    assert root.get("viewBox") == f"0 0 {width:g} {height:g}"
    for rect in root.iter(f"{SVG}rect"):
        x, y = float(rect.get("x")), float(rect.get("y"))
        assert 0 <= x <= x + float(rect.get("width")) <= width <= 1300
        assert 0 <= y <= y + float(rect.get("height")) <= height
    for text in root.iter(f"{SVG}text"):
        if text.get("y"):
            assert 0 < float(text.get("y")) < height
    assert len(columns(depth_svg(doc, 12))) == n_words


def test_svg_columns_do_not_overlap(doc):
    for words in (WORDS, WORDS * 4):
        root = ElementTree.fromstring(depth_svg(make_doc(words, [1] * len(words)), 1))
        boxes = sorted(
            (float(r.get("x")), float(r.get("width")))
            for r in root.iter(f"{SVG}rect")
            if r.get("class") == "active"
        )
        assert all(x + wide < right for (x, wide), (right, _) in pairwise(boxes))


def test_svg_turns_words_only_if_they_do_not_fit(doc):
    assert "rotate" not in depth_svg(doc, 6)
    many = make_doc(WORDS * 4, LAYERS * 4, ENTS * 4)
    root = ElementTree.fromstring(depth_svg(many, 6))
    turned = [t for t in root.iter(f"{SVG}text") if "rotate" in t.get("transform", "")]
    assert [text[0].text for text in turned] == WORDS * 4
    assert ["".join(text.itertext()) for text in turned][:4] == ["AnnPER", "of", "NewLOC", "York"]


def test_svg_needs_nothing_else(doc):
    root = ElementTree.fromstring(depth_svg(doc))
    assert {element.tag for element in root.iter()} == {
        SVG + name for name in ("svg", "title", "rect", "circle", "g", "text")
    }
    assert not any("href" in name for element in root.iter() for name in element.keys())


# HTML


def test_html_is_the_text_with_marks(doc):
    root = parse_html(depth_html(doc, 6))
    exits = root.find(".//div[@class='exits']")
    assert text_of(exits) == doc.text.rstrip()
    marks = list(exits.iter("mark"))
    assert [mark.text for mark in marks] == WORDS
    assert [mark.find("sub").text for mark in marks] == [str(layer) for layer in LAYERS]
    assert [mark.get("title") for mark in marks][4:6] == ["City, LOC, layer 3", "<b>, layer 2"]
    assert root.find(".//div[@class='summary']").text.startswith("10 words, mean exit layer 2.60")
    legend = [mark.text for mark in root.find(".//div[@class='legend']").iter("mark")]
    assert legend == [str(n) for n in range(1, 7)]


def test_html_colours_words_by_their_layer(doc):
    marks = list(parse_html(depth_html(doc, 6)).find(".//div[@class='exits']").iter("mark"))
    found = {}
    for mark, layer in zip(marks, LAYERS, strict=True):
        found.setdefault(layer, set()).add(re.search(r"background: (#\w+)", mark.get("style"))[1])
    assert all(len(colors) == 1 for colors in found.values())
    assert found[1] == {RAMP[0][1]} and found[6] == {RAMP[-1][1]}
    assert len(set.union(*found.values())) == 6


def test_html_puts_an_entity_into_one_box(doc):
    boxes = parse_html(depth_html(doc)).findall(".//span[@class='entity']")
    assert [text_of(box) for box in boxes] == ["Ann", "New York City"]
    assert [box.find("b").text for box in boxes] == ["PER", "LOC"]


def test_html_page(doc):
    page = depth_html(doc, 6, page=True)
    assert page.startswith("<!DOCTYPE html>")
    root = ElementTree.fromstring(page)
    assert root.tag == "html" and root.get("lang") == "en"
    assert root.find("head/meta").get("charset") == "utf-8"
    assert depth_html(doc, 6) in page
    assert "<html" not in depth_html(doc, 6)


def test_html_of_several_docs_shares_colours_and_legend(doc):
    other = make_doc(["so", "deep"], [1, 12], depth=12)
    root = parse_html(depth_html(iter([doc, other])))
    exits = root.findall(".//div[@class='exits']")
    assert [text_of(div).split() for div in exits] == [WORDS, ["so", "deep"]]
    assert len(root.findall(".//div[@class='summary']")) == 2
    (legend,) = root.findall(".//div[@class='legend']")
    assert len(list(legend.iter("mark"))) == 12
    assert RAMP[-1][1] not in ElementTree.tostring(exits[0], "unicode")


def test_html_is_shown_in_a_notebook(doc, monkeypatch):
    shown = []
    module = types.ModuleType("IPython.display")
    module.HTML, module.display = str, shown.append
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    assert depth_html(doc) is not None and not shown
    assert depth_html(doc, jupyter=True) is None
    monkeypatch.setattr(spacy.util, "is_in_jupyter", lambda: True)
    assert depth_html(doc) is None
    assert depth_html(doc, jupyter=False) in shown[0] and shown[0] == shown[1]
    assert len(shown) == 2


# All of them


def test_right_to_left():
    doc = make_doc(["גר", "בתל", "אביב"], [1, 2, 3], ["O", "B-LOC", "I-LOC"], lang="he")
    exits = parse_html(depth_html(doc)).find(".//div[@class='exits']")
    assert exits.get("lang") == "he" and "direction: rtl" in exits.get("style")
    root = ElementTree.fromstring(depth_html(doc, page=True))
    assert "direction: rtl" in root.find("body").get("style")
    starts = [min(column["x"]) for column in columns(depth_svg(doc))]
    assert starts == sorted(starts, reverse=True) and len(set(starts)) == 3


def test_white_space_is_no_word():
    words = ["\n", "so", "  ", "it", "\n\n", "is", "\x0b"]
    layers = [0, 1, 0, 2, 0, 3, 0]
    # what a component that is not ours may predict
    ents = ["B-LOC", "I-LOC", "I-LOC", "I-LOC", "O", "O", "O"]
    doc = make_doc(words, layers, ents)
    (block,) = blocks(depth_text(doc, color=False, width=100))
    assert list(block["words"].values()) == ["so", "it", "is"]
    assert list(block["layer"].values()) == ["1", "2", "3"]
    assert list(block["entity"].values()) == ["LOC───"]
    assert [c["title"] for c in columns(depth_svg(doc))] == [
        "so, LOC, layer 1",
        "it, LOC, layer 2",
        "is, layer 3",
    ]
    exits = parse_html(depth_html(doc)).find(".//div[@class='exits']")
    assert text_of(exits) == "\nso it\n\nis"


def test_words_that_were_not_encoded_are_shown_without_a_layer():
    doc = make_doc(["so", "it", "is"], [2, 0, 1])
    assert list(blocks(depth_text(doc, color=False))[0]["layer"].values()) == ["2", "-", "1"]
    assert "- " in ESCAPE.sub("", depth_text(doc, color=True).splitlines()[1])
    column = columns(depth_svg(doc))[1]
    assert [name for name, _ in column["cells"]] == ["halted"] * 2 and not column["dots"]
    exits = parse_html(depth_html(doc)).find(".//div[@class='exits']")
    assert [mark.text for mark in exits.iter("mark")] == ["so", "is"]
    assert text_of(exits).split() == ["so", "it", "is"]


def test_nothing_in_a_text_can_break_a_picture():
    words = ["\x1b[31mred", "a\x9bb", "nul\x00", "\ufffe", "a\u2028b"]
    words += ["</text>", "]]>", "\"'", "&amp;"]
    label = "A&<\"'\x1b"
    doc = make_doc(words, [1] * 9, [f"B-{label}"] * 9, tags=[label] * 9)
    text = depth_text(doc, color=False, width=200)
    assert all(char.isprintable() for char in text.replace("\n", ""))
    assert len(text.splitlines()) == 6
    for markup in (depth_svg(doc), depth_html(doc), depth_html(doc, page=True)):
        assert "</text>" in "".join(ElementTree.fromstring(markup).itertext())


def test_merged_tokens_with_white_space_stay_in_their_row():
    doc = make_doc(["New", "York", "\n", "is", "big"], [3, 2, 0, 1, 1])
    with doc.retokenize() as retokenizer:
        retokenizer.merge(doc[0:4])
    text = depth_text(doc, color=False, width=100)
    assert text.splitlines()[0].split() == ["New", "York", "is", "big"]
    assert text.splitlines()[1].split() == ["layer", "3", "1"]


def test_an_empty_doc_is_no_error():
    doc = spacy.blank("en")("")
    assert depth_text(doc, color=True).startswith("0 words")
    assert not columns(depth_svg(doc, 6))
    assert parse_html(depth_html([doc])).find(".//div[@class='exits']").text is None
    assert depth_html([]) and depth_html([], page=True)


@pytest.mark.parametrize("render", RENDERERS)
def test_a_doc_without_exits_is_an_error_that_helps(render):
    with pytest.raises(ValueError, match="store_user_data=True"):
        render(spacy.blank("en")("This never met a transformer"))


@pytest.mark.parametrize("render", RENDERERS)
def test_fewer_layers_than_exits_is_an_error(doc, render):
    with pytest.raises(ValueError, match=r"`n_layers`.*\(6\).*but is 5"):
        render(doc, 5)


@pytest.mark.parametrize("render", RENDERERS)
@pytest.mark.parametrize("n_layers", [10**7, 6.5, "12", True, -1])
def test_a_number_of_layers_that_is_none_is_an_error(doc, render, n_layers):
    with pytest.raises(ValueError, match="`n_layers` has to be a whole number between"):
        render(doc, n_layers)


@pytest.mark.parametrize("render", [depth_text, depth_svg])
@pytest.mark.parametrize("value", ["some text", None, 7])
def test_what_is_no_doc_is_an_error(render, value):
    with pytest.raises(ValueError, match="`doc` has to be a Doc, but is"):
        render(value)


@pytest.mark.parametrize("render", RENDERERS)
@pytest.mark.parametrize("char", ["\u202e", "\u202a", "\u2066"])
def test_no_word_turns_the_text_behind_it(render, char):
    assert char not in render(make_doc([f"a{char}b", "c"], [1, 1]))


def test_html_of_something_else_is_an_error(doc):
    with pytest.raises(ValueError, match="a Doc or an iterable of Docs"):
        depth_html(doc[0:2])


def test_a_trained_pipeline(trained):
    doc = trained("Anna Smith lives in New York .")
    for stored in (doc, *DocBin(docs=[doc], store_user_data=True).get_docs(trained.vocab)):
        (block,) = blocks(depth_text(stored, 4, color=False, width=100))
        assert list(block["words"].values()) == [token.text for token in doc]
        assert list(block["layer"].values()) == ["4"] * len(doc)
        assert list(block["entity"].values()) == ["PER────────", "LOC──────"]
        assert len(columns(depth_svg(stored))) == len(doc)
        assert text_of(parse_html(depth_html(stored)).find(".//div[@class='exits']")) == doc.text
    (bare,) = DocBin(docs=[doc]).get_docs(trained.vocab)
    with pytest.raises(ValueError, match="no exit layers"):
        depth_text(bare)


# scripts/show.py


@pytest.fixture(scope="module")
def pipeline(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("pipeline") / 'a "model"'
    trained.to_disk(path)
    nlp = spacy.load(path)
    criterion = {"@misc": "spacy-earlyexit.FixedExit.v1", "layer": 2}
    nlp.get_pipe("transformer").points["now"] = {"exit": criterion}
    nlp.to_disk(path)
    return str(path)


def show(*args):
    app = typer.Typer()
    app.command()(load_show().show_cli)
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.mark.parametrize(("options", "layer"), [([], 4), (["--exit", "now"], 2)])
def test_show_prints_the_words_and_how_to_load_the_pipeline(pipeline, tmp_path, options, layer):
    text = 'Anna "Smith" lives\tin New York'
    svg, html = tmp_path / "new" / "a.svg", tmp_path / "a.html"
    result = show(pipeline, text, *options, "--svg", svg, "--html", html)
    assert result.exit_code == 0, result.output
    (block,) = blocks(result.output.split("\n\n", 1)[0].strip() + "\n\n")
    assert list(block["layer"].values()) == [str(layer)] * len(block["words"])
    code = result.output.split("To use it:\n")[1]
    assert f"is in {pipeline}." in result.output
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec("\n".join(line[4:] for line in code.splitlines()), {})
    layers = [int(n) for n in re.findall(r"\d+", printed.getvalue())]
    assert [n for n in layers if n] == [layer] * len(block["words"])
    cells = [name for name, _ in columns(svg.read_text(encoding="utf8"))[0]["cells"]]
    assert cells == ["active"] * layer + ["halted"] * (4 - layer)
    assert ElementTree.fromstring(html.read_text(encoding="utf8")).tag == "html"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere", "Hi"], "Can't find model 'nowhere'"),
        (["PIPELINE", "Hi", "--exit", "2x"], "Unknown operating point '2x'"),
        (["PIPELINE", "Hi", "--svg", "FILE/x.svg"], "FILE"),
    ],
)
def test_show_says_what_is_wrong(pipeline, tmp_path, args, message):
    (tmp_path / "FILE").write_text("not a folder", encoding="utf8")
    places = {"PIPELINE": pipeline, "FILE/x.svg": str(tmp_path / "FILE" / "x.svg")}
    result = show(*(places.get(arg, arg) for arg in args))
    assert result.exit_code == 1
    assert "Can't show what the pipeline" in result.output
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
