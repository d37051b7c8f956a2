"""Attention of short units: the same numbers either way, with masks and with gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from spacy_earlyexit.model.kernels import attention as module
from spacy_earlyexit.model.kernels.attention import attention, batched_is_faster


@pytest.fixture
def batched(monkeypatch):
    """Batched products on whatever machine, and how many units each call had."""
    calls = []

    def counted(query, *args, run=module._batched):
        calls.append(len(query))
        return run(query, *args)

    monkeypatch.setattr(module, "batched_is_faster", lambda n_threads: True)
    monkeypatch.setattr(module, "_batched", counted)
    return calls


def some(n_units, width, length, n_heads=3, size=8, dtype=torch.float32):
    """As the engine makes them: heads side by side in memory, keys and values in one product."""
    generator = torch.Generator().manual_seed(0)

    def rows(n, parts):
        flat = torch.randn(n_units * n, parts * n_heads * size, generator=generator, dtype=dtype)
        heads = (p.view(n_units, n, n_heads, size).transpose(1, 2) for p in flat.chunk(parts, -1))
        return tuple(heads)

    return *rows(width, 1), *rows(length, 2)


def near(width, length, reach=2):
    """A mask in which every query sees some keys."""
    distance = torch.arange(width)[:, None] - torch.arange(length)
    return (distance.abs() <= reach)[None, None]


# Around the length from which torch's softmax is used.
@given(
    st.integers(1, 5),
    st.integers(1, 20),
    st.sampled_from([1, 2, 7, 15, 16, 17, 40]),
    st.booleans(),
    st.sampled_from([2**18, 500]),
)
def test_equals_torch(n_units, width, length, masked, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "batched_is_faster", lambda n_threads: True)
        patch.setattr(module, "_MOST_WEIGHTS", most)
        query, key, value = some(n_units, min(width, length), length)
        mask = near(query.shape[2], length).expand(n_units, -1, -1, -1) if masked else None
        exact = (part.double() for part in (query, key, value))
        expected = F.scaled_dot_product_attention(*exact, attn_mask=mask).float()
        with torch.inference_mode():
            found = attention(query, key, value, mask)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("most", [2**18, 1])
def test_goes_where_it_is_told(batched, monkeypatch, most):
    """By batched products, and by torch: into rows with heads side by side."""
    monkeypatch.setattr(module, "_MOST_WEIGHTS", most)
    query, key, value = some(3, 4, 5)
    rows = torch.full((3 * 4 + 2, 3 * 8), 7.0)
    out = rows[1:-1].view(3, 4, 3, 8).transpose(1, 2)
    with torch.inference_mode():
        attention(query, key, value, out=out)
        expected = attention(query, key, value)
    torch.testing.assert_close(out, expected)
    assert bool(batched) == (most > 1)
    assert (rows[[0, -1]] == 7).all()


def test_many_units_are_taken_a_few_at_a_time(batched, monkeypatch):
    monkeypatch.setattr(module, "_MOST_WEIGHTS", 3 * 4 * 5 * 2)  # two units
    with torch.inference_mode():
        attention(*some(5, 4, 5))
    assert batched == [2, 2, 1]


def test_long_units_are_left_to_torch(batched, monkeypatch):
    """Their weights would not stay in the cache."""
    monkeypatch.setattr(module, "_MOST_WEIGHTS", 3 * 4 * 5 - 1)
    query, key, value = some(5, 4, 5)
    with torch.inference_mode():
        found = attention(query, key, value)
    assert not batched
    expected = F.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("sign", [1, -1])
def test_large_scores_neither_overflow_nor_vanish(batched, sign):
    query, key, value = some(2, 3, 4)
    query, key = 1e3 * query.abs(), sign * 1e3 * key.abs()
    expected = F.scaled_dot_product_attention(query, key, value)
    with torch.inference_mode():
        found = attention(query, key, value)
    assert batched
    torch.testing.assert_close(found, expected)


def test_gradients_and_other_precisions_are_left_to_torch(batched):
    query, key, value = (part.requires_grad_() for part in some(2, 3, 4))
    attention(query, key, value).sum().backward()
    assert query.grad is not None and not batched
    with torch.inference_mode():
        assert attention(*some(2, 3, 4, dtype=torch.float64)).dtype == torch.float64
        half = (part.to(torch.bfloat16) for part in some(2, 3, 4))
        assert attention(*half).dtype == torch.bfloat16
    assert not batched


@pytest.mark.parametrize(("gain", "faster"), [(2.0, True), (1.1, False), (0.0, False)])
def test_the_clearly_faster_way_is_taken_for_each_number_of_threads(monkeypatch, gain, faster):
    tried = []
    monkeypatch.setattr(module, "gain", lambda *args: tried.append(args) or gain)
    batched_is_faster.cache_clear()
    try:
        assert batched_is_faster(1) == batched_is_faster(1) == batched_is_faster(2) == faster
        assert len(tried) == 2
    finally:
        batched_is_faster.cache_clear()
