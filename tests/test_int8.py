"""int8: close to float32, the same in every batch, renewed with the weights, stored as before."""

import numpy as np
import pytest
import spacy
import torch
import torch.nn.functional as F
from conftest import SHARED, make_examples, make_nlp
from torch import nn

from spacy_earlyexit.model.criteria import TokenExit
from spacy_earlyexit.model.kernels import int8
from spacy_earlyexit.model.kernels.chunks import CHUNK
from spacy_earlyexit.model.kernels.int8 import Int8Linear, Int8Product, most_weight
from spacy_earlyexit.model.kernels.products import Linear

TEXTS = ["Anna Smith lives in New York .", "Berlin is nice", "Bob met Anna in Paris and Berlin"]


def scores_of(nlp, texts):
    output = nlp.get_pipe("transformer").predict([nlp.make_doc(text) for text in texts])
    return output.scores, output.exit_layer


@pytest.mark.parametrize("n_rows", [0, 1, 3, CHUNK, 2 * CHUNK + 1])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_close(n_rows, bias):
    torch.manual_seed(0)
    linear = nn.Linear(96, 40, bias=bias)
    rows = torch.randn(n_rows, 96) * torch.logspace(-4, 4, max(n_rows, 1))[:n_rows, None]
    rows[1:2] = 0.0
    with torch.inference_mode():
        exact, found = linear(rows), Int8Linear(linear)(rows)
    assert found.shape == exact.shape
    # relative to the size of each row: a row has a scale of its own
    size = (exact - (linear.bias if bias else 0.0)).norm(dim=1).clamp(min=1e-6)
    assert ((found - exact).norm(dim=1) < 0.02 * size + 1e-6).all()


def test_gelu_behind_a_product():
    layer, rows = Linear(96, 40), torch.randn(CHUNK + 3, 96)
    with torch.inference_mode():
        expected = F.gelu(Int8Linear(layer)(rows))
        layer.gelu = True
        torch.testing.assert_close(Int8Linear(layer)(rows), expected)


def test_products_are_exact():
    """The processor that tests run on may add in 16 bits; then weights have 7 bits."""
    most = most_weight()
    weight = torch.randint(-int(most), int(most) + 1, (96, 384), dtype=torch.int8)
    weight[0], weight[1] = most, -most
    rows = torch.randint(-127, 128, (CHUNK, 384), dtype=torch.int8)
    rows[0], rows[1] = 127, -127
    found = Int8Product(weight, torch.ones(96))(rows)
    np.testing.assert_array_equal(found, rows.numpy().astype(int) @ weight.numpy().T.astype(int))


def test_torch_without_int8_products(nlp, monkeypatch):
    monkeypatch.setattr(int8, "Int8Product", lambda *args: torch.ops.onednn.no_such_thing)
    most_weight.cache_clear()
    try:
        with pytest.raises(ValueError, match=r'`precision`.*"float32"'):
            nlp.get_pipe("transformer").precision = "int8"
            nlp("Anna")
    finally:
        most_weight.cache_clear()


def test_columns_have_scales_of_their_own():
    linear = nn.Linear(64, 2, bias=False)
    with torch.no_grad():
        linear.weight[1] *= 1e-4
    rows = torch.randn(50, 64)
    with torch.inference_mode():
        exact, found = linear(rows), Int8Linear(linear)(rows)
    assert ((exact - found).norm(dim=0) < 0.02 * exact.norm(dim=0)).all()


@pytest.mark.parametrize("exit", [None, TokenExit(0.6, 1)])
def test_close_to_float32_and_the_same_in_every_batch(trained, exit):
    transformer = trained.get_pipe("transformer")
    with transformer.use(exit):
        exact, _ = scores_of(trained, TEXTS)
        try:
            transformer.precision = "int8"
            together, layers = scores_of(trained, TEXTS)
            alone = [scores_of(trained, [text]) for text in TEXTS]
        finally:
            transformer.precision = "float32"
        again, _ = scores_of(trained, TEXTS)
    np.testing.assert_allclose(together, np.concatenate([s for s, _ in alone]), atol=1e-5)
    np.testing.assert_array_equal(layers, np.concatenate([own for _, own in alone]))
    assert not np.array_equal(together, exact), "int8 has to be in force"
    if exit is None:
        assert np.abs(together - exact).max() < 0.1 * np.abs(exact).max()
    np.testing.assert_array_equal(again, exact)


def test_at_load_and_stored_as_before(trained, tmp_path):
    trained.to_disk(tmp_path / "p")
    config = {"components": {"transformer": {"precision": "int8"}}}
    loaded = spacy.load(tmp_path / "p", config=config)
    transformer = loaded.get_pipe("transformer")
    assert transformer.precision == "int8"
    found, _ = scores_of(loaded, TEXTS)
    exact, _ = scores_of(trained, TEXTS)
    assert not np.array_equal(found, exact)
    weights = trained.get_pipe("transformer").model.to_bytes()
    assert transformer.model.to_bytes() == weights
    loaded.to_disk(tmp_path / "q")
    again = spacy.load(tmp_path / "q")
    np.testing.assert_array_equal(scores_of(again, TEXTS)[0], found)


def test_follows_the_weights(encoder):
    nlp = make_nlp(encoder)
    transformer = nlp.get_pipe("transformer")
    transformer.precision = "int8"
    optimizer = nlp.resume_training()
    before, _ = scores_of(nlp, TEXTS)
    averages = {
        (transformer.model.layers[1].shims[0].id, name): param.detach().numpy() * 2.0
        for name, param in transformer.model.layers[1].shims[0].module.named_parameters()
        if name.startswith("encoder.layers.0.inner")
    }
    with nlp.use_params(averages):
        assert not np.array_equal(scores_of(nlp, TEXTS)[0], before)
    np.testing.assert_array_equal(scores_of(nlp, TEXTS)[0], before)
    for _ in range(3):
        nlp.update(make_examples(nlp), sgd=optimizer)
    after, _ = scores_of(nlp, TEXTS)
    transformer.precision = "float32"
    exact, _ = scores_of(nlp, TEXTS)
    assert np.abs(after - exact).max() < 0.2 * np.abs(before - exact).max()


def test_worker_processes(trained):
    transformer = trained.get_pipe("transformer")
    try:
        transformer.precision = "int8"
        one = [doc.to_json() for doc in trained.pipe(TEXTS)]
        two = [doc.to_json() for doc in trained.pipe(TEXTS, n_process=2, batch_size=2)]
    finally:
        transformer.precision = "float32"
    assert one == two


@pytest.mark.parametrize("value", ["int4", None, 8])
def test_other_precisions_are_refused(nlp, value):
    with pytest.raises(ValueError, match=r'`precision`.*"float32" or "int8"'):
        nlp.get_pipe("transformer").precision = value


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the folder with the encoder is missing: {SHARED}")
def test_real_encoder_rows_are_close(shared):
    """All rows of a real sentence, at full depth: their direction differs by about a per cent."""
    nlp = make_nlp(str(shared / "encoder"))
    transformer = nlp.get_pipe("transformer")
    transformer.record.append("trf_data")
    text = "Last spring Maria Keller left Siemens in Munich and opened a small bakery in Prague ."
    exact = nlp(text)._.trf_data.model_output.last_hidden_state[0]
    transformer.precision = "int8"
    found = nlp(text)._.trf_data.model_output.last_hidden_state[0]
    cosine = (exact * found).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(found, axis=1)
    assert cosine.min() > 0.98, cosine
