"""Every family: equal to Hugging Face, forward and backward; trained, saved and loaded."""

import copy
import json
import sys

import numpy as np
import pytest
import spacy
import torch
from conftest import (
    BERT_NAMES,
    ROOT,
    make_byte_bpe,
    make_encoder,
    make_examples,
    make_nlp,
    make_unigram,
    make_wordpiece,
)
from reference import assert_equal, engine, reference, token_rule
from spacy.tokens import Doc
from transformers import (
    AlbertTokenizerFast,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertTokenizerFast,
    CamembertTokenizerFast,
    DistilBertTokenizerFast,
    ElectraTokenizerFast,
    RobertaTokenizerFast,
    XLMRobertaTokenizerFast,
)

from spacy_earlyexit.cli.info import describe
from spacy_earlyexit.model.architecture import module_of, pieces_of
from spacy_earlyexit.model.criteria import FixedExit, TokenExit
from spacy_earlyexit.model.encoders import FAMILIES, SUPPORTED, load_encoder
from spacy_earlyexit.model.encoders.families import canonical_state
from spacy_earlyexit.model.kernels import attention, products
from spacy_earlyexit.model.output import OutputGradient, Request, Run

sys.path.insert(0, str(ROOT / "benchmarks"))
from agreement import padded_rows

SIZES = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "max_position_embeddings": 80,
}
UNDROPPED = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BERT = {**SIZES, **UNDROPPED}
# Layers 1 and 4 are global; the others see two rows on each side.
MODERNBERT = {
    **SIZES,
    "local_attention": 4,
    "global_attn_every_n_layers": 3,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
CASES = {
    "bert": (BERT, lambda: make_wordpiece(BertTokenizerFast)),
    "roberta": ({**BERT, "type_vocab_size": 1}, lambda: make_byte_bpe(RobertaTokenizerFast)),
    "xlm-roberta": (
        {**BERT, "type_vocab_size": 1},
        lambda: make_unigram(XLMRobertaTokenizerFast),
    ),
    "camembert": ({**BERT, "type_vocab_size": 1}, lambda: make_unigram(CamembertTokenizerFast)),
    "electra": ({**BERT, "embedding_size": 32}, lambda: make_wordpiece(ElectraTokenizerFast)),
    "electra, small embeddings": (
        {**BERT, "embedding_size": 12},
        lambda: make_wordpiece(ElectraTokenizerFast),
    ),
    "distilbert": (
        {
            "dim": 32,
            "n_heads": 4,
            "hidden_dim": 48,
            "n_layers": 4,
            "max_position_embeddings": 80,
            "dropout": 0.0,
            "attention_dropout": 0.0,
        },
        lambda: make_wordpiece(DistilBertTokenizerFast),
    ),
    "albert": (
        {**BERT, "embedding_size": 12},
        lambda: make_unigram(AlbertTokenizerFast, BERT_NAMES),
    ),
    "albert, two groups of two": (
        {**BERT, "embedding_size": 32, "num_hidden_groups": 2, "inner_group_num": 2},
        lambda: make_unigram(AlbertTokenizerFast, BERT_NAMES),
    ),
    "modernbert": (MODERNBERT, lambda: make_byte_bpe(names=BERT_NAMES)),
    "modernbert, biases and one rotary base": (
        {
            **MODERNBERT,
            "local_rope_theta": None,
            "attention_bias": True,
            "mlp_bias": True,
            "norm_bias": True,
        },
        lambda: make_byte_bpe(names=BERT_NAMES),
    ),
}
# Units of 5 to about 70 pieces.
TEXTS = ["New York", "Anna isn't in New York , she said .", "it's", "in the very long and odd " * 3]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def randomise(model):
    """No weight at its initial value: biases and norms that are mixed up have to show."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name.lower()), std=0.2)
    return model.eval()


def make_family(path, case, **overrides):
    """A Hugging Face encoder on disk, as people have it. RETURNS: It."""
    settings, make_tokenizer = CASES[case]
    family = case.split(",")[0]
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(path)
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        **{**settings, **overrides},
    )
    model = randomise(AutoModel.from_config(config))
    model.save_pretrained(path)
    return model


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def theirs(case, tmp_path_factory):
    """The encoder in Hugging Face's hands, and its folder."""
    path = tmp_path_factory.mktemp("family")
    return make_family(path, case), path


@pytest.fixture(scope="module")
def nlp(theirs):
    """A pipeline around it, whose off-ramps tell words apart; do not change it."""
    nlp = make_nlp(str(theirs[1]))
    with torch.no_grad():
        module_of(nlp.get_pipe("transformer").model).offramps.weight.normal_(std=0.5)
    return nlp


def docs_of(nlp):
    return [nlp.make_doc(text) for text in TEXTS]


def hf_rows(hf, pieces):
    return padded_rows(hf, torch.from_numpy(pieces.ids), np.diff(pieces.unit_starts))


def test_every_family_is_tried():
    assert {case.split(",")[0] for case in CASES} == set(FAMILIES)


@pytest.mark.parametrize("fast", [False, True])
def test_full_depth_equals_hugging_face(nlp, theirs, fast, monkeypatch):
    """By torch's own products and attention, and by those that may be faster."""
    monkeypatch.setattr(products, "_LEAST", 0)
    known = fast and torch.backends.mkldnn.is_available()
    monkeypatch.setattr(products, "onednn_is_faster", lambda: known)
    monkeypatch.setattr(attention, "batched_is_faster", lambda n_threads: fast)
    hf, _ = theirs
    model = nlp.get_pipe("transformer").model
    output = model.predict(Request(docs_of(nlp), Run(states=True)))
    lengths = np.diff(output.pieces.unit_starts)
    assert lengths.min() <= 6 and lengths.max() > 40, "mixed lengths, beyond every local window"
    with torch.inference_mode():
        expected = hf_rows(hf, output.pieces)
    torch.testing.assert_close(output.states, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [0, 1])
def test_exits_equal_the_reference(nlp, window):
    """Checks (a) to (g) of the method for the family's own encoder: thresholds of 0 and above 1,
    and one at which words leave at several layers, with and without a window, in a batch of mixed
    lengths. The reference runs each unit for itself.
    """
    model = nlp.get_pipe("transformer").model
    module = copy.deepcopy(module_of(model)).double()
    pieces = model.predict(Request(docs_of(nlp))).pieces
    full = engine(module, pieces, None, states=True)
    zero = engine(module, pieces, TokenExit(0.0, window), states=True)
    assert_equal(zero, full)
    doubts = engine(module, pieces, FixedExit(1))[4][1].uncertainty
    some = 1.001 * float(doubts.median())  # not what one of them has, which rounding would decide
    for threshold in (some, 1.0):
        ours = engine(module, pieces, TokenExit(threshold, window), states=True)
        assert_equal(ours, reference(module, pieces, lambda u, t=threshold: token_rule(t, window)))
        layers = set(ours[1].tolist())
        assert layers == {1} if threshold == 1 else len(layers) > 1


def test_gradients_equal_hugging_face(nlp, theirs):
    """In double precision: small gradients of deep encoders are differences of large ones."""
    hf = copy.deepcopy(theirs[0]).double()
    model = nlp.get_pipe("transformer").model.copy()
    module_of(model).double()
    output, backprop = model.begin_update(Request(docs_of(nlp), Run(states=True)))
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(output.states.shape, generator=generator, dtype=torch.float64)
    backprop(OutputGradient(states=weight))
    (hf_rows(hf, output.pieces) * weight).sum().backward()
    encoder = module_of(model).encoder
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in hf.named_parameters()
    }
    expected = canonical_state(gradients, hf.config, encoder)
    ours = dict(encoder.named_parameters())
    assert set(ours) == set(expected)
    for name, parameter in ours.items():
        scale = float(expected[name].abs().max())
        assert scale > 0, name
        torch.testing.assert_close(
            parameter.grad, expected[name], rtol=1e-4, atol=1e-5 * scale, msg=name
        )


def test_dropout_is_where_the_family_has_it(case, tmp_path, monkeypatch):
    """Every rate another one, and no chance: what is dropped out is scaled."""
    family = case.split(",")[0]
    rates = {
        "distilbert": {"dropout": 0.2, "attention_dropout": 0.3},
        "modernbert": {"embedding_dropout": 0.2, "attention_dropout": 0.3, "mlp_dropout": 0.4},
    }.get(family, {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3})
    hf = make_family(tmp_path, case, **rates)
    attend = torch.nn.functional.scaled_dot_product_attention

    def scaled(rows, p=0.5, training=True, inplace=False):
        return rows * (1 - p) if training else rows

    def scaled_attention(*args, dropout_p=0.0, **kwargs):
        return attend(*args, **kwargs) * (1 - dropout_p)

    monkeypatch.setattr(torch.nn.functional, "dropout", scaled)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", scaled_attention)
    nlp = make_nlp(str(tmp_path))
    model = nlp.get_pipe("transformer").model
    output, _ = model.begin_update(Request(docs_of(nlp), Run(states=True)))
    still = model.predict(Request(docs_of(nlp), Run(states=True)))
    assert not torch.allclose(output.states, still.states, atol=1e-2)
    expected = hf_rows(hf.train(), output.pieces)
    torch.testing.assert_close(output.states, expected, rtol=1e-4, atol=1e-4)


def test_pieces_equal_those_of_its_tokenizer(nlp, theirs):
    """Special pieces too; words are those that whitespace makes."""
    hf = AutoTokenizer.from_pretrained(theirs[1])
    for text in TEXTS:
        doc = Doc(nlp.vocab, words=text.split())
        ids = pieces_of(nlp.get_pipe("transformer").model, [doc]).ids.tolist()
        assert ids == hf(" ".join(text.split()))["input_ids"]


def test_int8_is_close(nlp):
    transformer = nlp.get_pipe("transformer")
    exact = transformer.predict(docs_of(nlp)).scores
    try:
        transformer.precision = "int8"
        found = transformer.predict(docs_of(nlp)).scores
    finally:
        transformer.precision = "float32"
    assert not np.array_equal(found, exact)
    correlation = np.corrcoef(found.ravel(), exact.ravel())[0, 1]
    assert correlation > 0.98, correlation


def test_saved_and_loaded(nlp, tmp_path):
    """The same scores, entities and exit layers; all shapes come from the stored config."""
    transformer = nlp.get_pipe("transformer")
    full = transformer.predict(docs_of(nlp))
    with transformer.use(FixedExit(1)):
        doubt = np.sort(transformer.predict(docs_of(nlp)).uncertainty)
    # Half of the words leave at layer 1, none of them by a hair's breadth.
    middle = len(doubt) // 2
    criterion = TokenExit(float(doubt[middle - 1 : middle + 1].mean()), 0)
    nlp.to_disk(tmp_path)
    bare = spacy.load(tmp_path, exclude=["transformer"])
    assert bare.pipe_names == ["ner"]
    loaded = spacy.load(tmp_path)
    again = spacy.blank("en").from_config(nlp.config).from_bytes(nlp.to_bytes())
    found = []
    for each in (nlp, loaded, again):
        with each.get_pipe("transformer").use(criterion):
            docs = list(each.pipe(TEXTS))
        entities = [[(e.text, e.label_) for e in doc.ents] for doc in docs]
        found.append((entities, [doc._.exit_layers for doc in docs]))
    assert found[0] == found[1] == found[2]
    assert len({layer for layers in found[0][1] for layer in layers}) > 1
    for each in (loaded, again):
        scores = each.get_pipe("transformer").predict(docs_of(each)).scores
        np.testing.assert_allclose(scores, full.scores, atol=1e-5)


def test_it_learns(theirs):
    nlp = make_nlp(str(theirs[1]))
    examples, optimizer = make_examples(nlp), nlp.resume_training()
    optimizer.learn_rate = 1e-3
    losses = [nlp.update(examples, sgd=optimizer)["transformer"] for _ in range(8)]
    assert losses[-1] < 0.8 * losses[0]


def test_info_names_the_family(nlp, case):
    encoder = describe(nlp)["encoder"]
    assert encoder["family"] == case.split(",")[0]
    assert encoder["layers"] == (8 if "two groups of two" in case else 4)


def test_shared_layers_are_stored_and_counted_once(tmp_path):
    hf = make_family(tmp_path, "albert")
    encoder = load_encoder(str(tmp_path), {})
    in_layers = sum(p.numel() for p in hf.encoder.albert_layer_groups.parameters())
    assert sum(p.numel() for p in encoder.layers.parameters()) == in_layers
    assert encoder.layer(1) is encoder.layer(4)


def test_settings_have_the_familys_own_names(tmp_path):
    make_family(tmp_path, "distilbert")
    config = load_encoder(str(tmp_path), {"dropout": 0.3, "n_layers": 2}).config
    assert (config.hidden_dropout, config.n_layers) == (0.3, 2)


def test_unknown_family(tmp_path):
    make_encoder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "mpnet"}))
    with pytest.raises(ValueError, match="family 'mpnet', which is not supported") as caught:
        load_encoder(str(tmp_path), {})
    assert "albert, bert, camembert, distilbert, electra, modernbert, roberta" in str(caught.value)
    assert SUPPORTED in str(caught.value)


@pytest.mark.parametrize(
    "setting", [{"position_embedding_type": "relative_key"}, {"is_decoder": True}]
)
def test_settings_that_make_another_encoder_of_it(tmp_path, setting):
    """They would be loaded without a word and give other rows than the pretrained encoder."""
    make_encoder(tmp_path, **setting)
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=f"has {name} = {value!r} in its config, but only"):
        load_encoder(str(tmp_path), {})
