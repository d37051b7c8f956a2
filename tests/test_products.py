"""float32 products: the same numbers from either library, in every batch, and with gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from spacy_earlyexit.model.kernels import products
from spacy_earlyexit.model.kernels.products import (
    Linear,
    column_major,
    linear,
    onednn_is_faster,
    padded_empty,
    padded_length,
    take,
)

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)


@pytest.fixture
def onednn(monkeypatch):
    """All products by oneDNN, on whatever processor, and a count of them."""
    calls = []

    def counted(*args, product=products.by_onednn):
        calls.append(len(args[0]))
        return product(*args)

    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(products, "_LEAST", 0)
    monkeypatch.setattr(products, "by_onednn", counted)
    return calls


@needs_onednn
@pytest.mark.parametrize("n_rows", [0, 1, 5, 64, 515])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", [lambda layer: layer, column_major])
def test_equals_torch(onednn, n_rows, bias, layout):
    torch.manual_seed(0)
    layer = layout(Linear(96, 40, bias=bias))
    rows = torch.randn(n_rows, 96)
    with torch.inference_mode():
        expected = F.linear(rows, layer.weight, layer.bias)
        torch.testing.assert_close(layer(rows), expected, atol=1e-5, rtol=1e-5)
    assert onednn == [padded_length(n_rows)]


@needs_onednn
@pytest.mark.parametrize("n_rows", [1, 5, 64])
def test_gelu_behind_a_product(onednn, n_rows):
    torch.manual_seed(0)
    layer, rows = Linear(96, 40, gelu=True), 3 * torch.randn(n_rows, 96)
    expected = F.gelu(F.linear(rows, layer.weight, layer.bias))
    torch.testing.assert_close(layer(rows), expected)
    with torch.inference_mode():
        torch.testing.assert_close(layer(rows), expected, atol=1e-5, rtol=1e-5)
    assert onednn == [padded_length(n_rows)]


@needs_onednn
def test_gradients_are_those_of_torch(onednn):
    layer, rows = Linear(8, 6), torch.randn(5, 8, requires_grad=True)
    layer(rows).square().sum().backward()
    found = [rows.grad, layer.weight.grad, layer.bias.grad]
    expected = torch.autograd.grad(
        F.linear(rows, layer.weight, layer.bias).square().sum(), [rows, layer.weight, layer.bias]
    )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not onednn
    double = Linear(4, 3).double()
    assert torch.autograd.gradcheck(double, torch.randn(5, 4).double().requires_grad_())


@needs_onednn
@given(st.integers(1, 700), st.integers(0, 700), st.integers(0, 3))
def test_rows_with_and_without_room(n, start, columns):
    """Whatever lies behind the rows in memory, and whether they are whole."""
    torch.manual_seed(n)
    stored = torch.randn(1_000, 16)
    weight, rows = torch.randn(8, 16 - columns), stored[start : start + n, columns:]
    with torch.inference_mode():
        filled = products._padded(rows)
        assert len(filled) == padded_length(len(rows)) and torch.equal(filled[: len(rows)], rows)
        result = products.by_onednn(filled, weight, None)[: len(rows)]
        torch.testing.assert_close(result, rows @ weight.T, atol=1e-4, rtol=1e-4)


@needs_onednn
def test_taken_rows_are_not_copied(onednn):
    rows, index = torch.randn(40, 16), torch.arange(33).flip(0)
    with torch.inference_mode():
        taken = take(rows, index)
        assert torch.equal(taken, rows[index])
        filled = products._padded(taken)
        assert filled.data_ptr() == taken.data_ptr() and len(filled) == padded_length(33) == 36
        assert not filled[33:].any()
        whole = taken.clone()
        assert products._padded(whole).data_ptr() != whole.data_ptr()
        assert len(products._padded(padded_empty(rows, 7))) == 8
    rows.requires_grad_()
    take(rows, index).sum().backward()
    assert torch.equal(rows.grad, (torch.arange(40)[:, None] < 33).float().expand(40, 16))


@needs_onednn
def test_other_precisions_are_left_to_torch(onednn):
    layer, rows = Linear(8, 6), torch.randn(5, 8)
    with torch.inference_mode():
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(rows).dtype == torch.bfloat16
        assert layer.double()(rows.double()).dtype == torch.float64
    assert not onednn


@needs_onednn
def test_small_products_are_left_to_torch(onednn, monkeypatch):
    monkeypatch.setattr(products, "_LEAST", 8 * 6 * 5)
    layer = Linear(8, 6)
    with torch.inference_mode():
        layer(torch.randn(4, 8))
        assert not onednn
        layer(torch.randn(5, 8))
        assert onednn == [8]


@given(st.integers(0, 100_000))
def test_rounded_up_a_little(n):
    assert n <= padded_length(n) <= n + max(3, n // 16)
    assert padded_length(padded_length(n)) == padded_length(n)


def test_shapes_are_few():
    assert len({padded_length(n) for n in range(16_385)}) < 200


@pytest.mark.parametrize("error", [AttributeError, RuntimeError])
def test_torch_without_these_products(monkeypatch, error):
    def missing(*args):
        raise error

    monkeypatch.setattr(products, "by_onednn", missing)
    onednn_is_faster.cache_clear()
    try:
        assert not onednn_is_faster()
        layer = nn.Linear(512, 512)
        with torch.inference_mode():
            rows = torch.randn(64, 512)
            assert linear(rows, layer.weight, layer.bias).shape == (64, 512)
    finally:
        onednn_is_faster.cache_clear()


@needs_onednn
@pytest.mark.parametrize(("times", "faster"), [(2.0, True), (1.1, False), (0.0, False)])
def test_the_clearly_faster_one_is_taken(monkeypatch, times, faster):
    monkeypatch.setattr(products, "gain", lambda *args: times)
    onednn_is_faster.cache_clear()
    try:
        assert onednn_is_faster() == faster
    finally:
        onednn_is_faster.cache_clear()
