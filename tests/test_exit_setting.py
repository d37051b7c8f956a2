"""The exit setting: given at load, stored, set at run time, in force for a while."""

import contextlib
import gc
import threading
from pathlib import Path

import numpy as np
import pytest
import spacy
from conftest import TEXTS, make_examples, make_nlp
from pipelines import (
    FIXED_BLOCK,
    N_LAYERS,
    TOKEN_BLOCK,
    depth,
    halfway,
    initialized,
    transformer_of,
)
from spacy.lang.en import English
from spacy.util import registry

from spacy_earlyexit.model.criteria import FixedExit, SentenceExit, TokenExit
from spacy_earlyexit.pipeline.exits import find_exits


def load(path, exit=None):
    config = {} if exit is None else {"components": {"transformer": {"exit": exit}}}
    return spacy.load(path, config=config)


@pytest.fixture(scope="module")
def saved(encoder, tmp_path_factory):
    """A pipeline on disk with two operating points, at full depth."""
    path = tmp_path_factory.mktemp("pipeline")
    nlp = make_nlp(encoder)
    points = transformer_of(nlp).points
    points["fast"] = {"exit": FIXED_BLOCK}
    points["slow"] = {"exit": {**FIXED_BLOCK, "layer": 3}}
    nlp.to_disk(path)
    return path


def saved_again(nlp, path):
    nlp.to_disk(path)
    config = spacy.util.load_config(path / "config.cfg")
    assert not isinstance(config["components"]["transformer"]["exit"], dict), "never a block"
    return path


def test_full_depth_unless_something_is_said(saved):
    nlp = load(saved)
    assert depth(nlp) == N_LAYERS
    assert transformer_of(nlp).exit is None and transformer_of(nlp).criterion is None


@pytest.mark.parametrize(
    "given,layer",
    [
        (FIXED_BLOCK, 1),
        ("fast", 1),
        ("slow", 3),
        ("full", N_LAYERS),
        ({**TOKEN_BLOCK, "threshold": 1.0, "window": 0}, 1),
        ({**TOKEN_BLOCK, "threshold": [0.0, 1.0, 0.0, 0.0], "window": 0}, 2),
        ({"@misc": "spacy-earlyexit.SentenceExit.v1", "threshold": 1.0}, 1),
    ],
)
def test_given_at_load_and_kept(saved, tmp_path, given, layer):
    nlp = load(saved, given)
    assert depth(nlp) == layer
    again = saved_again(nlp, tmp_path / "again")
    assert depth(load(again)) == layer, "stored"


STORED = ["block at load", "name at load", "set criterion", "set name", "full at load"]


def store(saved, path, how):
    """Save a pipeline whose exit was set in some way; also returns the depth."""
    if how == "block at load":
        return saved_again(load(saved, {**FIXED_BLOCK, "layer": 2}), path), 2
    if how == "name at load":
        return saved_again(load(saved, "slow"), path), 3
    if how == "full at load":
        return saved_again(load(saved, "full"), path), N_LAYERS
    nlp = load(saved)
    transformer_of(nlp).exit = FixedExit(2) if how == "set criterion" else "slow"
    return saved_again(nlp, path), 2 if how == "set criterion" else 3


@pytest.mark.parametrize("how", STORED)
def test_stored_beats_full_depth(saved, tmp_path, how):
    path, layer = store(saved, tmp_path / "one", how)
    nlp = load(path)
    assert depth(nlp) == layer
    path = saved_again(nlp, tmp_path / "two")
    assert depth(load(path)) == layer, "and goes on doing so"


@pytest.mark.parametrize("how", STORED)
@pytest.mark.parametrize("given,layer", [(FIXED_BLOCK, 1), ("fast", 1), ("full", N_LAYERS)])
def test_given_at_load_beats_stored(saved, tmp_path, how, given, layer):
    path, _ = store(saved, tmp_path / "one", how)
    nlp = load(path, given)
    assert depth(nlp) == layer
    path = saved_again(nlp, tmp_path / "two")
    assert depth(load(path)) == layer, "now this one is stored"


def test_a_name_given_at_load_beats_what_was_set_since(saved, tmp_path):
    """The same name was given before; then another one was set, and stored."""
    nlp = load(saved, "slow")
    transformer_of(nlp).exit = "fast"
    path = saved_again(nlp, tmp_path / "one")
    assert depth(load(path)) == 1
    assert depth(load(path, "slow")) == 3


def test_run_time_beats_given_at_load(saved, tmp_path):
    nlp = load(saved, FIXED_BLOCK)
    transformer_of(nlp).exit = None
    assert depth(nlp) == N_LAYERS
    assert depth(load(saved_again(nlp, tmp_path))) == N_LAYERS


@pytest.mark.parametrize("criterion", [TokenExit(0.5, 3), SentenceExit([0.1, 0.2, 0.3, 0.4])])
def test_stored_criterion_is_the_same(saved, tmp_path, criterion):
    nlp = load(saved)
    transformer_of(nlp).exit = criterion
    again = transformer_of(load(saved_again(nlp, tmp_path))).criterion
    assert type(again) is type(criterion)
    block, stored = criterion.to_config(), again.to_config()
    assert stored.pop("threshold") == pytest.approx(block.pop("threshold"), rel=1e-12)
    assert stored == block


def test_stored_in_bytes(saved):
    nlp = load(saved)
    transformer_of(nlp).exit = "fast"
    again = English.from_config(nlp.config).from_bytes(nlp.to_bytes())
    assert transformer_of(again).exit == "fast" and depth(again) == 1


def test_config_before_training_is_kept(encoder, tmp_path):
    """A criterion in the training config rules the trained pipeline."""
    nlp = initialized(encoder, exit=FIXED_BLOCK)
    assert depth(nlp) == 1
    assert depth(load(saved_again(nlp, tmp_path))) == 1
    assert depth(load(tmp_path, {**FIXED_BLOCK, "layer": 2})) == 2


def test_sourced_component_keeps_its_setting(saved, tmp_path):
    source = load(saved, "slow")
    nlp = spacy.blank("en")
    nlp.add_pipe("transformer", source=source)
    nlp.add_pipe("ner", source=source)
    assert depth(nlp) == 3
    transformer_of(nlp).exit = "fast"
    assert depth(load(saved_again(nlp, tmp_path))) == 1


@pytest.mark.parametrize(
    "value,message",
    [
        ("5x", r"Unknown operating point '5x'.*full, fast, slow"),
        (FixedExit(9), r"`layer` has to be in 1\.\.4.*9"),
        (TokenExit([0.1, 0.2], 0), r"names 2 layers, but the encoder has 4"),
        (0.5, r"`exit` has to be 'full'.*TokenExit.*0\.5"),
        (TokenExit, r"`exit` has to be an exit setting, but is the class TokenExit itself"),
        ({**FIXED_BLOCK, "layer": 9}, r"`layer` has to be in 1\.\.4.*9"),
        ({"layer": 1}, r"`exit` has to be 'full'"),
    ],
)
def test_wrong_settings_at_run_time(saved, value, message):
    nlp = load(saved)
    transformer = transformer_of(nlp)
    with pytest.raises(ValueError, match=message):
        transformer.exit = value
    with pytest.raises(ValueError, match=message), transformer.use(value):
        pytest.fail("must not get here")
    assert depth(nlp) == N_LAYERS, "nothing has changed"


@pytest.mark.parametrize(
    "value,message",
    [
        ("5x", r"Unknown operating point '5x'.*full, fast, slow"),
        ({**FIXED_BLOCK, "layer": 9}, r"`layer` has to be in 1\.\.4.*9"),
        ({**TOKEN_BLOCK, "threshold": [0.1, 0.2]}, r"names 2 layers, but the encoder has 4"),
        ({**TOKEN_BLOCK, "threshold": -1}, r"`threshold`.*-1"),
    ],
)
def test_wrong_settings_at_load(saved, value, message):
    with pytest.raises(ValueError, match=message):
        load(saved, value)


def test_a_criterion_that_lacks_a_method(saved):
    class Halves:
        def checks(self, layer):
            return True

        def validate(self, n_layers):
            pass

        def to_config(self):
            return FIXED_BLOCK

        def __call__(self, layer, uncertainty, words):
            return uncertainty < 0.5

    with pytest.raises(ValueError, match="This Halves lacks halts"):
        transformer_of(load(saved)).exit = Halves()


@pytest.mark.parametrize(
    "setting,value",
    [
        ("max_batch_items", -5),
        ("max_batch_items", 2.5),
        ("max_batch_items", True),
        ("record", "uncertainty"),
        ("record", ["uncertain"]),
        ("precision", "float16"),
        ("self_sampling", {"windows": [1]}),
        ("loss", "uniform"),
    ],
)
def test_other_settings_are_checked_when_they_are_set(saved, setting, value):
    transformer = transformer_of(load(saved))
    before = getattr(transformer, setting)
    with pytest.raises(ValueError, match=rf"`{setting}` has to be"):
        setattr(transformer, setting, value)
    assert getattr(transformer, setting) == before


def test_use_without_with_says_that_it_does_nothing(saved):
    transformer = transformer_of(load(saved))
    with pytest.warns(UserWarning, match="does nothing by itself.*with transformer.use"):
        transformer.use("fast")
        gc.collect()


@pytest.mark.parametrize("as_tuples", [False, True])
def test_generators_keep_the_setting_they_were_made_under(saved, as_tuples):
    """Wherever they are read, and also if they are first read outside of the block."""
    nlp = load(saved)
    transformer = transformer_of(nlp)

    def depths(stream):
        docs = [pair[0] if as_tuples else pair for pair in stream]
        return {layer for doc in docs for layer in doc._.exit_layers if layer}

    texts = [(text, i) if as_tuples else text for i, (text, _) in enumerate(TEXTS)]
    docs = [nlp.make_doc(text) for text, _ in TEXTS]
    with transformer.use("fast"):
        of_nlp = nlp.pipe(texts, as_tuples=as_tuples, batch_size=2)
        begun = nlp.pipe(texts, as_tuples=as_tuples, batch_size=2)
        first = next(begun)
        with transformer.use("slow"):
            of_component = transformer.pipe(docs, batch_size=2)
    assert "pipe" not in vars(nlp), "nothing is left behind"
    assert depths(of_nlp) == {1}
    assert depths([first, *begun]) == {1}
    assert {layer for doc in of_component for layer in doc._.exit_layers} == {3}
    assert depth(nlp) == N_LAYERS
    with transformer.use("fast"):
        assert depths(nlp.pipe(texts, as_tuples=as_tuples)) == {1}
        outside = transformer.pipe([nlp.make_doc("Berlin is nice")])
    with transformer.use("slow"):
        assert next(outside)._.exit_layers == [1, 1, 1]


@pytest.mark.slow
def test_generators_with_processes_keep_it_too(saved):
    nlp = load(saved)
    with transformer_of(nlp).use("fast"):
        stream = nlp.pipe([text for text, _ in TEXTS], n_process=2)
    assert {layer for doc in stream for layer in doc._.exit_layers} == {1}


@pytest.mark.parametrize("block", [None, {"layer": 1}])
def test_a_criterion_that_could_not_be_loaded_again(saved, block):
    class Mine(FixedExit):
        def to_config(self):
            return block

    nlp = load(saved)
    transformer = transformer_of(nlp)
    with pytest.raises(ValueError, match=r"`exit` has to be 'full'"):
        transformer.exit = Mine(1)
    assert depth(nlp) == N_LAYERS
    with transformer.use(Mine(1)):  # that saves nothing
        assert depth(nlp) == 1


def test_a_point_is_resolved_once(saved, monkeypatch):
    """Not for every text, which takes as long as a layer."""
    nlp = load(saved, "slow")
    assert depth(nlp) == 3
    monkeypatch.setattr(registry, "resolve", None)
    assert depth(nlp) == 3
    nlp.get_pipe("transformer").points["slow"]["exit"]["layer"] = 2
    monkeypatch.undo()
    assert depth(nlp) == 2, "what is in the points counts"


def test_use_nests_and_ends(saved):
    nlp = load(saved, "slow")
    transformer = transformer_of(nlp)
    with transformer.use("fast"):
        assert depth(nlp) == 1
        with transformer.use(FixedExit(2)):
            assert depth(nlp) == 2
            with transformer.use(None):
                assert depth(nlp) == N_LAYERS
            assert depth(nlp) == 2
        assert depth(nlp) == 1
        assert transformer.exit == "slow", "the setting itself is left alone"
    assert depth(nlp) == 3


def test_use_ends_with_an_exception(saved):
    nlp = load(saved)
    with contextlib.suppress(KeyError), transformer_of(nlp).use("fast"):
        assert depth(nlp) == 1
        raise KeyError
    assert depth(nlp) == N_LAYERS


def test_use_is_not_saved(saved, tmp_path):
    nlp = load(saved)
    with transformer_of(nlp).use("fast"):
        nlp.to_disk(tmp_path)
    assert depth(load(tmp_path)) == N_LAYERS


def test_use_stays_in_its_thread_and_pipeline(saved):
    nlp, other = load(saved), load(saved)
    seen = {}

    def work():
        seen["before"] = depth(nlp)
        with transformer_of(nlp).use("slow"):
            entered.set()
            leave.wait(30)
            seen["inside"] = depth(nlp)

    entered, leave = threading.Event(), threading.Event()
    thread = threading.Thread(target=work)
    with transformer_of(nlp).use("fast"):
        thread.start()
        assert entered.wait(30)
        assert depth(nlp) == 1, "the thread's setting does not come here"
        assert depth(other) == N_LAYERS, "nor does ours reach another pipeline"
        leave.set()
        thread.join(30)
    assert seen == {"before": N_LAYERS, "inside": 3}


def test_evaluation_follows_the_exit_setting(saved):
    nlp = load(saved, "fast")
    scores = nlp.evaluate(make_examples(nlp))
    assert scores["exit_layer_mean"] == 1.0
    assert 3.5 < scores["exit_speedup"] <= N_LAYERS


def test_results_do_not_depend_on_batches(saved):
    """Also with a row budget so small that every document is its own batch."""
    texts = [text for text, _ in TEXTS]
    together, alone = (
        load(saved),
        spacy.load(saved, config={"components": {"transformer": {"max_batch_items": 1}}}),
    )
    for nlp in (together, alone):
        transformer_of(nlp).exit = halfway(nlp)
    docs = list(together.pipe(texts))
    assert len({layer for doc in docs for layer in doc._.exit_layers}) > 1
    for doc, other in zip(docs, alone.pipe(texts), strict=True):
        assert doc._.exit_layers == other._.exit_layers
    transformers = transformer_of(together), transformer_of(alone)
    docs, others = (list(t.pipe(map(together.make_doc, texts))) for t in transformers)
    for doc, other in zip(docs, others, strict=True):
        np.testing.assert_allclose(
            find_exits(doc).scores, find_exits(other).scores, rtol=1e-4, atol=1e-5
        )


def test_path_objects_and_files(saved):
    """Nothing of the encoder's origin has to be there: files of ours only."""
    names = {p.name for p in (Path(saved) / "transformer").iterdir()}
    assert names == {"cfg", "model"}
