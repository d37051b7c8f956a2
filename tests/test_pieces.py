"""Words to pieces and back: marks, alignment, windows over long documents, batches."""

import unicodedata
from dataclasses import fields

import numpy as np
import pytest
import spacy
import spacy_transformers  # noqa: F401 - registers the span getters
from conftest import SHARED, make_byte_bpe
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spacy.tokens import Doc
from spacy.util import registry
from spacy.vocab import Vocab
from transformers import AutoTokenizer

from spacy_earlyexit.model.pieces import Pieces, PieceTokenizer, encode_docs
from spacy_earlyexit.model.units import cut_windows

MARK = "\u2581"
ALPHABET = list("abcdefghijklmnopqrstuvwxyz.,!?'")


# --- tokenizers ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_hf(shared):
    return AutoTokenizer.from_pretrained(shared / "encoder")


@pytest.fixture(scope="module")
def real(real_hf):
    """Unigram with U+2581 in front of words, English and Chinese."""
    return PieceTokenizer.from_transformers(real_hf, "real")


@pytest.fixture(scope="module")
def wordpiece(encoder):
    return PieceTokenizer.from_transformers(AutoTokenizer.from_pretrained(encoder), "tiny")


@pytest.fixture(scope="module")
def byte_hf():
    return make_byte_bpe(prefix=True)


@pytest.fixture(scope="module")
def byte_bpe(byte_hf):
    return PieceTokenizer.from_transformers(byte_hf, "bytes")


@pytest.fixture(scope="module", params=["real", "wordpiece", "byte_bpe"])
def any_tokenizer(request):
    return request.getfixturevalue(request.param)


# --- helpers -------------------------------------------------------------------------------

DOC_SPANS = {"@span_getters": "spacy-transformers.doc_spans.v1"}


def getter(**block):
    return registry.resolve({"spans": block or DOC_SPANS})["spans"]


def strided(window, stride):
    return getter(
        **{
            "@span_getters": "spacy-transformers.strided_spans.v1",
            "window": window,
            "stride": stride,
        }
    )


def pieces_of(tokenizer, word, spaced):
    """One word alone: names of its pieces, and which of them stands for it."""
    ids, lengths, head = tokenizer.encode([word], [spaced])
    assert lengths.tolist() == [len(ids)]
    return [tokenizer._tokenizer.id_to_token(i) for i in ids.tolist()], int(head[0])


def is_spaced(token):
    return token.i == 0 or bool(token.nbor(-1).whitespace_) or token.nbor(-1).is_space


def assert_aligned(pieces, docs, tokenizer, max_positions):
    """Everything that holds for any packed pieces, against a plain loop over words."""
    assert len(pieces.ids) == len(pieces.row_word) == pieces.unit_starts[-1]
    assert len(pieces.word_row) == pieces.word_starts[-1] == len(pieces.owned)
    assert len(pieces.unit_starts) == len(pieces.word_starts) == pieces.n_units + 1
    for unit in range(pieces.n_units):
        ids, row_word = [tokenizer.special["start"]], [-1]
        rows = slice(*pieces.unit_starts[unit : unit + 2])
        words = range(*pieces.word_starts[unit : unit + 2])
        assert rows.stop - rows.start <= max_positions
        assert len(words)
        doc = docs[pieces.unit_doc[unit]]
        first, last = pieces.unit_bounds[unit]
        inside = [token for token in doc[first:last] if not token.is_space]
        assert [token.i for token in inside] == pieces.word_token[list(words)].tolist()
        for word, token in zip(words, inside, strict=True):
            assert pieces.word_doc[word] == pieces.unit_doc[unit]
            own, _, head = tokenizer.encode([token.text], [is_spaced(token)])
            own = own[: max_positions - 2].tolist()
            at = rows.start + len(ids) + min(int(head[0]), len(own) - 1)
            assert pieces.word_row[word] == at
            ids += own
            row_word += [word] * len(own)
        assert pieces.ids[rows].tolist() == [*ids, tokenizer.special["end"]]
        assert pieces.row_word[rows].tolist() == [*row_word, -1]
    spoken = sorted(
        zip(pieces.word_doc[pieces.owned], pieces.word_token[pieces.owned], strict=True)
    )
    assert spoken == [(d, t.i) for d, doc in enumerate(docs) for t in doc if not t.is_space]


def read_iob(path):
    """Sentences of words from word<TAB>tag lines."""
    text = path.read_text(encoding="utf8")
    blocks = [
        [line.split("\t")[0] for line in block.split("\n") if line and not line.startswith("# ")]
        for block in text.split("\n\n")
    ]
    return [block for block in blocks if block]


def texts_of(content):
    """The raw sentences of "# text = …" lines."""
    start = "# text = "
    return [line[len(start) :] for line in content.split("\n") if line.startswith(start)]


def wnut_docs(vocab):
    return [Doc(vocab, words=words) for words in read_iob(SHARED / "data/wnut17/test.iob")]


def ewt_docs(vocab):
    """Words with the whitespace that the raw sentences have."""
    docs = []
    for block in (SHARED / "data/ewt/dev.conllu").read_text(encoding="utf8").split("\n\n"):
        rows = [line.split("\t") for line in block.split("\n") if line and line[0] != "#"]
        text = next(iter(texts_of(block)), "")
        words, spaces, at = [], [], 0
        for row in rows:
            if row[0].isdigit():
                at = text.index(row[1], at) + len(row[1])
                words.append(row[1])
                spaces.append(text[at : at + 1] == " ")
        if words:
            docs.append(Doc(vocab, words=words, spaces=spaces))
    return docs


def chinese_docs(vocab):
    """Every character a token, as a segmenter has it before it merges words."""
    docs = []
    for text in texts_of((SHARED / "data/gsd_zh/dev.iob").read_text(encoding="utf8")):
        words = [c for c in text if not c.isspace()]
        spaces = [text[i + 1 : i + 2].isspace() for i, c in enumerate(text) if not c.isspace()]
        docs.append(Doc(vocab, words=words, spaces=spaces))
    return docs


# --- marks at word starts ------------------------------------------------------------------


def test_only_words_behind_whitespace_get_the_mark(real):
    """In "I do n't , ok" written as "I don't, ok" the parts "n't" and "," have no mark."""
    doc = Doc(
        Vocab(),
        words=["I", "do", "n't", ",", "ok", "(", "ok", ")"],
        spaces=[True, False, False, True, True, False, False, False],
    )
    pieces = encode_docs([doc], real, getter(), 512)
    first = [real._tokenizer.id_to_token(pieces.ids[row]) for row in pieces.word_row]
    starts = pieces.ids[[np.flatnonzero(pieces.row_word == w)[0] for w in range(len(doc))]]
    marked = [real._tokenizer.id_to_token(i).startswith(MARK) for i in starts.tolist()]
    assert marked == [True, True, False, False, True, True, False, False]
    assert first[0] == f"{MARK}I" and first[1] == f"{MARK}do" and first[3] == ","


@pytest.mark.parametrize("docs_of", [wnut_docs, ewt_docs, chinese_docs])
def test_no_vector_is_a_bare_mark(shared, real, docs_of):
    """The vector of no word of the real data is that of a mark alone: it would know nothing."""
    docs = docs_of(Vocab())
    pieces = encode_docs(docs, real, getter(), 512)
    assert len(pieces.word_row) == sum(len(doc) for doc in docs) > 4000
    mark = real._tokenizer.token_to_id(MARK)
    # Only what begins like Chinese has none before it.
    assert mark is not None and (mark in pieces.ids or docs_of is chinese_docs)
    assert (pieces.ids[pieces.word_row] != mark).all()


def test_a_chinese_character_is_one_piece(shared, real):
    """Its own one, also at the start of the text and behind a space; or unknown."""
    docs = chinese_docs(Vocab())
    pieces = encode_docs(docs, real, getter(), 512)
    length = np.bincount(pieces.row_word[pieces.row_word >= 0])
    texts = [docs[d][t].text for d, t in zip(pieces.word_doc, pieces.word_token, strict=True)]
    own = np.flatnonzero([text >= "\u2e80" for text in texts])
    assert len(own) > 15_000 and (length[own] == 1).all()
    names = real.vocab[pieces.ids[pieces.word_row[own]]]
    normal = [unicodedata.normalize("NFKC", texts[i]) for i in own]
    unknown = real.vocab[real.special["unk"]]
    assert all(name in (text, unknown) for name, text in zip(names, normal, strict=True))
    assert np.mean(names == unknown) < 0.01


@pytest.mark.parametrize("word", ["的", "，", "「", "カ", "\uf900", "𠀀", "︰"])
def test_chinese_has_no_marks(real, word):
    """In front of a character by itself the mark would be one more piece each time."""
    assert pieces_of(real, word, True) == pieces_of(real, word, False)
    assert real.leaves_nothing([word, "\u200b"]).tolist() == [False, True]


def test_byte_level_words_keep_their_space(byte_bpe):
    """The space belongs to the first piece of a word behind whitespace, and to no other."""
    assert pieces_of(byte_bpe, "New", True)[0][0].startswith("\u0120")
    assert not pieces_of(byte_bpe, "New", False)[0][0].startswith("\u0120")
    # "z" never followed a space in training: the space stays a piece of its own
    names, head = pieces_of(byte_bpe, "zzz", True)
    assert names == ["\u0120", "z", "z", "z"] and head == 1


def test_word_piece_knows_no_marks(wordpiece):
    assert pieces_of(wordpiece, "York", True) == (["York"], 0)
    assert pieces_of(wordpiece, "York", False) == (["York"], 0)
    assert pieces_of(wordpiece, "Yo", True) == (["Y", "##o"], 0)
    assert pieces_of(wordpiece, "n't", False) == (["n", "'", "t"], 0)


# --- words that are known ------------------------------------------------------------------

SEEN_BEFORE = [
    "the cat sat",
    " a  dog sat",
    "the",
    "Berlin, Berlin",
    "unbelievably new",
    "cats sat",
]


def encoded(tokenizer, texts):
    blank = spacy.blank("en")  # with a vocab of its own
    docs = [blank(text) for text in texts]
    pieces = encode_docs(docs, tokenizer, getter(), 512)
    assert_aligned(pieces, docs, tokenizer, 512)
    return pieces.ids.tolist()


def as_new(tokenizer):
    return PieceTokenizer(tokenizer.json, tokenizer.special)


@pytest.mark.parametrize("most", [0, 3, 2**16])
def test_pieces_do_not_hang_on_what_was_encoded_before(any_tokenizer, most, monkeypatch):
    """Whatever of the words is known, and also where all are forgotten in between."""
    monkeypatch.setattr("spacy_earlyexit.model.pieces._MOST_KNOWN", most)
    tokenizer = as_new(any_tokenizer)
    for texts in (SEEN_BEFORE[:2], SEEN_BEFORE, SEEN_BEFORE[::-1], SEEN_BEFORE[3:]):
        assert encoded(tokenizer, texts) == encoded(as_new(any_tokenizer), texts)


def test_only_new_words_go_through_the_tokenizer(any_tokenizer, monkeypatch):
    asked = []
    encode = PieceTokenizer.encode

    def listen(self, words, spaced):
        asked.append(list(zip(words, spaced, strict=True)))
        return encode(self, words, spaced)

    tokenizer = as_new(any_tokenizer)
    nlp = spacy.blank("en")
    docs = [nlp(text) for text in ("Berlin Berlin (Berlin)", "Berlin Rome", "Berlin Rome Berlin")]
    monkeypatch.setattr(PieceTokenizer, "encode", listen)
    for doc in docs:
        encode_docs([doc], tokenizer, getter(), 512)
    first, second = asked  # nothing was new in the third
    behind_space, behind_none = [("Berlin", True), ("(", True)], [("Berlin", False), (")", False)]
    assert sorted(first) == sorted(behind_space + behind_none)
    assert second == [("Rome", True)]


def test_known_words_are_bounded(real, monkeypatch):
    monkeypatch.setattr("spacy_earlyexit.model.pieces._MOST_KNOWN", 50)
    tokenizer = as_new(real)
    for start in range(0, 2000, 20):
        encoded(tokenizer, [" ".join(f"w{i}" for i in range(start, start + 20))])
        assert len(tokenizer._known.keys) <= 50 + 21


# --- words that are not ordinary -----------------------------------------------------------


@pytest.mark.parametrize("spaced", [True, False])
@pytest.mark.parametrize("word", ["\u200b", "\u200b\u200b", "\ufeff", "\u200e"])
def test_words_that_vanish_are_one_unknown_piece(real, word, spaced):
    """The tokenizer drops zero-width characters; the word is still there."""
    ids, lengths, head = real.encode(["a", word, "b"], [True, spaced, True])
    assert lengths.tolist() == [1, 1, 1] and head.tolist() == [0, 0, 0]
    assert ids[1] == real.special["unk"]


@pytest.mark.parametrize("word", ["\ufe0e", "\ufe0f", MARK, "\u0301", "\ue000"])
def test_odd_characters_have_a_vector_of_their_own(any_tokenizer, word):
    """Variation selectors, combining accents, a literal mark: never nothing, never a mark."""
    for spaced in (True, False):
        names, head = pieces_of(any_tokenizer, word, spaced)
        assert names[head] not in (MARK, "\u0120")
        assert len(names) - head >= 1


@pytest.mark.parametrize("word", ["</s>", "<s>", "<pad>", "<mask>", "[SEP]", "[CLS]", "a</s>b"])
def test_text_that_spells_a_special_piece_is_text(any_tokenizer, word):
    """Nobody can end a unit, or mask a word, by writing it."""
    reserved = set(any_tokenizer._reserved.tolist()) - {any_tokenizer.special["unk"]}
    assert {any_tokenizer.special["start"], any_tokenizer.special["end"]} <= reserved
    for spaced in (True, False):
        ids, _, _ = any_tokenizer.encode(["x", word, "y"], [True, spaced, True])
        assert not reserved.intersection(ids.tolist())


def test_where_the_vocabulary_can_a_special_piece_is_spelt_out(byte_bpe, wordpiece):
    names, _ = pieces_of(byte_bpe, "a</s>b", False)
    assert "".join(names) == "a</s>b" and "</s>" not in names
    assert len(pieces_of(wordpiece, "a[SEP]", False)[0]) == 6


@pytest.mark.parametrize("word", ["New York", "1 000", "1\xa0000 000", "\xb4", "New York\u200b"])
def test_words_with_spaces_inside(real, real_hf, word):
    """Merged tokens and numbers such as "1 000" have the pieces that the running text has, and so
    have characters that the tokenizer's normaliser turns into a space.
    """
    expected = real_hf(word, add_special_tokens=False)["input_ids"]
    assert len(expected) > 0
    assert real.encode([word], [True])[0].tolist() == expected


def test_no_fast_tokenizer_is_said(wordpiece):
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="'some-name' has no fast"):
        PieceTokenizer.from_transformers(Slow(), "some-name")


# --- equal to Hugging Face's own -----------------------------------------------------------


def test_ids_of_sentences_equal_hugging_face(shared, real, real_hf):
    """For words that are separated by single spaces, special pieces around them included."""
    sentences = read_iob(shared / "data/wnut17/test.iob")
    sentences.append("The quick brown fox jumps over the lazy dog .".split())
    assert len(sentences) > 1200
    docs = [Doc(Vocab(), words=words) for words in sentences]
    pieces = encode_docs(docs, real, getter(), 512)
    ours = [
        pieces.ids[slice(*pieces.unit_starts[u : u + 2])].tolist() for u in range(pieces.n_units)
    ]
    assert ours == real_hf([" ".join(words) for words in sentences])["input_ids"]


def test_byte_level_ids_equal_hugging_face(byte_bpe, byte_hf):
    words = "Anna said that zebras live in New York".split()
    ids, _, _ = byte_bpe.encode(words, [True] * len(words))
    assert ids.tolist() == byte_hf(" ".join(words), add_special_tokens=False)["input_ids"]


def test_the_start_of_a_text_is_marked_where_the_tokenizer_does_it():
    """RoBERTa's tokenizer puts no space before the first word unless add_prefix_space is set."""
    words = "in New York she lives in New York".split()
    starts = []
    for prefix in (True, False):
        hf = make_byte_bpe(prefix=prefix)
        tokenizer = PieceTokenizer.from_transformers(hf, "bytes")
        ids = encode_docs([Doc(Vocab(), words=words)], tokenizer, getter(), 64).ids[1:-1]
        assert ids.tolist() == hf(" ".join(words), add_special_tokens=False)["input_ids"]
        starts.append(tokenizer._tokenizer.id_to_token(ids[0]))
    assert starts[0].startswith("\u0120") and not starts[1].startswith("\u0120")


def test_word_piece_ids_equal_hugging_face(wordpiece, encoder):
    words = "Anna isn't in New York .".split()
    hf = AutoTokenizer.from_pretrained(encoder)
    ids, _, _ = wordpiece.encode(words, [True] * len(words))
    assert ids.tolist() == hf(" ".join(words), add_special_tokens=False)["input_ids"]


def test_saved_tokenizer_encodes_alike(any_tokenizer):
    data = any_tokenizer.to_dict()
    again = PieceTokenizer(data["tokenizer"], data["special"])
    words = ["Anna", "'s", "</s>", "\u200b", "New", "zzz", "樣"]
    spaced = [True, False, True, True, True, True, False]
    for ours, theirs in zip(
        any_tokenizer.encode(words, spaced), again.encode(words, spaced), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


# --- alignment -----------------------------------------------------------------------------

TEXTS = [
    "",
    "Anna's cat isn't in New York, she said.",
    "   ",
    " two  spaces\n\nand \u200b lines\t",
    "word \u6a23",
    "\n",
    "",
]


@pytest.mark.parametrize("max_positions", [512, 16, 3])
def test_alignment(any_tokenizer, max_positions):
    """Rows, words and units point at each other; whitespace tokens and empty texts have none."""
    nlp = spacy.blank("en")
    docs = [nlp(text) for text in TEXTS]
    pieces = encode_docs(docs, any_tokenizer, getter(), max_positions)
    assert set(pieces.unit_doc.tolist()) == {1, 3, 4}
    assert_aligned(pieces, docs, any_tokenizer, max_positions)


@pytest.mark.parametrize("texts", [[], [""], ["", " ", "\n\n"]])
def test_nothing_to_encode(wordpiece, texts):
    nlp = spacy.blank("en")
    pieces = encode_docs([nlp(text) for text in texts], wordpiece, getter(), 64)
    assert pieces.n_units == len(pieces.ids) == len(pieces.word_row) == 0
    assert pieces.unit_starts.tolist() == pieces.word_starts.tolist() == [0]
    assert list(pieces.batches(10)) == []


def test_docs_of_different_vocabs_in_one_batch(wordpiece):
    """Words are looked up where they live."""
    docs = [Doc(Vocab(), words=["only", "here"]), Doc(Vocab(), words=["only", "there"])]
    assert_aligned(encode_docs(docs, wordpiece, getter(), 64), docs, wordpiece, 64)


@pytest.mark.parametrize("max_positions", [64, 20])
def test_a_word_of_hundreds_of_pieces(wordpiece, max_positions):
    """It is cut to what the encoder can take; its neighbours are encoded all the same."""
    doc = Doc(Vocab(), words=["a", "." * 300, "b", "." * 300, "." * 300, "c"])
    pieces = encode_docs([doc], wordpiece, getter(), max_positions)
    assert_aligned(pieces, [doc], wordpiece, max_positions)
    length = np.bincount(pieces.row_word[pieces.row_word >= 0])
    assert length[pieces.word_token == 1].tolist() == [max_positions - 2]


WORDS = st.lists(st.text(ALPHABET, min_size=1, max_size=12), max_size=40)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.lists(WORDS, min_size=1, max_size=4), st.integers(5, 30), st.integers(0, 1000))
def test_alignment_of_any_words(wordpiece, texts, max_positions, seed):
    """Long documents too: windows that fit, every word owned exactly once."""
    rng, vocab = np.random.default_rng(seed), Vocab()
    docs = [Doc(vocab, words=w, spaces=rng.random(len(w)) < 0.7) for w in texts]
    pieces = encode_docs(docs, wordpiece, getter(), max_positions)
    assert_aligned(pieces, docs, wordpiece, max_positions)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.lists(WORDS, min_size=1, max_size=3), st.integers(1, 12), st.data())
def test_overlapping_spans_own_each_word_once(wordpiece, texts, window, data):
    """The span speaks for a word in which it has the most context on its poorer side."""
    stride = data.draw(st.integers(1, window))
    vocab = Vocab()
    docs = [Doc(vocab, words=words) for words in texts]
    pieces = encode_docs(docs, wordpiece, strided(window, stride), 512)
    assert_aligned(pieces, docs, wordpiece, 512)
    unit = np.repeat(np.arange(pieces.n_units), np.diff(pieces.word_starts))
    bounds = pieces.unit_bounds[unit]
    token = pieces.word_token
    context = np.minimum(token - bounds[:, 0], bounds[:, 1] - 1 - token)
    most = {}
    for key, value in zip(zip(pieces.word_doc, token, strict=True), context, strict=True):
        most[key] = max(value, most.get(key, 0))
    for word in np.flatnonzero(pieces.owned):
        assert context[word] == most[pieces.word_doc[word], token[word]]


def test_overlapping_spans_that_are_too_long_as_well(wordpiece):
    """Strided spans that have to be cut into windows on top."""
    doc = Doc(Vocab(), words=["abcde", "f", "ghi"] * 20)
    pieces = encode_docs([doc], wordpiece, strided(30, 20), 24)
    assert pieces.n_units > 4
    assert_aligned(pieces, [doc], wordpiece, 24)


def test_span_getter_that_forgets_documents(wordpiece):
    doc = Doc(Vocab(), words=["a"])
    with pytest.raises(ValueError, match="spans of 0 documents for 1"):
        encode_docs([doc], wordpiece, lambda docs: [], 64)


# --- windows -------------------------------------------------------------------------------


@st.composite
def lengths_and_capacity(draw):
    capacity = draw(st.integers(1, 60))
    lengths = draw(st.lists(st.integers(1, capacity), min_size=1, max_size=80))
    return np.asarray(lengths), capacity


@settings(max_examples=400)
@given(lengths_and_capacity())
def test_windows_cover_everything_in_order(case):
    """Each word owned once, in order; no window above the capacity, none that owns nothing."""
    lengths, capacity = case
    windows = cut_windows(lengths, capacity)
    done = 0
    for start, end, own_start, own_end in windows:
        assert own_start == done
        assert 0 <= start <= own_start < own_end <= end <= len(lengths)
        assert lengths[start:end].sum() <= capacity
        done = own_end
    assert done == len(lengths)
    if lengths.sum() <= capacity:
        assert len(windows) == 1


@settings(max_examples=100)
@given(st.integers(1, 300), st.integers(8, 60))
def test_owned_words_have_context(n_words, capacity):
    """An eighth of the capacity on both sides, unless the document ends there."""
    for start, end, own_start, own_end in cut_windows(np.ones(n_words, int), capacity):
        assert start == 0 or own_start - start >= capacity // 8
        assert end == n_words or end - own_end >= capacity // 8
        assert end == n_words or end - start == capacity, "a window in the middle is full"


# --- batches -------------------------------------------------------------------------------


def make_units(lengths):
    arrays = {field.name: np.zeros(0, dtype=int) for field in fields(Pieces)}
    arrays["unit_starts"] = np.concatenate([[0], np.cumsum(lengths)]).astype(int)
    arrays["unit_doc"] = np.arange(len(lengths))
    return Pieces(**arrays)


@settings(max_examples=200)
@given(st.lists(st.integers(3, 50), max_size=40), st.integers(1, 120))
def test_batches(lengths, max_rows):
    """Every unit exactly once, shortest first, within the budget, and few of them."""
    batches = list(make_units(lengths).batches(max_rows))
    order = [unit for batch in batches for unit in batch.tolist()]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[unit] for unit in order] == sorted(lengths)
    rows = [sum(lengths[unit] for unit in batch) for batch in batches]
    for n_rows, batch in zip(rows, batches, strict=True):
        assert len(batch) == 1 or n_rows <= max_rows
    full, left = 0, 0  # as full as the budget allows
    for length in sorted(lengths):
        if length > left:
            full, left = full + 1, max_rows
        left -= length
    assert len(batches) <= full + 1


def test_batches_are_of_about_one_size():
    """A small last one would have nearly empty products in its deep layers."""
    batches = list(make_units([10] * 22).batches(100))
    assert [len(batch) for batch in batches] == [8, 8, 6]
