"""Chinese text to words: characters as tokens, gold BMES, and earlyexit_segmenter on Docs."""

import pickle

import numpy as np
import pytest
import spacy
from conftest import make_encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.tokens import Doc, DocBin, Span, SpanGroup, Token
from spacy.training import Corpus, Example
from spacy_transformers.data_classes import TransformerData
from test_cli import run_cli
from thinc.types import Ragged

from spacy_earlyexit.calibration.measuring import Probe
from spacy_earlyexit.evaluation.benchmark import SpacySystem
from spacy_earlyexit.evaluation.scores import measure_points
from spacy_earlyexit.model.criteria import FixedExit
from spacy_earlyexit.pipeline.characters import CharacterTokenizer
from spacy_earlyexit.pipeline.exits import DocExits, leave_exits
from spacy_earlyexit.pipeline.extensions import exit_layers
from spacy_earlyexit.pipeline.merging import merge_tokens
from spacy_earlyexit.pipeline.segmenter import EarlyExitSegmenter, make_segmenter_scorer
from spacy_earlyexit.pipeline.tasks import get_task

BMES = ["B", "E", "M", "S"]
# Words with "|" between them, and the names: first and last-plus-one word.
SENTENCES = [
    ("陳小明|住|在|台北市|，|用|iPhone|15|拍照|。", [(0, 1, "PER"), (3, 4, "LOC")]),
    ("台北市|的|大學生|在|2024|年|拍照", [(0, 1, "LOC")]),
    ("大學生|說|Hello|World|。", []),
    ("陳小明|的|大學|在|北京市|。", [(0, 1, "PER"), (4, 5, "LOC")]),
    ("用|iPhone|拍照", []),
]
SPACES = {2: {2}}  # word 2 of sentence 2 has a space behind it
TOKENIZER = {"nlp": {"tokenizer": {"@tokenizers": "spacy-earlyexit.CharacterTokenizer.v1"}}}


def blank():
    return spacy.blank("zh", config=TOKENIZER)


def make_gold(vocab):
    docs = []
    for i, (text, names) in enumerate(SENTENCES):
        words = text.split("|")
        tags = ["O"] * len(words)
        for start, end, label in names:
            tags[start:end] = [f"B-{label}"] + [f"I-{label}"] * (end - start - 1)
        spaces = [k in SPACES.get(i, ()) for k in range(len(words))]
        docs.append(Doc(vocab, words=words, spaces=spaces, ents=tags))
    return docs


def make_examples(nlp):
    return [Example(nlp.make_doc(gold.text), gold) for gold in make_gold(nlp.vocab)]


def make_pipeline(encoder, seed=0, **segmenter):
    spacy.util.fix_random_seed(seed)
    nlp = blank()
    model = {"@architectures": "spacy-earlyexit.MultiExitTransformer.v1", "name": encoder}
    nlp.add_pipe("earlyexit_transformer", name="transformer", config={"model": model})
    nlp.add_pipe("earlyexit_ner", name="ner")
    nlp.add_pipe("earlyexit_segmenter", name="segmenter", config=segmenter)
    return nlp


@pytest.fixture(scope="module")
def zh_encoder(tmp_path_factory):
    characters = "".join(sorted({c for text, _ in SENTENCES for c in text if c > "\u2e80"}))
    return str(make_encoder(tmp_path_factory.mktemp("zh_encoder"), characters=characters))


@pytest.fixture(scope="module")
def untrained(zh_encoder):
    nlp = make_pipeline(zh_encoder)
    nlp.initialize(lambda: make_examples(nlp))
    return nlp


@pytest.fixture(scope="module")
def trained(zh_encoder):
    """Over-fitted on the sentences; do not change it."""
    nlp = make_pipeline(zh_encoder)
    examples = make_examples(nlp)
    optimizer = nlp.initialize(lambda: examples)
    optimizer.learn_rate = 3e-3
    for _ in range(60):
        nlp.update(examples, sgd=optimizer)
    return nlp


# --- characters ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, tokens",
    [
        ("我在2024年", ["我", "在", "2024", "年"]),
        ("用iPhone15 Pro拍。", ["用", "iPhone", "15", "Pro", "拍", "。"]),
        ("ＡＢ１２，3.5", ["ＡＢ", "１２", "，", "3", ".", "5"]),
        ("Nürnberg的", ["Nürnberg", "的"]),
        ("カナ한국", ["カ", "ナ", "한", "국"]),
        (" 我", [" ", "我"]),
        ("我  你\n", ["我", " ", "你", "\n"]),
        ("我\u3000你", ["我", "\u3000", "你"]),
        ("", []),
        ("\n", ["\n"]),
    ],
)
def test_characters(text, tokens):
    doc = blank().make_doc(text)
    assert [token.text for token in doc] == tokens
    assert doc.text == text


@given(st.text(alphabet="我你。 \u3000\n\tAb1２é\u200b"))
@settings(max_examples=100)
def test_the_text_is_kept(text):
    assert CharacterTokenizer(spacy.vocab.Vocab())(text).text == text


def test_no_gold_word_ends_inside_of_a_run(shared):
    """What the tokenizer keeps together belongs together, on all of GSD: digits, Latin letters."""
    tokenizer = CharacterTokenizer(spacy.vocab.Vocab())
    runs = 0
    for part in ("train", "dev", "test"):
        content = (shared / "data" / "gsd_zh" / f"{part}.iob").read_text(encoding="utf8")
        for block in content.strip().split("\n\n"):
            rows = [line for line in block.split("\n") if "\t" in line]
            words = [row.split("\t")[0] for row in rows]
            ends = set(np.cumsum([len(word) for word in words]).tolist())
            tokens = [token.text for token in tokenizer("".join(words))]
            # Without the spaces, runs of two words could touch.
            if " " not in block.split("\n")[1].removeprefix("# text = "):
                assert ends <= set(np.cumsum([len(token) for token in tokens]).tolist())
            runs += sum(len(token) > 1 for token in tokens)
    assert runs > 3000


# --- gold ----------------------------------------------------------------------------------


def gold_of(nlp, words, spaces=None, predicted=None, **annotation):
    gold = Doc(nlp.vocab, words=words, spaces=spaces or [False] * len(words), **annotation)
    own = nlp.make_doc(gold.text) if predicted is None else predicted
    return Example(own, gold)


def test_gold_of_characters():
    example = gold_of(blank(), ["我", "在", "圖書館", "，", "iPhone", "15", "萬元"])
    found = get_task("seg").gold(example)
    assert "".join(found) == "SSBMESSSBE"


def test_names_are_spread_over_characters():
    """Gold names of words of several characters are B and I on each."""
    example = gold_of(
        blank(),
        ["陳小明", "住", "台北", "市"],
        ents=["B-PER", "O", "B-LOC", "I-LOC"],
    )
    assert list(get_task("ner").gold(example)) == [
        *("B-PER", "I-PER", "I-PER", "O", "B-LOC", "I-LOC", "I-LOC"),
    ]


def test_spaces_do_not_shift_the_gold():
    nlp = blank()
    example = gold_of(nlp, ["在", "Hello", "World", "拍照"], [True, True, False, False])
    assert get_task("seg").gold(example) == ["S", "S", "S", "B", "E"]
    # whitespace tokens, of which gold knows nothing
    text = nlp.make_doc("在 \u3000Hello World\n拍照\n")
    example = gold_of(nlp, ["在", "Hello", "World", "拍照"], [True, True, False, False], text)
    assert get_task("seg").gold(example) == ["S", None, "S", "S", None, "B", "E", None]


def test_tokens_across_gold_words_are_unknown():
    """And the rest of a word that such a token has a part of."""
    nlp = blank()
    own = Doc(nlp.vocab, words=["在圖", "書", "館", "拍", "照"], spaces=[False] * 5)
    example = gold_of(nlp, ["在", "圖書館", "拍照"], predicted=own)
    assert get_task("seg").gold(example) == [None, None, None, "B", "E"]


def test_gold_words_as_tokens_say_nothing():
    """What gold_preproc = true makes would teach that every token is a word."""
    nlp = blank()
    words = ["在", "圖書館", "拍照"]
    own = Doc(nlp.vocab, words=words, spaces=[False] * 3)
    example = gold_of(nlp, words, predicted=own)
    assert get_task("seg").gold(example) == [None] * 3
    assert get_task("seg").labels([example]) == []
    assert get_task("seg").labels([example, gold_of(nlp, ["拍照"])]) == BMES
    assert get_task("seg").gold(Example(Doc(nlp.vocab), Doc(nlp.vocab))) == []


# --- decoding ------------------------------------------------------------------------------


def segment(doc, said, names=(), wins="names"):
    """Let the exits say a class for each token that is not whitespace, and join."""
    return EarlyExitSegmenter(wins=wins)(let_say(doc, said, names))


def let_say(doc, said, names=()):
    if names:
        doc.ents = [Span(doc, start, end, label=label) for start, end, label in names]
    tokens = np.asarray([token.i for token in doc if not token.is_space], dtype=np.int64)
    scores = np.zeros((len(tokens), 4), dtype=np.float32)
    scores[range(len(tokens)), [BMES.index(c) for c in said]] = 5.0
    leave_exits(
        doc, "transformer", DocExits(len(doc), tokens, scores, {"seg": slice(0, 4)}, {"seg": BMES})
    )
    return doc


def words_of(doc):
    return [token.text for token in doc]


def entities(doc):
    return [(ent.text, ent.label_) for ent in doc.ents]


@pytest.mark.parametrize("wins", ["names", "words"])
def test_no_word_goes_on_in_the_next_doc(wins):
    """Also where that begins in the middle of a sentence: each Doc of a batch is joined alone."""

    def make(text, said):
        doc = blank_doc(text)
        doc[0].is_sent_start = False
        return let_say(doc, said)

    said = [("甲", "B"), ("乙丙", "EE"), ("甲乙", "ME")]
    segmenter = EarlyExitSegmenter(wins=wins)
    together = segmenter.annotate([make(*own) for own in said])
    alone = [segmenter(make(*own)) for own in said]
    assert [words_of(doc) for doc in together] == [words_of(doc) for doc in alone]
    assert words_of(together[0]) == ["甲"]


def test_words_are_joined():
    doc = segment(blank().make_doc("我在圖書館用iPhone15拍照。"), "SSBMESBEBES")
    assert words_of(doc) == ["我", "在", "圖書館", "用", "iPhone15", "拍照", "。"]
    assert doc.text == "我在圖書館用iPhone15拍照。"
    assert [token.idx for token in doc] == [0, 1, 2, 5, 6, 14, 16]


def test_a_valid_sequence_is_found():
    """ "B B" and a word without an end are mended by the scores of all."""
    doc = blank().make_doc("圖書館")
    assert "".join(words_of(segment(doc, "MMM"))) == "圖書館"
    assert words_of(segment(blank().make_doc("圖書館"), "BME")) == ["圖書館"]
    assert words_of(segment(blank().make_doc("圖書館"), "BMM")) == ["圖書館"]


@pytest.mark.parametrize("gap", [" ", "  ", "\n", "\u3000", " \n"])
def test_no_word_goes_over_whitespace(gap):
    text = f"圖書{gap}館在{gap}"
    doc = segment(blank().make_doc(text), "BMME")
    assert doc.text == text
    assert [word for word in words_of(doc) if not word.isspace()] == ["圖書", "館在"]


def test_no_word_goes_over_a_sentence_start():
    doc = blank().make_doc("圖書館在")
    for token in doc:
        token.is_sent_start = token.i in (0, 2)
    doc = segment(doc, "BMME")
    assert words_of(doc) == ["圖書", "館在"]
    assert [sent.text for sent in doc.sents] == ["圖書", "館在"]


@pytest.mark.parametrize(
    "said, names, by_names, by_words",
    [
        # a name that begins inside of a word
        ("BMES", [(1, 3, "LOC")], ["甲", "乙丙", "丁"], [("甲乙丙", "LOC")]),
        # that ends inside of one
        ("BMES", [(0, 2, "LOC")], ["甲乙", "丙", "丁"], [("甲乙丙", "LOC")]),
        # that is inside of one, or one word of many
        ("BMME", [(1, 2, "LOC")], ["甲", "乙", "丙丁"], [("甲乙丙丁", "LOC")]),
        # two names in one word, side by side: the first has the word
        ("BMME", [(0, 2, "LOC"), (2, 4, "PER")], ["甲乙", "丙丁"], [("甲乙丙丁", "LOC")]),
        # two names that meet inside of a word: the second keeps its other one
        (
            "BMES",
            [(0, 2, "LOC"), (2, 4, "PER")],
            ["甲乙", "丙", "丁"],
            [("甲乙丙", "LOC"), ("丁", "PER")],
        ),
        # nothing crosses
        ("BEBE", [(0, 2, "LOC")], ["甲乙", "丙丁"], [("甲乙", "LOC")]),
        ("SSBE", [(0, 4, "LOC")], ["甲", "乙", "丙丁"], [("甲乙丙丁", "LOC")]),
    ],
)
def test_names_and_words_do_not_cross(said, names, by_names, by_words):
    """Who wins keeps everything, the other one gives way."""
    text = "甲乙丙丁"
    doc = segment(blank().make_doc(text), said, names)
    assert words_of(doc) == by_names
    assert entities(doc) == [(text[start:end], label) for start, end, label in names]
    free = words_of(segment(blank().make_doc(text), said))
    doc = segment(blank().make_doc(text), said, names, wins="words")
    assert words_of(doc) == free
    assert entities(doc) == by_words


@st.composite
def texts(draw):
    text = draw(st.text(alphabet="甲乙丙。 \u3000\nA1", max_size=12))
    doc = blank_doc(text)
    n = len(doc)
    scores = draw(
        st.lists(st.lists(st.integers(-4, 4), min_size=4, max_size=4), min_size=n, max_size=n)
    )
    edges = sorted(draw(st.sets(st.integers(0, n), max_size=6)))
    names = list(zip(edges[::2], edges[1::2], strict=False))
    starts = draw(st.sets(st.integers(0, max(n - 1, 0)), max_size=2))
    return text, scores, names, starts


_VOCAB = spacy.blank("xx").vocab


def blank_doc(text):
    return CharacterTokenizer(_VOCAB)(text)


@pytest.mark.parametrize("wins", ["names", "words"])
@given(case=texts())
@settings(max_examples=100)
def test_any_text_scores_and_names(wins, case):
    """The text stays as it is, names are runs of words, and the winner is as without the other."""
    text, rows, names, starts = case

    def run(names, wins):
        doc = blank_doc(text)
        for token in doc if starts else ():
            token.is_sent_start = token.i in starts or token.i == 0
        doc.ents = [Span(doc, start, end, label="X") for start, end in names]
        tokens = np.asarray([token.i for token in doc if not token.is_space], dtype=np.int64)
        scores = np.asarray(rows, dtype=np.float32).reshape(-1, 4)[tokens]
        leave_exits(
            doc,
            "transformer",
            DocExits(len(doc), tokens, scores, {"seg": slice(0, 4)}, {"seg": BMES}),
        )
        before = [(ent.start_char, ent.end_char) for ent in doc.ents]
        return before, EarlyExitSegmenter(wins=wins)(doc)

    before, doc = run(names, wins)
    assert doc.text == text
    assert all(word.isspace() or not any(c.isspace() for c in word) for word in words_of(doc))
    after = [(ent.start_char, ent.end_char) for ent in doc.ents]
    if wins == "names":
        assert after == before
    else:
        assert words_of(doc) == words_of(run([], "words")[1])
        words = [(token.idx, token.idx + len(token)) for token in doc]
        touched = {w for w in words if any(w[0] < b and a < w[1] for a, b in before)}
        assert {w for w in words if any(a <= w[0] < b for a, b in after)} == touched


# --- what is kept --------------------------------------------------------------------------


def test_what_is_on_the_doc_is_kept():
    if not Token.has_extension("note"):
        Token.set_extension("note", default=None)
        Span.set_extension("note", default=None)
        Doc.set_extension("note", default=None)
    doc = blank().make_doc("我在圖書館 拍照。")
    for token, tag in zip(doc, ["PN", "P", "NN", "XX", "XX", "VV", "XX", "PU"], strict=True):
        token.tag_, token.pos_ = tag, "NOUN"
        token.set_morph(f"Place={token.i}")
        token.is_sent_start = token.i in (0, 5)
    doc.ents = [Span(doc, 2, 5, label="LOC", kb_id="Q7075", span_id="rule")]
    doc.spans["s"] = SpanGroup(
        doc,
        name="s",
        attrs={"who": "me"},
        spans=[
            Span(doc, 2, 5, label="A", kb_id="Q1", span_id="one"),
            Span(doc, 1, 3, label="B"),  # ends inside of a word
            Span(doc, 4, 8, label="C"),  # begins inside of one
        ],
    )
    doc.spans["none"] = []
    doc.cats = {"travel": 0.5}
    doc.user_data["mine"] = [1, 2]
    doc[2]._.note, doc[2:5]._.note, doc._.note = "first", "span", "doc"
    doc.user_hooks["vector"] = len
    doc.tensor = np.arange(16.0).reshape(8, 2)
    doc.sentiment = 0.25
    doc._context = "ctx"
    new = segment(doc, "SSBMEBES")
    assert new is not doc and words_of(new) == ["我", "在", "圖書館", "拍照", "。"]
    assert new.text == doc.text and new.vocab is doc.vocab
    assert new._context == "ctx"
    (ent,) = new.ents
    assert (ent.start, ent.end, ent.label_, ent.kb_id_, ent.id_) == (2, 3, "LOC", "Q7075", "rule")
    assert [token.ent_iob_ for token in new] == ["O", "O", "B", "O", "O"]
    group = new.spans["s"]
    assert [(s.text, s.label_, s.start, s.end) for s in group] == [
        ("圖書館", "A", 2, 3),
        ("在圖書館", "B", 1, 3),
        ("圖書館 拍照。", "C", 2, 5),
    ]
    assert (group[0].kb_id_, group[0].id_, group.attrs) == ("Q1", "one", {"who": "me"})
    assert len(new.spans["none"]) == 0
    assert new.cats == {"travel": 0.5} and new.user_data["mine"] == [1, 2]
    assert (new[2]._.note, new[2:3]._.note, new._.note) == ("first", "span", "doc")
    assert new.user_hooks == {"vector": len} and new.sentiment == 0.25
    assert [sent.text for sent in new.sents] == ["我在圖書館", "拍照。"]
    assert [token.tag_ for token in new] == ["PN", "P", "NN", "VV", "PU"]
    assert [token.pos_ for token in new] == ["NOUN"] * 5
    assert [str(token.morph) for token in new] == [f"Place={i}" for i in (0, 1, 2, 5, 7)]
    assert new.tensor[:, 0].tolist() == [0.0, 2.0, 8.0, 12.0, 14.0]


def test_unset_stays_unset():
    """No annotation is made up: an entity recogniser behind may still write."""
    doc = segment(blank().make_doc("圖書館在"), "BMES")
    assert not any(doc.has_annotation(attr) for attr in ("ENT_IOB", "TAG", "SENT_START", "DEP"))
    blocked = blank().make_doc("圖書館在")
    blocked.set_ents([], blocked=[blocked[3:4]], default="outside")
    assert [token.ent_iob_ for token in segment(blocked, "BMES")] == ["O", "B"]
    assert segment(blank().make_doc(""), "").text == ""
    assert words_of(segment(blank().make_doc(" \n"), "")) == [" \n"]


def test_rows_of_the_encoder_belong_to_words():
    """doc._.trf_data stays true: each word has the rows of its characters."""
    from spacy_transformers.pipeline_component import install_extensions

    import spacy_earlyexit.pipeline.transformer  # noqa: F401 - makes doc._.trf_data

    install_extensions()
    doc = blank().make_doc("圖書館在")
    empty = TransformerData.empty()
    doc._.trf_data = TransformerData(
        empty.wordpieces, empty.model_output, Ragged(np.arange(5), np.asarray([1, 1, 2, 1]))
    )
    new = segment(doc, "BMES")
    assert new._.trf_data.align.lengths.tolist() == [4, 1]
    assert new._.trf_data.align[0].dataXd.ravel().tolist() == [0, 1, 2, 3]
    assert doc._.trf_data.align.lengths.tolist() == [1, 1, 2, 1]


def test_merging_changes_nothing_given():
    doc = blank().make_doc("圖書館在")
    starts = np.asarray([False, False, False, True])
    assert words_of(merge_tokens(doc, starts)) == ["圖書館", "在"]
    assert words_of(doc) == list("圖書館在") and starts.tolist() == [False, False, False, True]
    assert merge_tokens(doc, np.ones(4, dtype=bool)) is doc


# --- the pipeline --------------------------------------------------------------------------


def test_raw_text_in_words_and_names_out(trained):
    for (text, names), gold in zip(SENTENCES, make_gold(trained.vocab), strict=True):
        words = text.split("|")
        doc = trained(gold.text)
        assert words_of(doc) == words and doc.text == gold.text
        assert [(ent.start, ent.end, ent.label_) for ent in doc.ents] == names


def test_exit_layers_are_the_deepest_of_the_characters(trained):
    doc = trained("陳小明住在台北市")
    assert doc._.exit_layers == [4] * len(doc)
    transformer = trained.get_pipe("transformer")
    with transformer.use(FixedExit(2)):
        doc = trained("陳小明住在台北市")
    assert doc._.exit_layers == [2] * len(doc) and doc._.exit_stats["speedup"] > 1.5
    assert doc[0:1]._.exit_layer == 2
    characters = transformer(trained.make_doc("陳小明住在台北市"))
    assert len(exit_layers(characters)) == 8


def test_the_score_is_of_words(trained, untrained):
    """An untrained segmenter has nearly none, an over-fitted one all; token_acc tells nothing."""
    words = ["陳小明", "大學生", "台北市", "北京市", "拍照"]
    examples = [
        gold_of(untrained, words[i:] + words[:i], spaces=[False] * len(words)) for i in range(5)
    ]
    assert untrained.evaluate(examples)["token_f"] < 0.1
    assert trained.evaluate(make_examples(trained))["token_f"] == 1.0
    characters = blank().evaluate(examples)  # joined by nobody
    assert characters["token_f"] == 0.0 and characters["token_acc"] == 1.0
    assert EarlyExitSegmenter(scorer=make_segmenter_scorer()).score(examples) == {
        key: value for key, value in characters.items() if key.startswith("token_")
    }


def test_pipe_keeps_order_and_context(trained):
    texts = [gold.text for gold in make_gold(trained.vocab)]
    pairs = list(trained.pipe([(t, i) for i, t in enumerate(texts)], as_tuples=True, batch_size=2))
    assert [context for _, context in pairs] == list(range(len(texts)))
    assert [words_of(doc) for doc, _ in pairs] == [text.split("|") for text, _ in SENTENCES]


@pytest.mark.slow
def test_pipe_in_processes(trained):
    texts = [(gold.text, i) for i, gold in enumerate(make_gold(trained.vocab))]
    pairs = list(trained.pipe(texts, as_tuples=True, n_process=2))
    assert [words_of(doc) for doc, _ in pairs] == [text.split("|") for text, _ in SENTENCES]
    assert [context for _, context in pairs] == list(range(len(texts)))
    assert all(doc._.exit_layers == [4] * len(doc) for doc, _ in pairs)


def test_gold_words_are_no_input(trained, tmp_path):
    """Neither for evaluation and calibration, which say so, nor for the benchmark's system."""
    trained.to_disk(tmp_path / "pipeline")
    gold = make_gold(trained.vocab)
    DocBin(docs=gold).to_disk(tmp_path / "gold.spacy")
    for command in ("evaluate", "calibrate"):
        args = (tmp_path / "pipeline", tmp_path / "gold.spacy", "-o", tmp_path / "out", "-G")
        code, out = run_cli(command, *args)
        assert code == 1 and "Leave --gold-preproc out" in out
    system = SpacySystem(str(tmp_path / "pipeline"))
    done = system.annotated(gold, system.run(system.prepare(gold)))
    assert [words_of(doc) for doc in done] == [text.split("|") for text, _ in SENTENCES]


def test_thresholds_and_tables(trained):
    """What searches thresholds and what compares settings takes the new Docs."""
    transformer, examples = trained.get_pipe("transformer"), make_examples(trained)
    assert Probe(transformer, examples)(None).score == 1.0
    # spaCy's training loop scores Docs that have been segmented already.
    done = [Example(trained(eg.reference.text), eg.reference) for eg in examples]
    assert sum(len(eg.predicted) for eg in done) < sum(len(eg.predicted) for eg in examples)
    again = Probe(transformer, done)
    assert [len(doc) for doc in again.docs] == [len(eg.predicted) for eg in examples]
    assert again(None).score == 1.0
    settings = {"full": None, "fast": FixedExit(2)}
    rows = measure_points(trained, transformer, examples, settings, repeats=1)
    assert rows[0]["scores"]["token_f"] == rows[0]["scores"]["ents_f"] == 1.0
    assert rows[1]["exit_speedup"] > 1.5 and 0 <= rows[1]["scores"]["token_f"] <= 1.0
    assert {row["point"] for row in rows} == {"full", "fast"}


def test_saved_and_loaded(trained, tmp_path):
    trained.to_disk(tmp_path)
    nlp = spacy.load(tmp_path, config={"components": {"segmenter": {"wins": "words"}}})
    assert nlp.get_pipe("segmenter").wins == "words"
    assert isinstance(nlp.tokenizer, CharacterTokenizer)
    text = make_gold(nlp.vocab)[0].text
    assert words_of(nlp(text)) == words_of(trained(text))
    assert nlp.get_pipe("segmenter").labels == tuple(BMES)


def test_picklable(trained):
    segmenter = pickle.loads(pickle.dumps(EarlyExitSegmenter(wins="words")))
    assert segmenter.wins == "words"
    assert words_of(pickle.loads(pickle.dumps(trained.tokenizer))("我在")) == ["我", "在"]


def test_spacys_own_characters_do_as_well(zh_encoder):
    """The default tokenizer of spacy.blank("zh"); "iPhone" is then a word of six tokens."""
    nlp = spacy.blank("zh")
    gold = Doc(nlp.vocab, words=["用", "iPhone", "拍照"], spaces=[False] * 3)
    example = Example(nlp.make_doc(gold.text), gold)
    assert "".join(get_task("seg").gold(example)) == "SBMMMMEBE"


# --- errors --------------------------------------------------------------------------------


def test_not_while_training(zh_encoder):
    nlp = make_pipeline(zh_encoder)
    nlp.config["training"]["annotating_components"] = ["transformer", "segmenter"]
    with pytest.raises(ValueError, match="'segmenter' joins.*annotating_components"):
        nlp.initialize(lambda: make_examples(nlp))


def test_gold_words_are_refused(zh_encoder):
    nlp = make_pipeline(zh_encoder)
    nlp.config["corpora"]["dev"]["gold_preproc"] = True
    with pytest.raises(ValueError, match=r"\[corpora.dev\].*gold_preproc = false"):
        nlp.initialize(lambda: make_examples(nlp))
    nlp = make_pipeline(zh_encoder)
    gold = make_gold(nlp.vocab)
    examples = [Example(Doc(nlp.vocab, words=words_of(doc)), doc) for doc in gold]
    with pytest.raises(ValueError, match="gold annotation for the task 'seg'.*CharacterTokenizer"):
        nlp.initialize(lambda: examples)


def test_impossible_settings():
    with pytest.raises(ValueError, match='`wins` has to be "names" or "words", but is \'both\''):
        blank().add_pipe("earlyexit_segmenter", config={"wins": "both"})


def test_what_reads_exits_has_to_come_before(trained):
    ner, segmenter = trained.get_pipe("ner"), trained.get_pipe("segmenter")
    doc = segmenter(trained.get_pipe("transformer")(trained.make_doc("陳小明住在台北市")))
    with pytest.raises(ValueError, match="'ner' found no exit scores.*retokenised"):
        ner(doc)
    with pytest.raises(ValueError, match="'segmenter' found no exit scores"):
        segmenter(trained.make_doc("陳小明"))


def test_corpus_without_gold_preproc_makes_characters(tmp_path):
    from spacy.tokens import DocBin

    nlp = blank()
    DocBin(docs=make_gold(nlp.vocab)).to_disk(tmp_path / "gold.spacy")
    (example, *_) = Corpus(tmp_path / "gold.spacy", gold_preproc=False)(nlp)
    assert words_of(example.predicted)[:3] == ["陳", "小", "明"]
    assert words_of(example.reference)[0] == "陳小明"
