"""Units of raw text: where sentences end, what is joined, what is cut, and what stays whole."""

import pytest
import spacy
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.tokens import Doc, DocBin, Token
from spacy.training import Example
from spacy.util import registry

from spacy_earlyexit.model.text_units import find_starts, make_text_units
from spacy_earlyexit.training.unit_corpus import cut_example, make_unit_corpus

NLP = spacy.blank("en")
PIECES = ["New", "York", "lives", "a", ".", "!", "...", '"', ")", "(", ",", "\n", "\n\n", " ", "。"]


def sentences(text, lang="en"):
    doc = spacy.blank(lang)(text)
    starts, _ = find_starts(doc)
    bounds = [*starts.tolist(), len(doc)]
    return [doc[a:b].text for a, b in zip(bounds, bounds[1:], strict=False)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One came. Two left.", ["One came.", "Two left."]),
        ("What?! Yes... No", ["What?!", "Yes...", "No"]),
        ("it works. really", ["it works. really"]),
        ("Dr. Smith of the U.S. army, e.g. Ann", ["Dr. Smith of the U.S. army, e.g. Ann"]),
        ('He said "Go." Then he left.', ['He said "Go."', "Then he left."]),
        ('He left. "Hi," she said.', ["He left.", '"Hi," she said.']),
        ("It ended (at last.) All went.", ["It ended (at last.)", "All went."]),
        ("Left. (No one came.) Yes", ["Left.", "(No one came.)", "Yes"]),
        ("A Title\n\nFirst words", ["A Title\n\n", "First words"]),
        ("A Title\r\n\r\nFirst words", ["A Title\r\n\r\n", "First words"]),
        ("in New\nYork City", ["in New\nYork City"]),
        ("All left.\nNobody came", ["All left.\n", "Nobody came"]),
        ("It cost 3.5 million. 40 came", ["It cost 3.5 million.", "40 came"]),
        ("Ask Yahoo!, Inc", ["Ask Yahoo!, Inc"]),
        ('He left.  "Hi," she said.', ["He left.  ", '"Hi," she said.']),
        ('He left.\n"Hi," she said.', ["He left.\n", '"Hi," she said.']),
        ('He left.\n\n"Hi," she said.', ["He left.\n\n", '"Hi," she said.']),
        ("First thing.\n* Second thing.", ["First thing.\n", "* Second thing."]),
        ("\n\n", ["\n\n"]),
        (".", ["."]),
    ],
)
def test_where_sentences_end(text, expected):
    assert sentences(text) == expected


@pytest.mark.parametrize("text", ["By J. S. Bach", "Am 3. Oktober", "1. First"])
def test_no_end_behind_an_initial_or_a_short_number(text):
    """By a tokenizer that does not know them."""
    assert sentences(text, "xx") == [text]


def test_where_sentences_end_without_spaces_or_capitals():
    assert sentences("他走了。她来了！真的吗？", "zh") == ["他走了。", "她来了！", "真的吗？"]


def test_sentences_that_are_set_are_kept_to():
    doc = NLP("One came. Two left.")
    doc[2].is_sent_start = True  # of no rule's liking
    assert find_starts(doc)[0].tolist() == [0, 2]
    spans = make_text_units(length=4, longest=8)([doc])[0]
    assert [span.text for span in spans] == ["One came", ". Two left."]


def test_sentences_are_joined_up_to_the_length():
    doc = NLP("One came. Two left. Three stayed. Four")
    for length, expected in {3: [3, 3, 3, 1], 6: [6, 4], 7: [6, 4], 9: [9, 1], 10: [10]}.items():
        spans = make_text_units(length, 20)([doc])[0]
        assert [len(span) for span in spans] == expected


def test_a_long_sentence_is_cut_where_no_name_goes_on():
    def cuts(text, longest=8):
        return [span.text for span in make_text_units(4, longest)([NLP(text)])[0]]

    assert cuts("we went to the shop, and Ann Lee came by") == [
        "we went to the shop,",
        "and Ann Lee came by",
    ]
    assert cuts("we went to the old\nshop, and Ann Lee came by")[0] == "we went to the old\n"
    # the last place that is not between two capitals
    text = "so we saw Ann Bell Carr Dean Ellis yesterday and so on"
    assert [cuts(text, longest)[0] for longest in (7, 8)] == ["so we saw", text[:34]]
    assert [len(part.split()) for part in cuts(" ".join("ABCDEFGHIJKLMNOPQR"))] == [8, 8, 2]


@pytest.mark.parametrize(
    ("names", "rest"),
    [
        ("actor Jean-Claude went", "home to the small red house"),
        ("Ronald McDonald", "b b b b"),
        ("Boeing 747", "b b b b"),
    ],
)
def test_no_cut_inside_of_a_name_that_is_written_otherwise(names, rest):
    for before in range(3, 12):
        text = "a " * before + f"{names} {rest} " + "b " * 12
        for span in make_text_units(4, 12)([NLP(text)])[0][1:]:
            assert not span.text.startswith(("Claude", "-", "McDonald", "747"))


def test_no_unit_begins_with_what_belongs_to_the_token_before():
    for before in range(3, 12):
        text = "a " * before + "(b), c don't do " + "b " * 12
        for span in make_text_units(4, 10)([NLP(text)])[0][1:]:
            assert span[0].text not in (",", ")", "n't", "b)") and span[-1].text != "("


def test_a_start_that_is_only_forbidden_leaves_the_rule_in_force():
    doc = NLP("One came. Two left ... Three stayed. Four")
    doc[6].is_sent_start = False  # the word behind the dots
    starts = find_starts(doc)[0].tolist()
    assert [doc[i].text for i in starts] == ["One", "Two", "Four"]
    for token in doc[1:]:
        token.is_sent_start = False
    assert find_starts(doc)[0].tolist() == [0]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=60), st.integers(1, 12), st.integers(0, 12))
def test_units_cover_every_token_once_and_none_is_too_long(pieces, length, more):
    doc = Doc(NLP.vocab, words=pieces)
    longest = max(length + more, 2)
    (spans,) = make_text_units(length, longest)([doc])
    assert [token.i for span in spans for token in span] == list(range(len(doc)))
    assert all(0 < len(span) <= longest for span in spans)
    # two neighbours that would fit into one unit are one, if no sentence had to be cut
    starts = find_starts(doc)[0].tolist() if pieces else [0]
    if all(b - a <= length for a, b in zip(starts, [*starts[1:], len(doc)], strict=True)):
        assert all(len(a) + len(b) > length for a, b in zip(spans, spans[1:], strict=False))


def test_docs_are_cut_each_for_itself():
    docs = [NLP(text) for text in ("", "One came. Two left.", "Three")]
    cut = make_text_units(3, 6)
    assert [[s.text for s in spans] for spans in cut(docs)] == [
        [],
        ["One came.", "Two left."],
        ["Three"],
    ]
    assert cut([]) == []


@pytest.mark.parametrize(
    ("given", "setting"),
    [((0, 9), "length"), ((8, 7), "longest"), ((1.5, 9), "length"), ((3, "a"), "longest")],
)
def test_settings_that_make_no_sense(given, setting):
    with pytest.raises(ValueError, match=f"`{setting}` has to be a whole number"):
        make_text_units(*given)


def test_it_is_registered():
    block = {"@span_getters": "spacy-earlyexit.text_units.v1", "length": 5, "longest": 7}
    getter = registry.resolve({"spans": block})["spans"]
    assert (getter.length, getter.longest) == (5, 7)


# Units as examples


def example(text, words, ents):
    gold = Doc(NLP.vocab, words=words, spaces=[w + " " in text for w in words], ents=ents)
    assert gold.text.strip() == text
    return Example(NLP.make_doc(gold.text), gold)


def test_every_unit_is_an_example_with_its_gold():
    words = ["Ann", "came", ".", "Bob", "Lee", "left", "."]
    eg = example("Ann came. Bob Lee left.", words, ["B-P", "O", "O", "B-P", "I-P", "O", "O"])
    parts = list(cut_example(eg, make_text_units(4, 8)))
    assert [part.predicted.text.strip() for part in parts] == ["Ann came.", "Bob Lee left."]
    assert [[e.text for e in part.reference.ents] for part in parts] == [["Ann"], ["Bob Lee"]]
    assert not any(part.predicted.has_annotation("ENT_IOB") for part in parts)


def test_no_cut_inside_of_a_gold_entity_or_token():
    words = ["Ask", "Yahoo", "!", "Inc", "now", "."]
    eg = example("Ask Yahoo! Inc now.", words, ["O", "B-O", "I-O", "I-O", "O", "O"])
    (part,) = cut_example(eg, make_text_units(3, 6))
    assert [ent.text for ent in part.reference.ents] == ["Yahoo! Inc"]
    eg = example("Ask Yahoo! Inc now.", ["Ask", "Yahoo! Inc", "now", "."], ["O"] * 4)
    assert len(list(cut_example(eg, make_text_units(3, 6)))) == 1


def test_custom_attributes_go_with_their_tokens():
    Token.set_extension("unit_test_lang", default=None, force=True)
    words = ["Ann", "came", ".", "Bob", "left", "."]
    eg = example("Ann came. Bob left.", words, ["O"] * 6)
    for token in eg.reference:
        token._.unit_test_lang = f"{token.i}"
    parts = list(cut_example(eg, make_text_units(3, 6)))
    found = [[token._.unit_test_lang for token in part.reference] for part in parts]
    assert found == [["0", "1", "2"], ["3", "4", "5"]]
    Token.remove_extension("unit_test_lang")


def test_what_is_said_of_the_whole_document_keeps_it_whole():
    words = ["Ann", "came", ".", "Bob", "left", "."]
    for kind in ("cats", "spans"):
        eg = example("Ann came. Bob left.", words, ["O"] * 6)
        if kind == "cats":
            eg.reference.cats = {"good": 1.0}
        else:
            eg.reference.spans["sc"] = [eg.reference[0:1]]
        assert list(cut_example(eg, make_text_units(3, 6))) == [eg]


def test_a_parse_keeps_its_sentences():
    words = ["He", "said", ".", "No", "more", ".", "Bob", "left", "."]
    gold = Doc(NLP.vocab, words=words, heads=[1, 1, 1, 1, 1, 1, 7, 7, 7], deps=["dep"] * 9)
    assert len(list(gold.sents)) == 2
    eg = Example(NLP.make_doc(gold.text), gold)
    parts = list(cut_example(eg, make_text_units(3, 6)))
    assert [len(part.reference) for part in parts] == [6, 3]
    assert all(token.head.i >= 0 for part in parts for token in part.reference)


def test_a_getter_that_needs_more_than_tokens_cuts_later():
    eg = example("Ann left.", ["Ann", "left", "."], ["B-P", "O", "O"])
    getter = {"@span_getters": "spacy-transformers.sent_spans.v1"}
    assert list(cut_example(eg, registry.resolve({"g": getter})["g"])) == [eg]


def test_the_corpus_is_cut_as_the_transformer_will_cut_it(tmp_path):
    text = "One came. Two left. Three stayed."
    gold = NLP(text)
    for token in gold:
        token.is_sent_start = token.i % 3 == 0
    DocBin(docs=[gold] * 3).to_disk(tmp_path / "train.spacy")
    nlp = spacy.blank("en")
    read = make_unit_corpus(tmp_path / "train.spacy")
    assert [eg.predicted.text for eg in read(nlp)] == [text] * 3  # no transformer
    spans = {"@span_getters": "spacy-earlyexit.text_units.v1", "length": 6, "longest": 6}
    nlp.add_pipe("earlyexit_transformer", config={"model": {"get_spans": spans}})
    found = [eg.predicted.text.strip() for eg in read(nlp)]
    assert found == ["One came. Two left.", "Three stayed."] * 3
    read = make_unit_corpus(tmp_path / "train.spacy", gold_preproc=True, limit=1)
    assert len(list(read(nlp))) == 3  # sentences
    with pytest.raises(ValueError, match="E913"):
        make_unit_corpus(None)


def test_other_text_than_the_gold_is_not_cut():
    gold = Doc(NLP.vocab, words=["One", "came", ".", "Two", "left", "."])
    predicted = NLP("One came. Two left.")
    assert predicted.text != gold.text
    assert len(list(cut_example(Example(predicted, gold), make_text_units(3, 6)))) == 1
