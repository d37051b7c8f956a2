"""Temperatures, and exit settings tried out on a recording of all layers."""

import numpy as np
import pytest
import spacy
import torch
from conftest import make_examples, make_nlp
from test_engine import GivenExit

from spacy_earlyexit.calibration.measuring import Probe
from spacy_earlyexit.calibration.recording import COLDEST, Recording, fit_temperature, label_score
from spacy_earlyexit.model.architecture import module_of
from spacy_earlyexit.model.batch import Rules
from spacy_earlyexit.model.criteria import FixedExit, SentenceExit, TokenExit
from spacy_earlyexit.model.engine import run
from spacy_earlyexit.model.offramps import IGNORE

CLASSES = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


@pytest.fixture(scope="module")
def probe(trained):
    return Probe(trained.get_pipe("transformer"), make_examples(trained), hits=True)


@pytest.fixture(scope="module")
def recorded(probe):
    return probe.record()


# --- replay --------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [1, 2, 3, 4])
def test_replay_of_a_fixed_exit_is_exact(probe, recorded, layer):
    """Nobody goes on beside somebody who left, so that nothing is approximate."""
    recording, _ = recorded
    replay = recording.replay(FixedExit(layer))
    real = probe(FixedExit(layer))
    assert set(replay.exit_layer) == {layer}
    assert replay.speedup == pytest.approx(real.speedup)
    assert replay.expected_error == pytest.approx(real.expected_error, rel=1e-4)


def test_replay_of_full_depth(recorded):
    recording, full = recorded
    replay = recording.replay(None)
    assert replay.speedup == full.speedup == 1.0
    assert full.mean_depth == recording.n_layers
    assert replay.score == pytest.approx(full.score)


def test_replay_of_sentence_exit_is_exact(probe, recorded):
    """Units leave whole: the rows of one do not depend on when another left."""
    recording, _ = recorded
    for threshold in (0.05, 0.3, 0.6):
        replay, real = (
            recording.replay(SentenceExit(threshold)),
            probe(SentenceExit(threshold)),
        )
        assert replay.speedup == pytest.approx(real.speedup)
        assert replay.exit_layer[recording.pieces.owned].mean() == pytest.approx(real.mean_depth)
        assert replay.expected_error == pytest.approx(real.expected_error, rel=1e-4)


@pytest.mark.parametrize(
    "rules", [{}, {"special_share": 0.4}, {"reach": 1}, {"special_share": 1.0, "reach": 0}]
)
def test_replay_counts_as_the_engine_does(trained, recorded, rules):
    """For given exits, whatever follows from them."""
    recording, _ = recorded
    own, pieces = Rules(**rules), recording.pieces
    exits = np.random.default_rng(0).integers(1, recording.n_layers + 1, len(recording.unit))
    units = np.argsort(np.diff(pieces.unit_starts), kind="stable")
    order = np.concatenate([np.arange(*pieces.word_starts[u : u + 2]) for u in units])
    criterion = GivenExit(exits[order])
    with torch.inference_mode():
        _, out = run(recording.module, pieces, units, criterion, ["ner"], rules=own)
    replayed = Recording(
        recording.module,
        pieces,
        recording.slices,
        recording.scores.numpy(),
        recording.gold,
        recording.macs_full,
        own,
    )
    macs = replayed._macs(exits, np.ones(recording.n_layers, dtype=bool), True)
    assert macs == pytest.approx(out.macs.sum())


def test_a_word_leaves_at_its_first_certain_layer(recorded):
    recording, _ = recorded
    threshold = float(np.median([u.median() for u in recording.uncertainty]))
    replay = recording.replay(TokenExit(threshold, 0))
    certain = np.stack([u.numpy() < threshold for u in recording.uncertainty])
    certain[-1] = True
    assert (replay.exit_layer == certain.argmax(axis=0) + 1).all()
    assert len(set(replay.exit_layer)) > 1


def test_recording_is_what_each_layer_says(trained, recorded):
    recording, _ = recorded
    transformer = trained.get_pipe("transformer")
    docs = [eg.predicted for eg in make_examples(trained)]
    for layer in (1, 3):
        with transformer.use(FixedExit(layer)):
            scores = transformer.predict(docs).scores
        np.testing.assert_allclose(recording.scores[layer - 1], scores, rtol=1e-3, atol=1e-4)


# --- scores of labels ----------------------------------------------------------------------


def ids(names):
    return np.asarray([IGNORE if name is None else CLASSES.index(name) for name in names])


@pytest.mark.parametrize(
    "gold, predicted, expected",
    [
        (["B-PER", "I-PER", "O"], ["B-PER", "I-PER", "O"], 1.0),
        (["B-PER", "I-PER", "O"], ["B-PER", "O", "O"], 0.0),  # another end
        (["B-PER", "I-PER", "O"], ["B-LOC", "I-LOC", "O"], 0.0),  # another label
        (["B-PER", "O", "B-LOC"], ["B-PER", "O", "O"], 2 / 3),
        (["B-PER", "B-PER"], ["B-PER", "I-PER"], 0.0),  # two entities are not one
        (["O", "B-PER"], ["O", "I-PER"], 1.0),  # an I that follows nothing begins one
        (["B-PER", "I-PER"], ["B-PER", "I-LOC"], 0.0),
        (["O", None, "B-PER"], ["O", "B-LOC", "B-PER"], 1.0),  # no gold, no error
        (["O", "O"], ["O", "O"], 1.0),
    ],
)
def test_entities(gold, predicted, expected):
    unit = np.zeros(len(gold), int)
    assert label_score(ids(gold), ids(predicted), CLASSES, unit) == pytest.approx(expected)


def test_no_entity_reaches_into_the_next_unit():
    gold, predicted = ids(["B-PER", "B-PER"]), ids(["B-PER", "I-PER"])
    assert label_score(gold, predicted, CLASSES, np.asarray([0, 1])) == 1.0


def test_accuracy_where_classes_are_no_bio():
    gold, predicted = np.asarray([0, 1, IGNORE, 1]), np.asarray([0, 0, 0, 1])
    assert label_score(gold, predicted, ["NN", "VB"], np.zeros(4, int)) == pytest.approx(2 / 3)


# --- temperatures --------------------------------------------------------------------------


def nll(scores, gold, temperature):
    return float(torch.nn.functional.cross_entropy(scores / temperature, gold))


@pytest.mark.parametrize("true", [0.5, 1.0, 2.5])
def test_temperature_has_the_least_loss(true):
    """Labels drawn from softmax(s / T) give T back, and nothing near it is better."""
    torch.manual_seed(0)
    scores = 3 * torch.randn(20_000, 5)
    gold = torch.distributions.Categorical(logits=scores / true).sample()
    found = fit_temperature(scores, gold)
    assert found == pytest.approx(true, rel=0.05)
    assert nll(scores, gold, found) < min(
        nll(scores, gold, 0.97 * found), nll(scores, gold, 1.03 * found)
    )


def test_temperature_without_anything_to_fit():
    assert fit_temperature(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)) == 1.0
    assert fit_temperature(torch.zeros(4, 1), torch.zeros(4, dtype=torch.long)) == 1.0
    perfect = 5 * torch.eye(3)
    assert fit_temperature(perfect, torch.arange(3)) == pytest.approx(COLDEST, rel=1e-3)


def test_temperatures_change_uncertainty_and_no_label(encoder, tmp_path):
    nlp = make_nlp(encoder)
    transformer = nlp.get_pipe("transformer")
    examples = make_examples(nlp)
    docs = [eg.predicted for eg in examples]
    recording, _ = Probe(transformer, examples).record()
    before = [u.clone() for u in recording.uncertainty]
    full = transformer.predict(docs)
    recording.set_temperatures(True)
    after = transformer.predict(docs)
    np.testing.assert_array_equal(full.scores, after.scores)
    assert not np.allclose(full.uncertainty, after.uncertainty)
    assert not any(torch.allclose(a, b) for a, b in zip(before, recording.uncertainty, strict=True))
    np.testing.assert_allclose(recording.uncertainty[-1], after.uncertainty, atol=1e-5)
    temperatures = transformer.temperatures
    assert list(temperatures) == ["ner"] and len(temperatures["ner"]) == 4
    for true, expected in ((False, [1.0] * 4), (True, temperatures["ner"])):
        recording.set_temperatures(true, {"ner": 0.5})
        assert transformer.temperatures["ner"] == pytest.approx([0.5 * t for t in expected])
    recording.set_temperatures(True)
    # Saved with the pipeline.
    nlp.to_disk(tmp_path)
    loaded = spacy.load(tmp_path).get_pipe("transformer")
    assert loaded.temperatures == temperatures
    np.testing.assert_allclose(loaded.predict(docs).uncertainty, after.uncertainty, atol=1e-6)


def test_stage_2_starts_without_the_temperatures_of_stage_1(encoder, tmp_path):
    nlp = make_nlp(encoder)
    module_of(nlp.get_pipe("transformer").model).offramps.temperature.fill_(2.0)
    nlp.to_disk(tmp_path)
    second = spacy.blank("en")
    settings = {"tasks": ["ner"], "model": {"name": None}}
    second.add_pipe("earlyexit_transformer", name="transformer", config=settings)
    second.config["initialize"]["components"]["transformer"] = {"init_from": str(tmp_path)}
    second.initialize(lambda: make_examples(second))
    assert second.get_pipe("transformer").temperatures == {"ner": [1.0] * 4}
