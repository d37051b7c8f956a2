"""Maps that bring halted rows forward: how they are fitted, and how stage 2 begins with them."""

import numpy as np
import pytest
import spacy
import torch
from conftest import TEXTS, make_examples, make_nlp
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelines import from_stage1, halfway
from test_engine import CONFIG, LOCAL, make_module, make_pieces

from spacy_earlyexit.model.architecture import module_of
from spacy_earlyexit.model.batch import Batch
from spacy_earlyexit.model.catch_up import fit_catch_up, low_rank_map
from spacy_earlyexit.model.engine import run_layer


def left_over(rows, targets, fitted):
    down, up, bias = fitted
    return float(((rows @ down @ up + bias - targets) ** 2).sum())


@settings(max_examples=20)
@given(st.integers(1, 5), st.integers(0, 1000))
def test_low_rank_map_finds_a_map_of_its_rank(rank, seed):
    torch.manual_seed(seed)
    rows = torch.randn(200, 6, dtype=torch.float64) * torch.linspace(0.5, 2, 6) + 1
    true = torch.randn(6, rank, dtype=torch.float64) @ torch.randn(rank, 6, dtype=torch.float64)
    targets = rows @ true + torch.randn(6, dtype=torch.float64)
    down, up, bias = low_rank_map(rows, targets, rank)
    assert (down.shape, up.shape, bias.shape) == ((6, rank), (rank, 6), (6,))
    # up to the ridge
    assert left_over(rows, targets, (down, up, bias)) < 1e-3 * float(targets.var(0).sum()) * 200


def test_no_map_of_the_rank_is_nearer():
    """Neither of the directions that numpy finds, nor one close by."""
    torch.manual_seed(0)
    rows = torch.randn(500, 8, dtype=torch.float64) @ torch.randn(8, 8, dtype=torch.float64)
    targets = torch.tanh(rows @ torch.randn(8, 8, dtype=torch.float64))
    fitted = low_rank_map(rows, targets, 3)
    ours = left_over(rows, targets, fitted)
    x = np.hstack([rows.numpy(), np.ones((500, 1))])
    said = x @ np.linalg.lstsq(x, targets.numpy(), rcond=None)[0]
    _, sizes, _ = np.linalg.svd(said - said.mean(0))
    best = ((said - targets.numpy()) ** 2).sum() + (sizes[3:] ** 2).sum()
    assert best <= ours < 1.001 * best
    for _ in range(20):
        down, up, bias = (part + 0.05 * torch.randn_like(part) for part in fitted)
        assert left_over(rows, targets, (down, up, bias)) > ours


@pytest.mark.parametrize("config", [CONFIG, LOCAL], ids=lambda config: config.family)
def test_fitted_maps_come_nearer_than_copies(config):
    """Behind every layer, on text that they were not fitted on."""
    module = make_module(config=config)
    module.encoder.set_catch_up(4)
    module.encoder.to(torch.float64)
    fit_catch_up(module.encoder, make_pieces([9] * 60))
    pieces = make_pieces([8] * 10, seed=1)
    batch = Batch(pieces, np.arange(10), torch.device("cpu"))
    with torch.no_grad():
        rows = module.encoder.embed(batch.ids, batch.places)
        for number in range(1, config.n_layers + 1):
            behind = run_layer(module.encoder.layer(number), rows, batch, 0.0)
            moved = module.encoder.catch_up(number, rows)
            assert ((moved - behind) ** 2).sum() < 0.7 * ((rows - behind) ** 2).sum(), number
            rows = behind


def test_fit_looks_at_so_many_rows():
    module, pieces = make_module(), make_pieces([5, 9, 7])
    module.encoder.set_catch_up(2)
    module.encoder.to(torch.float64)
    seen = []
    module.encoder.norm.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    fit_catch_up(module.encoder, pieces, max_rows=int(pieces.unit_starts[2]))
    fit_catch_up(module.encoder, pieces)
    assert seen == [pieces.unit_starts[2], pieces.unit_starts[3]]


def maps(nlp):
    return module_of(nlp.get_pipe("transformer").model).encoder.catch_up


def test_stage2_begins_with_fitted_maps(encoder, trained, tmp_path):
    """Full depth is as it was, early exit is not; and what is saved is what was trained."""
    trained.to_disk(tmp_path / "stage1")
    copies = from_stage1(encoder, tmp_path / "stage1")
    nlp = from_stage1(encoder, tmp_path / "stage1", model={"catch_up": 3})
    assert maps(nlp).up.shape[1] == 3
    assert maps(nlp).up.any()
    early = halfway(copies)
    scores = {}
    for name, each in (("copies", copies), ("maps", nlp)):
        for setting in (None, early):
            with each.get_pipe("transformer").use(setting):
                docs = [each.make_doc(text) for text, _ in TEXTS]
                scores[name, setting] = each.get_pipe("transformer").predict(docs).scores
    assert (scores["copies", None] == scores["maps", None]).all()
    assert (scores["copies", early] != scores["maps", early]).any()

    nlp.to_disk(tmp_path / "stage2")
    loaded = spacy.load(tmp_path / "stage2")
    for ours, theirs in zip(maps(nlp).parameters(), maps(loaded).parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert loaded.config["components"]["transformer"]["model"]["catch_up"] == 3


def test_stage2_trains_its_maps_and_keeps_those_it_is_given(encoder, trained, tmp_path):
    trained.to_disk(tmp_path / "stage1")
    sampling = {
        "@misc": "spacy-earlyexit.SelfSampling.v1",
        "windows": [0],
        "thresholds": [halfway(trained).threshold],
        "speedups": None,
        "full_depth": 0.0,
    }
    nlp = from_stage1(
        encoder, tmp_path / "stage1", model={"catch_up": 3}, config={"self_sampling": sampling}
    )
    before = [part.clone() for part in maps(nlp).parameters()]
    optimizer = nlp.resume_training()
    for _ in range(3):
        nlp.update(make_examples(nlp), sgd=optimizer)
    after = list(maps(nlp).parameters())
    assert not any(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    nlp.to_disk(tmp_path / "stage2")
    again = from_stage1(encoder, tmp_path / "stage2", model={"catch_up": 3})
    for kept, new in zip(after, maps(again).parameters(), strict=True):
        assert torch.equal(kept, new)
    without = from_stage1(encoder, tmp_path / "stage2")
    assert not hasattr(module_of(without.get_pipe("transformer").model).encoder, "catch_up")


def test_stage1_with_maps_leaves_them_to_stage2(encoder, tmp_path):
    nlp = make_nlp(encoder, model={"catch_up": 3})
    assert not maps(nlp).up.any()
    nlp.to_disk(tmp_path)
    assert maps(from_stage1(encoder, tmp_path, model={"catch_up": 3})).up.any()


@pytest.mark.parametrize("model", [{"catch_up": -1}])
def test_impossible_ranks(encoder, model):
    with pytest.raises(ValueError, match=r"catch_up.*rank >= 0"):
        make_nlp(encoder, model=model)
