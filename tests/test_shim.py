"""The shim's optimiser steps."""

import gc
import warnings

import pytest
import safetensors.torch
import torch
from conftest import make_examples, make_nlp
from thinc.api import Adam

from spacy_earlyexit.model.architecture import MultiExitTransformer, module_of, settings_of
from spacy_earlyexit.model.shim import MultiExitShim


def count_tensors():
    gc.collect()
    return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())


def test_steps_do_not_pile_up_memory(nlp):
    """Views of the parameters must not be chained from step to step."""
    examples, optimizer = make_examples(nlp), nlp.resume_training()
    for _ in range(2):
        nlp.update(examples, sgd=optimizer)
    before = count_tensors()
    for _ in range(5):
        nlp.update(examples, sgd=optimizer)
    assert count_tensors() <= before


def test_training_dropout_reaches_the_offramps(nlp):
    """[training] dropout is the off-ramps' dropout; prediction has none."""
    transformer = nlp.get_pipe("transformer")
    transformer.update(make_examples(nlp), drop=0.3)
    module = module_of(transformer.model)
    assert module.offramps.dropout.p == 0.3
    assert not module.training


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_torchs_step_is_thincs(encoder, clip):
    """The fused step and thinc's own, which averages still take, move the weights alike."""
    weights = []
    for use_averages in (False, True):
        model = make_nlp(encoder).get_pipe("transformer").model
        optimizer = Adam(1e-3, L2=0.01, grad_clip=clip, eps=1e-12, use_averages=use_averages)
        torch.manual_seed(0)
        for rate in (1e-3, 1e-4, 2e-3):
            optimizer.learn_rate = rate
            for parameter in module_of(model).parameters():
                parameter.grad = torch.randn_like(parameter)
            model.finish_update(optimizer)
        assert all(parameter.grad is None for parameter in module_of(model).parameters())
        assert bool(optimizer.mom1) is use_averages, "only one of the two is thinc's"
        weights.append(dict(module_of(model).named_parameters()))
    # thinc decays the weights behind the step, torch before it
    for name, ours in weights[0].items():
        torch.testing.assert_close(ours, weights[1][name], rtol=1e-4, atol=1e-5, msg=name)


def test_weights_lie_as_products_read_them(encoder):
    """When they are made, behind a step, read from bytes and copied; their bytes are by rows."""
    nlp = make_nlp(encoder)
    nlp.update(make_examples(nlp), sgd=Adam(1e-3, use_averages=False))
    shim = nlp.get_pipe("transformer").model.layers[1].shims[0]
    read = MultiExitShim(shim.settings).from_bytes(shim.to_bytes())
    for each in (shim, read, shim.copy()):
        for name, parameter in each.module.encoder.layers.named_parameters():
            if parameter.dim() == 2:
                assert parameter.stride() == (1, len(parameter)), name
    old, new = (shim.module.state_dict(), read.module.state_dict())
    assert all((new[name] == values).all() for name, values in old.items())
    # Any reader of safetensors reads the bytes.
    stored = safetensors.torch.load(shim.to_bytes())
    assert all((stored[name] == values).all() for name, values in old.items())
    assert read.from_bytes(MultiExitShim(shim.settings).to_bytes()).module is None


@pytest.mark.parametrize(
    "data",
    [
        b"\xc0",
        b"\x84 something else",
        safetensors.torch.save({"a": torch.zeros(2)}),
        safetensors.torch.save({"a": torch.zeros(2)}, {"multi_exit": '{"encoder": {"layers": 2}}'}),
    ],
)
def test_bytes_of_something_else_are_refused(data):
    settings = settings_of(MultiExitTransformer("x", None, {}, {}))
    with pytest.raises(ValueError, match="no weights of an earlyexit_transformer|early version"):
        MultiExitShim(settings).from_bytes(data)


def test_another_optimizer_starts_afresh(nlp):
    shim = nlp.get_pipe("transformer").model.layers[1].shims[0]
    for _ in range(2):
        optimizer = Adam(1e-3, use_averages=False)
        nlp.update(make_examples(nlp), sgd=optimizer)
        adam, of = shim._adam
        assert of is optimizer
        assert {int(state["step"]) for state in adam.state.values()} == {1}


def test_mixed_precision_is_for_training_only(encoder):
    exact, mixed = (make_nlp(encoder, model={"mixed_precision": m}) for m in (False, True))
    text = "Anna Smith lives in New York ."
    outputs = [n.get_pipe("transformer").predict([n.make_doc(text)]) for n in (exact, mixed)]
    assert (outputs[0].scores == outputs[1].scores).all()
    losses = [n.get_pipe("transformer").update(make_examples(n)) for n in (exact, mixed)]
    assert losses[0] != losses[1]
    for nlp in (exact, mixed):
        nlp.get_pipe("transformer").steps.take()
    gradients = [
        torch.cat(
            [
                p.grad.flatten()
                for p in module_of(n.get_pipe("transformer").model).parameters()
                if p.grad is not None
            ]
        )
        for n in (exact, mixed)
    ]
    assert torch.cosine_similarity(*gradients, dim=0) > 0.9


@pytest.mark.parametrize("supported", [False, True])
def test_warns_of_processors_that_imitate_bfloat16(encoder, monkeypatch, supported):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_nlp(encoder, model={"mixed_precision": True})
        make_nlp(encoder)
    found = [str(w.message) for w in caught if "mixed_precision" in str(w.message)]
    assert len(found) == (0 if supported else 1), found
    assert supported or "[components.transformer.model]" in found[0]


def test_devices_before_there_are_weights():
    """Nothing to move is no error."""
    model = MultiExitTransformer("x", None, {}, {})
    model.to_cpu()
    assert model.layers[1].shims[0].module is None


def test_moving_leaves_nothing_behind(nlp):
    """int8 weights and the optimiser's moments are made anew where the weights are."""
    transformer = nlp.get_pipe("transformer")
    shim = transformer.model.layers[1].shims[0]
    nlp.update(make_examples(nlp), sgd=Adam(1e-3, use_averages=False))
    transformer.precision = "int8"
    nlp("Anna met Bob")
    assert shim._int8 is not None and shim._adam is not None
    transformer.model.to_cpu()
    assert shim._int8 is None and shim._adam is None
    assert nlp("Anna met Bob")._.exit_layers == [4, 4, 4]


def test_int8_on_a_gpu_is_refused_where_it_is_set(nlp, monkeypatch):
    transformer = nlp.get_pipe("transformer")
    shim = transformer.model.layers[1].shims[0]
    elsewhere = torch.nn.Linear(1, 1, device="meta")
    monkeypatch.setattr(shim, "_model", elsewhere)
    with pytest.raises(ValueError, match=r"CPU only.*meta.*\[components.transformer\]"):
        transformer.precision = "int8"
    assert transformer.precision == "float32"
