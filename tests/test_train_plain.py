import json
import random
from pathlib import Path
from typing import Any

import pytest
import spacy
import torch
from conftest import load_script, make_encoder
from spacy.tokens import Doc, DocBin, Span
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing
from transformers import (
    AutoModelForTokenClassification,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner

MAX_PIECES = 16
SENTENCES = [
    [("Anna", "B-PER"), ("lives", "O"), ("in", "O"), ("New", "B-LOC"), ("York", "I-LOC")],
    [("Bob", "B-PER"), ("Anna", "B-PER"), ("lives", "O")],
    [("in", "O"), ("York", "B-LOC")],
    [("lives", "O")],
]


script = load_script("train_plain")
tasks = load_script("plain_tasks")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_bert")
    pieces = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "An", "##na", "Bob", "l", "##ive", "##s", "in"]
    pieces += ["New", "York"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    # Any, since transformers' own annotations hide the methods of its tokenizers' base class.
    fast: Any = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
    )
    fast.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=MAX_PIECES,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def docs() -> list[Doc]:
    return make_docs(SENTENCES)


def make_docs(sentences: list[list[tuple[str, str]]]) -> list[Doc]:
    vocab = spacy.blank("xx").vocab
    return [
        Doc(vocab, words=[word for word, _ in rows], ents=[label for _, label in rows])
        for rows in sentences
    ]


def labels_of(docs: list[Doc]) -> list[list[str]]:
    return [tasks.read_iob(doc) for doc in docs]


def test_labels_go_to_the_doc_and_back(docs: list[Doc]) -> None:
    labels = labels_of(docs)
    assert labels == [[label for _, label in rows] for rows in SENTENCES]
    copies = [tasks.write_iob(doc, row) for doc, row in zip(docs, labels, strict=True)]
    assert labels_of(copies) == labels
    assert [doc.text for doc in copies] == [doc.text for doc in docs]
    assert tasks.score_entities(copies, docs) == {"p": 1.0, "r": 1.0, "f": 1.0}


def test_words_without_annotation_have_no_label(docs: list[Doc]) -> None:
    assert tasks.read_iob(Doc(docs[0].vocab, words=["a", "b"])) == ["", ""]


def test_an_inside_that_continues_nothing_begins_an_entity(docs: list[Doc]) -> None:
    assert tasks.repair_iob(["I-PER", "I-PER", "I-LOC", "O", "I-LOC", "B-LOC", "I-LOC"]) == [
        "B-PER",
        "I-PER",
        "B-LOC",
        "O",
        "B-LOC",
        "B-LOC",
        "I-LOC",
    ]


def test_scores_are_zero_without_entities() -> None:
    docs = make_docs([[("lives", "O")]])
    assert tasks.score_entities(docs, docs) == {"p": 0.0, "r": 0.0, "f": 0.0}


def test_only_first_pieces_have_targets(encoder: Path, docs: list[Doc]) -> None:
    peer = script.load_peer(encoder, docs, script.ANNOTATIONS["ner"])
    assert peer.labels == ["B-LOC", "B-PER", "I-LOC", "O"]
    sent = script.encode(peer, docs)[0]
    pieces = peer.tokenizer.convert_ids_to_tokens(sent.pieces)
    assert pieces == ["[CLS]", "An", "##na", "l", "##ive", "##s", "in", "New", "York", "[SEP]"]
    assert sent.firsts == [1, 3, 6, 7, 8]
    ignored = script.IGNORED
    assert script.encode_labels(peer, docs[0], sent) == [
        *(ignored, 1, ignored, 3, ignored, ignored, 3, 0, 2, ignored),
    ]


def test_labels_unseen_in_training_are_ignored(encoder: Path, docs: list[Doc]) -> None:
    peer = script.load_peer(encoder, docs, script.ANNOTATIONS["ner"])
    strange = make_docs([[("Bob", "B-ORG"), ("in", "O")]])[0]
    targets = script.encode_labels(peer, strange, script.encode(peer, [strange])[0])
    assert targets == [script.IGNORED, script.IGNORED, 3, script.IGNORED]


def test_words_cut_off_are_o(encoder: Path, docs: list[Doc]) -> None:
    peer = script.load_peer(encoder, docs, script.ANNOTATIONS["ner"])
    long = make_docs([[("York", "B-LOC")] * (MAX_PIECES + 3)])
    kept = MAX_PIECES - 2  # [CLS] and [SEP] take two places
    with pytest.warns(UserWarning, match=f"5 words have no piece .*{MAX_PIECES} pieces"):
        sent = script.encode(peer, long)[0]
    assert sent.firsts == [*range(1, kept + 1), *[None] * 5]
    assert script.encode_labels(peer, long[0], sent)[1:-1] == [0] * kept
    with pytest.warns(UserWarning, match="5 words"):
        predicted = script.predict(peer, long, 100)
    assert tasks.read_iob(predicted[0])[kept:] == ["O"] * 5


def test_no_labels_at_all_is_an_error(encoder: Path, docs: list[Doc]) -> None:
    with pytest.raises(ValueError, match="no labels"):
        script.load_peer(encoder, [Doc(docs[0].vocab, words=["a"])], script.ANNOTATIONS["ner"])


def test_batches_hold_every_doc_once(encoder: Path, docs: list[Doc]) -> None:
    many = docs * 25
    encoded = script.encode(script.load_peer(encoder, docs, script.ANNOTATIONS["ner"]), many)
    rng = random.Random(0)
    first, second = (script.shuffled_batches(many, encoded, 10, rng) for _ in range(2))
    assert first != second
    for batches in (first, second):
        assert sorted(i for batch in batches for i in batch) == list(range(100))
        assert all(sum(len(many[i]) for i in batch) <= 10 for batch in batches)
    lengths = [[len(encoded[i].pieces) for i in batch] for batch in first]
    assert sum(max(row) * len(row) for row in lengths) < 1.2 * sum(map(sum, lengths))


def test_a_doc_longer_than_a_batch_stands_alone(docs: list[Doc]) -> None:
    assert list(script.by_words(range(4), docs, 4)) == [[0], [1], [2, 3]]


def test_decay_spares_biases_and_norms(encoder: Path, docs: list[Doc]) -> None:
    model = script.load_peer(encoder, docs, script.ANNOTATIONS["ner"]).model
    names = {id(param): name for name, param in model.named_parameters()}
    groups = script.make_optimizer(model, 0.1, 10.0).param_groups
    spared = {names[id(p)] for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    assert spared == {n for n in names.values() if n.endswith("bias") or "LayerNorm" in n}
    head = {names[id(p)] for g in groups if g["lr"] == 1.0 for p in g["params"]}
    assert head == {"classifier.weight", "classifier.bias"}
    assert sum(len(g["params"]) for g in groups) == len(names)


def test_prediction_keeps_the_order_whatever_the_batch(encoder: Path, docs: list[Doc]) -> None:
    peer = script.load_peer(encoder, docs, script.ANNOTATIONS["ner"])
    alone = script.predict(peer, docs, 1)
    together = script.predict(peer, docs, 1000)
    assert [doc.text for doc in alone] == [doc.text for doc in docs]
    assert labels_of(alone) == labels_of(together)


def test_it_learns(encoder: Path, docs: list[Doc]) -> None:
    metrics = script.train_plain(
        docs, docs, encoder, test=docs, epochs=40, batch_words=6, learn_rate=5e-3
    )
    losses = [row["loss"] for row in metrics["history"]]
    assert losses[-1] < 0.2 * losses[0]
    assert metrics["dev"]["f"] == max(row["dev_score"] for row in metrics["history"]) > 0.9
    assert metrics["test"] == metrics["dev"]


def test_it_learns_tags(encoder: Path) -> None:
    vocab = spacy.blank("xx").vocab
    sentences = [[("Anna", "NNP"), ("lives", "VBZ")], [("in", "IN"), ("York", "")]]
    docs = [
        Doc(vocab, words=[word for word, _ in rows], tags=[tag for _, tag in rows])
        for rows in sentences
    ]
    metrics = script.train_plain(
        docs, docs, encoder, task="tag", test=docs, epochs=40, batch_words=6, learn_rate=5e-3
    )
    assert metrics["task"] == "tag"
    # The word without a tag is neither learned nor scored.
    assert metrics["dev"] == metrics["test"] == {"acc": 1.0}


CHINESE = [["在", "圖書館", "拍照"], ["用", "iPhone", "15", "拍照", "。"], ["大學生"]]


def make_words(sentences: list[list[str]]) -> list[Doc]:
    vocab = spacy.blank("xx").vocab
    return [Doc(vocab, words=words, spaces=[False] * len(words)) for words in sentences]


def words_of(docs: list[Doc]) -> list[list[str]]:
    return [[word.text for word in doc] for doc in docs]


def test_words_become_characters_and_words_again() -> None:
    docs = make_words(CHINESE)
    characters = [tasks.to_characters(doc) for doc in docs]
    assert words_of(characters)[1] == ["用", "iPhone", "15", "拍", "照", "。"]
    assert [word.tag_ for word in characters[0]] == ["S", "B", "M", "E", "B", "E"]
    assert words_of([tasks.join_words(doc) for doc in characters]) == CHINESE
    assert tasks.score_words(characters, characters) == {"f": 1.0, "p": 1.0, "r": 1.0}
    alone = [tasks.write_attribute(doc, ["S"] * len(doc), "tags") for doc in characters]
    # 1 + 4 of 9 words are found, of 15 that are said to be
    assert tasks.score_words(alone, characters)["r"] == pytest.approx(5 / 9)
    assert tasks.score_words(alone, characters)["p"] == pytest.approx(5 / 15)


def test_names_become_names_of_characters() -> None:
    docs = make_words(CHINESE)
    docs[0].set_ents([docs[0].char_span(1, 4, "LOC")])
    first, second = (tasks.to_characters(doc) for doc in docs[:2])
    assert [(name.text, name.label_) for name in first.ents] == [(docs[0].text[1:4], "LOC")]
    assert tasks.read_iob(first) == ["O", "B-LOC", "I-LOC", "I-LOC", "O", "O"]
    assert tasks.read_iob(second) == [""] * len(second), "not annotated"


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ("MME", ["圖書館"]),
        ("BBE", ["圖", "書館"]),
        ("EMS", ["圖", "書", "館"]),
        ("SEE", ["圖", "書", "館"]),
    ],
)
def test_any_tags_are_words(tags: str, words: list[str]) -> None:
    (doc,) = make_words([["圖", "書", "館"]])
    assert words_of([tasks.join_words(tasks.write_attribute(doc, list(tags), "tags"))]) == [words]


def test_no_word_goes_over_a_space() -> None:
    doc = Doc(spacy.blank("xx").vocab, words=["圖", "書"], spaces=[True, False], tags=["B", "E"])
    assert words_of([tasks.join_words(doc)]) == [["圖", "書"]]


@pytest.fixture(scope="module")
def zh_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    characters = "".join(
        sorted({c for words in CHINESE for word in words for c in word if c > "\u2e80"})
    )
    return make_encoder(tmp_path_factory.mktemp("zh"), n_layers=2, characters=characters)


def test_each_character_is_cut_for_itself(zh_encoder: Path) -> None:
    """Its pieces are those that the early-exit model has."""
    docs = [tasks.to_characters(doc) for doc in make_words(CHINESE)]
    peer = script.load_peer(zh_encoder, docs, script.ANNOTATIONS["seg"], characters=True)
    assert peer.labels == ["B", "E", "M", "S"]
    sent = script.encode(peer, docs)[1]
    names = peer.tokenizer.convert_ids_to_tokens(sent.pieces)
    assert names[:3] == ["[CLS]", "用", "i"] and names[-4:] == ["拍", "照", "。", "[SEP]"]
    assert [names[first] for first in sent.firsts] == ["用", "i", "1", "拍", "照", "。"]
    long = script.Peer(*peer[:4], 5, peer.single)
    with pytest.warns(UserWarning, match="4 words have no piece"):
        cut = script.encode(long, docs[1:2])[0]
    assert len(cut.pieces) == 5 and cut.firsts[:2] == [1, 2] and cut.firsts[2:] == [None] * 4


def test_it_learns_words(zh_encoder: Path) -> None:
    docs = make_words(CHINESE)
    metrics = script.train_plain(
        docs, docs, zh_encoder, task="seg", test=docs, epochs=40, batch_words=8, learn_rate=5e-3
    )
    assert metrics["dev"] == metrics["test"] == {"f": 1.0, "p": 1.0, "r": 1.0}


def test_it_learns_names_of_characters(zh_encoder: Path) -> None:
    """Which begin and end with words here, but no word says where."""
    docs = make_words(CHINESE)
    for doc in docs:
        doc.set_ents([Span(doc, len(doc) // 2, len(doc) // 2 + 1, "LOC")])
    metrics = script.train_plain(
        docs,
        docs,
        zh_encoder,
        task="ner",
        characters=True,
        test=docs,
        epochs=40,
        batch_words=8,
        learn_rate=5e-3,
    )
    assert metrics["characters"] and metrics["test"] == {"f": 1.0, "p": 1.0, "r": 1.0}


def test_an_unknown_task_is_named(encoder: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "docs.spacy"
    DocBin(docs=make_docs(SENTENCES)).to_disk(corpus)
    arguments = [
        corpus,
        corpus,
        "--encoder",
        encoder,
        "--output",
        tmp_path / "m",
        "--task",
        "lemma",
    ]
    result = CliRunner().invoke(script.app, [str(argument) for argument in arguments])
    assert result.exit_code == 2
    assert "lemma is none of ner, tag, pos" in result.output


def test_the_best_epoch_is_kept(
    encoder: Path, docs: list[Doc], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, dict[str, torch.Tensor]]] = []
    dev_f = [0.1, 0.6, 0.6, 0.3]

    def evaluate(peer: Any, *_: Any) -> dict[str, float]:
        weights = {name: value.clone() for name, value in peer.model.state_dict().items()}
        seen.append((peer, weights))
        return {"f": dev_f[len(seen) - 1], "p": 0.0, "r": 0.0}

    monkeypatch.setattr(script, "evaluate", evaluate)
    metrics = script.train_plain(docs, docs, encoder, epochs=4, learn_rate=1e-3)
    assert [row["dev_score"] for row in metrics["history"]] == dev_f
    assert metrics["dev"]["f"] == 0.6
    final = seen[0][0].model.state_dict()
    same = [all(torch.equal(final[name], weights[name]) for name in final) for _, weights in seen]
    assert same == [False, True, False, False]


def test_cli(encoder: Path, docs: list[Doc], tmp_path: Path) -> None:
    corpus = tmp_path / "docs.spacy"
    DocBin(docs=docs).to_disk(corpus)
    output = tmp_path / "new" / "metrics.json"
    # fmt: off
    arguments = [
        corpus, corpus, "--encoder", encoder, "--output", output, "--test", corpus,
        "--epochs", 3, "--batch-words", 8, "--max-steps", 2, "--seed", 1, "--learn-rate", 0.001,
    ]
    # fmt: on
    result = CliRunner().invoke(script.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert result.output.count("epoch 1: loss") == 1
    metrics = json.loads(output.read_text(encoding="utf-8"))
    assert set(metrics) == {
        *(
            "system",
            "task",
            "characters",
            "limit",
            "encoder",
            "layers",
            "epochs",
            "batch_words",
            "learn_rate",
            "head_scale",
            "seed",
            "history",
        ),
        *("dev", "test", "train_seconds", "words_per_second", "versions"),
    }
    assert metrics["system"] == "plain"
    assert metrics["encoder"] == encoder.name
    assert (metrics["epochs"], metrics["batch_words"], metrics["seed"]) == (3, 8, 1)
    assert metrics["learn_rate"] == 0.001
    # 2 steps: with 11 words in batches of at most 8 that is the first epoch.
    assert [set(row) for row in metrics["history"]] == [{"epoch", "loss", "dev_score"}]
    assert set(metrics["dev"]) == set(metrics["test"]) == {"p", "r", "f"}
    assert metrics["train_seconds"] > 0 and metrics["words_per_second"] > 0
    assert [path.name for path in output.parent.iterdir()] == ["metrics.json"]


def test_cut_and_saved(encoder: Path, docs: list[Doc], tmp_path: Path) -> None:
    metrics = script.train_plain(
        docs, docs, str(encoder), epochs=1, layers=1, save=tmp_path / "model", mixed_precision=True
    )
    assert metrics["layers"] == 1
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "model")
    assert len(model.base_model.encoder.layer) == 1
    assert list(model.config.id2label.values()) == ["B-LOC", "B-PER", "I-LOC", "O"]
    with pytest.raises(ValueError, match="has 2 layers, of which 3"):
        script.train_plain(docs, docs, str(encoder), layers=3)


def test_two_runs_are_equal(encoder: Path, docs: list[Doc]) -> None:
    runs = [
        script.train_plain(docs, docs, encoder, epochs=2, batch_words=8, learn_rate=1e-3, seed=3)
        for _ in range(2)
    ]
    assert runs[0]["history"] == runs[1]["history"]
    assert runs[0]["test"] is None and runs[0]["words_per_second"] is None
