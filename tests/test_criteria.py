"""Exit criteria: what a config may say, and what they decide."""

import numpy as np
import pytest
import spacy
import torch
from conftest import TEXTS
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.util import registry
from thinc.api import Config

from spacy_earlyexit.model.criteria import (
    UNIT_GAP,
    FixedExit,
    SentenceExit,
    TokenExit,
    unit_max,
    window_max,
)


def build(name, **block):
    """As Python code does, without the config's own check of types."""
    return registry.misc.get(f"spacy-earlyexit.{name}.v1")(**block)


def resolve(name, **block):
    """As a config does."""
    return registry.resolve({"exit": {"@misc": f"spacy-earlyexit.{name}.v1", **block}})["exit"]


# --- what a config may say -----------------------------------------------------------------


@pytest.mark.parametrize("make", [build, resolve])
@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan"), [0.1, 2.0], [-1.0], "0.3"])
def test_thresholds_outside_0_and_1_are_refused(make, threshold):
    for name, rest in (("TokenExit", {"window": 1}), ("SentenceExit", {})):
        with pytest.raises(ValueError, match=r"`threshold` has to be in \[0, 1\] .* but is"):
            make(name, threshold=threshold, **rest)


@pytest.mark.parametrize("threshold", [0, 0.0, 1, 1.0, 0.3, [0.0, 1.0, 0.5]])
def test_thresholds_from_0_to_1_are_taken(threshold):
    taken = tuple(threshold) if isinstance(threshold, list) else threshold
    assert build("TokenExit", threshold=threshold, window=0).threshold == taken
    assert build("SentenceExit", threshold=threshold).threshold == taken


@pytest.mark.parametrize("window", [-1, 1.5, 2.0, "2", True, None])
def test_windows_that_are_no_number_of_words_are_refused(window):
    with pytest.raises(ValueError, match="`window` has to be a whole number of words >= 0"):
        build("TokenExit", threshold=0.1, window=window)
    with pytest.raises(ValueError, match="window"):
        resolve("TokenExit", threshold=0.1, window=window)


@pytest.mark.parametrize("layer", [0, -1, 1.5, "2", True, None])
def test_layers_that_no_encoder_has_are_refused(layer):
    with pytest.raises(ValueError, match="`layer` has to be a whole number, 1 or more"):
        build("FixedExit", layer=layer)
    with pytest.raises(ValueError, match="layer"):
        resolve("FixedExit", layer=layer)


@pytest.mark.parametrize("layer", [0, -1, 1.5, "2", True])
@pytest.mark.parametrize("name, more", [("TokenExit", {"window": 1}), ("SentenceExit", {})])
def test_last_layers_that_no_encoder_has_are_refused(name, more, layer):
    with pytest.raises(ValueError, match="`last_layer` has to be a whole number, 1 or more"):
        build(name, threshold=0.1, last_layer=layer, **more)


@pytest.mark.parametrize(
    "criterion, message",
    [
        (TokenExit([0.1, 0.2], 1), "names 2 layers, but the encoder has 4"),
        (TokenExit([], 1), "names 0 layers, but the encoder has 4"),
        (SentenceExit([0.1] * 5), "names 5 layers, but the encoder has 4"),
        (TokenExit(0.1, 1, 5), "`last_layer` has to be in 1..4 for this encoder, but is 5"),
        (FixedExit(5), "`layer` has to be in 1..4 for this encoder, but is 5"),
    ],
)
def test_what_does_not_fit_the_encoder_is_refused_where_it_is_set(trained, criterion, message):
    """The tiny encoder has four layers. The setting before stays."""
    transformer = trained.get_pipe("transformer")
    with pytest.raises(ValueError, match=message):
        transformer.exit = criterion
    assert transformer.exit is None
    with pytest.raises(ValueError, match=message):
        with transformer.use(criterion):
            pass
    with pytest.raises(ValueError, match=message):
        criterion.validate(4)


def test_what_does_not_fit_the_encoder_is_refused_at_load(trained, tmp_path):
    """Not at the first text."""
    trained.to_disk(tmp_path)
    block = {"@misc": "spacy-earlyexit.FixedExit.v1", "layer": 5}
    with pytest.raises(ValueError, match="in 1..4 for this encoder, but is 5"):
        spacy.load(tmp_path, config={"components": {"transformer": {"exit": block}}})
    block["layer"] = 2
    nlp = spacy.load(tmp_path, config={"components": {"transformer": {"exit": block}}})
    assert set(nlp("Anna lives in Berlin")._.exit_layers) == {2}


def test_a_threshold_per_layer_and_the_last_layer_fit(trained):
    transformer = trained.get_pipe("transformer")
    for criterion in (TokenExit([0.1] * 4, 1), SentenceExit([0.1] * 4), FixedExit(4)):
        with transformer.use(criterion):
            assert transformer.criterion is criterion


@pytest.mark.parametrize(
    "criterion",
    [
        TokenExit(0.25, 2),
        TokenExit([0.0, 0.1, 0.2, 1.0], 0),
        SentenceExit(0.5),
        SentenceExit([0.0, 0.5]),
        TokenExit(0.25, 2, 3),
        SentenceExit([0.0, 0.5], 1),
        FixedExit(3),
    ],
    ids=lambda c: type(c).__name__,
)
def test_config_round_trip(criterion):
    """What a criterion writes into a config gives the same criterion back."""
    config = Config({"exit": criterion.to_config()})
    again = registry.resolve(Config().from_str(config.to_str()))["exit"]
    assert type(again) is type(criterion)
    assert vars(again) == vars(criterion)
    assert again.to_config() == criterion.to_config()


def test_numbers_of_numpy_and_how_they_are_shown():
    criteria = (
        TokenExit(np.float32(0.25), np.int64(2), np.int64(3)),
        SentenceExit(np.asarray([0.5, 0.25])),
        FixedExit(np.int64(3)),
    )
    plain = (TokenExit(0.25, 2, 3), SentenceExit([0.5, 0.25]), FixedExit(3))
    for criterion, other in zip(criteria, plain, strict=True):
        assert Config({"exit": criterion.to_config()}).to_str()
        assert vars(criterion) == vars(other)
    assert [repr(c) for c in plain] == [
        "TokenExit(threshold=0.25, window=2, last_layer=3)",
        "SentenceExit(threshold=(0.5, 0.25))",
        "FixedExit(layer=3)",
    ]


# --- what they decide ----------------------------------------------------------------------


class Layout:
    """Words of units one behind the other, as the engine shows them to a criterion."""

    def __init__(self, n_words):
        self.word_unit = torch.repeat_interleave(torch.arange(len(n_words)), torch.tensor(n_words))
        self.n_units = len(n_words)
        self.word_gap = torch.ones(sum(n_words), dtype=torch.int64)
        self.word_gap[np.cumsum(n_words)[:-1]] = UNIT_GAP
        self.word_gap[0] = 0
        self.n_gaps = len(n_words) - 1
        self.most_words = max(n_words)
        self.units = np.split(np.arange(sum(n_words)), np.cumsum(n_words)[:-1])


UNITS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: TokenExit(7.0, -3), r"`threshold` has to be in \[0, 1\].*7\.0"),
        (lambda: TokenExit(1.5, 0), r"`threshold` has to be in \[0, 1\].*1\.5"),
        (lambda: TokenExit(float("nan"), 0), r"`threshold` has to be in \[0, 1\].*nan"),
        (lambda: TokenExit("0.1", 0), r"`threshold` has to be in \[0, 1\].*'0\.1'"),
        (lambda: TokenExit(True, 0), r"`threshold` has to be in \[0, 1\].*True"),
        (lambda: TokenExit([[0.5]], 0), r"`threshold` has to be in \[0, 1\]"),
        (lambda: TokenExit(0.5, -1), r"`window` has to be a whole number.*-1"),
        (lambda: TokenExit(0.5, "2"), r"`window` has to be a whole number.*'2'"),
        (lambda: TokenExit(0.5, 1.5), r"`window` has to be a whole number.*1\.5"),
        (lambda: TokenExit(0.5, 1, 0), r"`last_layer` has to be a whole number, 1 or more.*0"),
        (lambda: SentenceExit(-0.5), r"`threshold` has to be in \[0, 1\].*-0\.5"),
        (lambda: FixedExit(0), r"`layer` has to be a whole number, 1 or more.*0"),
        (lambda: FixedExit(2.5), r"`layer` has to be a whole number"),
        (lambda: FixedExit("2"), r"`layer` has to be a whole number.*'2'"),
    ],
)
def test_impossible_criteria_fail_where_they_are_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_criteria_are_values():
    assert TokenExit(0.1, 2) == TokenExit(np.float64(0.1), np.int64(2), None)
    assert TokenExit([0.1, 0.2], 2) == TokenExit(np.asarray([0.1, 0.2]), 2)
    assert TokenExit(0.1, 2) != TokenExit(0.1, 3) and TokenExit(0.1, 2) != SentenceExit(0.1)
    assert len({TokenExit([0.1, 0.2], 2), TokenExit((0.1, 0.2), 2), FixedExit(1)}) == 2
    with pytest.raises(AttributeError):
        TokenExit(0.1, 2).window = 3
    assert repr(TokenExit(0.123456, 2)) == "TokenExit(threshold=0.1235, window=2)"


@settings(max_examples=200)
@given(UNITS, st.integers(0, 12), st.integers(0, 10_000))
def test_window_max_equals_a_loop(n_words, window, seed):
    """Over words of the own unit only, clipped at its edges."""
    layout = Layout(n_words)
    u = np.random.default_rng(seed).random(sum(n_words))
    expected = [
        max(u[i] for i in unit if abs(int(i) - int(j)) <= window)
        for unit in layout.units
        for j in unit
    ]
    pooled = window_max(torch.from_numpy(u), layout, window)
    np.testing.assert_array_equal(pooled.numpy(), expected)


def test_a_window_costs_no_more_than_a_unit(monkeypatch):
    widths = []
    pool = torch.nn.functional.max_pool1d
    monkeypatch.setattr(
        torch.nn.functional, "max_pool1d", lambda x, k, **kw: widths.append(k) or pool(x, k, **kw)
    )
    u = torch.rand(9)
    for n_words in ([4, 2, 3], [9]):
        window_max(u, Layout(n_words), 10**6)
    assert widths == [2 * 3 + 1, 2 * 8 + 1]


@settings(max_examples=50)
@given(UNITS, st.integers(0, 10_000))
def test_unit_max_equals_a_loop(n_words, seed):
    layout = Layout(n_words)
    u = np.random.default_rng(seed).random(sum(n_words))
    expected = [max(u[unit]) for unit in layout.units for _ in unit]
    np.testing.assert_array_equal(unit_max(torch.from_numpy(u), layout).numpy(), expected)


@pytest.mark.parametrize("make", [lambda t: TokenExit(t, 0), SentenceExit])
def test_a_word_leaves_below_the_threshold_not_at_it(make):
    u = torch.tensor([0.2, 0.3, 0.4])
    layout = Layout([1, 1, 1])
    assert make(0.3)(1, u, layout).tolist() == [True, False, False]
    assert make([0.3, 0.41])(2, u, layout).tolist() == [True, True, True]
    assert make([0.3, 0.41])(1, u, layout).tolist() == [True, False, False]


def offramps_run(nlp, criterion):
    """The layers whose off-ramps are run, and those at which words leave."""
    transformer = nlp.get_pipe("transformer")
    seen, left = set(), set()
    offramps = transformer.model.layers[1].shims[0].module.offramps
    hook = offramps.register_forward_pre_hook(lambda _, args: seen.add(args[0]))
    try:
        with transformer.use(criterion):
            for doc in nlp.pipe([text for text, _ in TEXTS]):
                left.update(doc._.exit_layers)
    finally:
        hook.remove()
    return seen, left


@pytest.mark.parametrize(
    "criterion, run",
    [
        (None, {4}),
        (TokenExit(0.0, 1), {4}),
        (TokenExit([0.0, 0.05, 0.0, 0.0], 0), {2, 4}),
        (TokenExit([0.0, 0.0, 0.05, 1.0], 0), {3, 4}),
        (SentenceExit([0.05, 0.0, 0.0, 0.0]), {1, 4}),
        (FixedExit(3), {3}),
        (FixedExit(4), {4}),
    ],
)
def test_offramps_that_decide_nothing_are_not_run(nlp, criterion, run):
    """A threshold of 0 at a layer costs nothing there, and nothing leaves there."""
    seen, left = offramps_run(nlp, criterion)
    assert seen == run
    assert left and left <= run


def test_words_leave_only_at_layers_with_a_threshold(trained):
    """[0, δ, 0, 0]: those below δ behind the second layer leave there, the others at the last."""
    transformer = trained.get_pipe("transformer")
    docs = [trained.make_doc(text) for text, _ in TEXTS]
    with transformer.use(FixedExit(2)):
        doubt = transformer.predict(docs).uncertainty
    middle = float(np.median(doubt))
    assert doubt.min() < middle < doubt.max()
    with transformer.use(TokenExit([0.0, middle, 0.0, 0.0], 0)):
        exit_layer = transformer.predict(docs).exit_layer
    assert exit_layer.tolist() == np.where(doubt < middle, 2, 4).tolist()
