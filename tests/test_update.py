"""What nlp.update learns from: gold, gradients, steps, and what the optimiser makes of them."""

import gc

import numpy as np
import pytest
import spacy
import torch
from conftest import TEXTS, make_examples, make_nlp
from pipelines import (
    N_LAYERS,
    NO_DROPOUT,
    assert_close,
    gradients,
    same,
    sgd_optimizer,
    transformer_of,
    weights,
)
from spacy.tokens import Doc
from spacy.training import Example
from thinc.api import Optimizer

from spacy_earlyexit.model.architecture import module_of
from spacy_earlyexit.model.criteria import TokenExit
from spacy_earlyexit.model.encoders.layers import EncoderLayer


@pytest.fixture(scope="module")
def stable(encoder):
    """Without dropout, so that losses and gradients can be compared. Do not update its weights."""
    return make_nlp(encoder, model=NO_DROPOUT)


# --- gold ----------------------------------------------------------------------------------


def loss_of(nlp, examples):
    """The loss of a batch; no step is made."""
    transformer = transformer_of(nlp)
    loss = transformer.update(examples)["transformer"]
    transformer.steps.pending = []
    return loss


def test_documents_without_gold_are_left_out_of_the_loss(stable):
    examples = make_examples(stable)
    bare = Doc(stable.vocab, words="Bob and Anna met here".split())
    assert not bare.has_annotation("ENT_IOB")
    expected = loss_of(stable, examples)
    assert expected > 0
    mixed = [Example(bare, bare.copy()), *examples]
    assert loss_of(stable, mixed) == pytest.approx(expected, rel=1e-5)


def test_misaligned_tokens_are_left_out_of_the_loss(stable):
    """NewYork has no label if only York is an entity."""
    words = ["in", "NewYork", "now"]
    gold = Doc(stable.vocab, words=["in", "New", "York", "now"], ents=["O", "O", "B-LOC", "O"])
    misaligned = Example(Doc(stable.vocab, words=words), gold)
    partly = {"entities": ["O", "-", "O"]}
    expected = loss_of(stable, [Example.from_dict(Doc(stable.vocab, words=words), partly)])
    whole = loss_of(
        stable,
        [Example.from_dict(Doc(stable.vocab, words=words), {"entities": ["O", "O", "O"]})],
    )
    assert loss_of(stable, [misaligned]) == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(whole, rel=1e-3)


def test_labels_that_training_never_saw_are_left_out_of_the_loss(stable):
    words = "Anna likes Sony".split()

    def example(entities):
        return Example.from_dict(Doc(stable.vocab, words=words), {"entities": entities})

    new = loss_of(stable, [example(["U-PER", "O", "U-ORG"])])
    assert new == pytest.approx(loss_of(stable, [example(["U-PER", "O", "-"])]), rel=1e-5)


def test_no_gold_in_a_batch_means_no_update(nlp):
    before = weights(nlp)
    doc = Doc(nlp.vocab, words="Bob and Anna met here".split())
    optimizer = nlp.resume_training()
    losses = nlp.update([Example(doc, doc.copy())], sgd=optimizer)
    assert losses["transformer"] == 0.0
    assert same(before, weights(nlp))


@pytest.mark.parametrize("words", [[], [""], ["\n"]])
def test_batches_without_words_do_no_harm(nlp, words):
    before = weights(nlp)
    words = [w for w in words if w]
    doc = Doc(nlp.vocab, words=words, ents=["O"] * len(words))
    optimizer = nlp.resume_training()
    assert transformer_of(nlp).update([], sgd=optimizer) == {"transformer": 0.0}
    assert nlp.update([Example(doc, doc.copy())], sgd=optimizer)["transformer"] == 0.0
    assert same(before, weights(nlp))
    with_words = make_examples(nlp)[:1]
    alone = loss_of(nlp, with_words)
    assert alone > 0


# --- gradients and steps -------------------------------------------------------------------


def test_update_waits_for_finish_update(nlp):
    before = weights(nlp)
    transformer = transformer_of(nlp)
    losses = transformer.update(make_examples(nlp))
    assert losses["transformer"] > 0
    assert same(before, weights(nlp))
    transformer.finish_update(sgd_optimizer())
    after = weights(nlp)
    assert not same(before, after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"offramps.weight", "encoder.words.weight", "encoder.layers.0.query.weight"} <= changed
    transformer.finish_update(sgd_optimizer())
    assert same(after, weights(nlp)), "the gradient is spent"


def test_update_with_sgd_steps_at_once(nlp):
    before = weights(nlp)
    transformer = transformer_of(nlp)
    transformer.update(make_examples(nlp), sgd=sgd_optimizer())
    after = weights(nlp)
    assert not same(before, after)
    transformer.finish_update(sgd_optimizer())
    assert same(after, weights(nlp)), "nothing is left over"


def test_an_interrupted_update_leaves_no_dropout_behind(nlp, monkeypatch):
    doc = nlp.make_doc(TEXTS[0][0])
    before = transformer_of(nlp).predict([doc]).scores
    queries = EncoderLayer.queries

    def interrupted(layer, *args):
        if layer.training:
            raise KeyboardInterrupt
        return queries(layer, *args)

    monkeypatch.setattr(EncoderLayer, "queries", interrupted)
    with pytest.raises(KeyboardInterrupt):
        nlp.update(make_examples(nlp))
    np.testing.assert_array_equal(transformer_of(nlp).predict([doc]).scores, before)


@pytest.mark.parametrize("how", ["initialize", "from_bytes"])
def test_new_weights_end_an_earlier_training(nlp, how):
    """Its gradients and its step do not go on, and nothing is searched for."""
    transformer = transformer_of(nlp)
    data = nlp.to_bytes()
    transformer.update(make_examples(nlp))
    assert transformer.trained and transformer.steps.pending
    transformer.steps.waiting = (sgd_optimizer(), 1.0)
    if how == "initialize":
        nlp.initialize(lambda: make_examples(nlp))
    else:
        nlp.from_bytes(data)
    assert transformer.steps.pending == [] and transformer.steps.waiting is None
    assert not transformer.trained


def test_every_layer_and_offramp_gets_a_gradient(nlp):
    transformer = transformer_of(nlp)
    transformer.update(make_examples(nlp))
    transformer.steps.take()
    found = gradients(nlp)
    for layer in range(N_LAYERS):
        assert found["offramps.weight"][layer].abs().sum() > 0
        assert found[f"encoder.layers.{layer}.outer.weight"].abs().sum() > 0


def test_accumulated_updates_equal_one(encoder):
    """Two batches of as many words each: their gradients add up, so half the rate does it."""
    result = []
    for parts, rate in ((1, 0.2), (2, 0.1)):
        nlp = make_nlp(encoder, model=NO_DROPOUT)
        examples = make_examples(nlp)
        batch = [examples[1], examples[4]]
        assert len({len(eg.predicted) for eg in batch}) == 1
        transformer = transformer_of(nlp)
        for i in range(parts):
            transformer.update(batch if parts == 1 else [batch[i]])
        transformer.finish_update(sgd_optimizer(rate))
        result.append(weights(nlp))
    assert_close(*result)
    assert not same(result[0], weights(make_nlp(encoder, model=NO_DROPOUT)))


def test_losses_add_up(stable):
    examples = make_examples(stable)
    first, second = loss_of(stable, examples[:2]), loss_of(stable, examples[2:])
    losses = {"transformer": 1.0}
    transformer = transformer_of(stable)
    transformer.update(examples[:2], losses=losses)
    transformer.steps.pending = []
    transformer.update(examples[2:], losses=losses)
    transformer.steps.pending = []
    module_of(transformer.model).zero_grad()
    assert losses["transformer"] == pytest.approx(1.0 + first + second)


def test_training_learns(trained):
    """Over-fitted on six sentences: all entities, at the last layer and with early exit."""
    scores = trained.evaluate(make_examples(trained))
    assert scores["ents_f"] == 1.0
    assert (scores["exit_layer_mean"], scores["exit_speedup"]) == (N_LAYERS, 1.0)
    with transformer_of(trained).use(TokenExit(0.3, 1)):
        early = trained.evaluate(make_examples(trained))
    assert early["ents_f"] > 0.9
    assert early["exit_layer_mean"] < N_LAYERS and early["exit_speedup"] > 1


def shim_step(nlp, optimizer, set_gradient=None):
    """One step of the shim. Returns the weights before, the gradients, and the weights after."""
    transformer = transformer_of(nlp)
    transformer.update(make_examples(nlp))
    transformer.steps.take()
    if set_gradient is not None:
        for parameter in module_of(transformer.model).parameters():
            parameter.grad.fill_(set_gradient)
    before, grads = weights(nlp), gradients(nlp)
    transformer.finish_update(optimizer)
    return before, grads, weights(nlp)


@pytest.mark.parametrize("clip", [0.01, 1e6])
def test_one_global_norm_clips_the_gradient(encoder, clip):
    nlp = make_nlp(encoder, model={**NO_DROPOUT, "offramp_lr_scale": 1.0})
    rate = 0.5
    before, grads, after = shim_step(nlp, sgd_optimizer(rate, grad_clip=clip))
    theirs = [torch.nn.Parameter(torch.zeros_like(g)) for g in grads.values()]
    for parameter, gradient in zip(theirs, grads.values(), strict=True):
        parameter.grad = gradient.clone()
    norm = torch.nn.utils.clip_grad_norm_(theirs, clip)
    assert (norm > clip) == (clip < 1)
    expected = {name: before[name] - rate * p.grad for name, p in zip(grads, theirs, strict=True)}
    assert_close(expected, {name: after[name] for name in expected})


def test_no_weight_decay_on_norms_and_biases(encoder):
    nlp = make_nlp(encoder, model={"offramp_lr_scale": 1.0})
    optimizer = sgd_optimizer(0.5, L2=0.1, L2_is_weight_decay=True)
    before, _, after = shim_step(nlp, optimizer, set_gradient=0.0)
    decayed = {n for n in before if not torch.equal(before[n], after[n])}
    assert decayed and not any("norm" in n or n.endswith("bias") for n in decayed)
    kept = {n for n in before if torch.any(before[n] != 0)} - decayed
    assert kept and all("norm" in n or n.endswith("bias") for n in kept)
    assert_close(
        {n: before[n] * (1 - 0.5 * 0.1) for n in before if n in decayed},
        {n: after[n] for n in before if n in decayed},
    )
    assert (optimizer.L2, optimizer.grad_clip) == (0.1, 0.0), "the optimiser is left as it was"


@pytest.mark.parametrize("group,other", [("encoder", "offramps"), ("offramps", "encoder")])
def test_learning_rate_scales(encoder, group, other):
    """Scale 0 leaves a group as it is, weight decay included; 3 triples its step."""
    scales = {"encoder_lr_scale": 3.0, "offramp_lr_scale": 3.0}
    scales["encoder_lr_scale" if group == "encoder" else "offramp_lr_scale"] = 0.0
    nlp = make_nlp(encoder, model={**NO_DROPOUT, **scales})
    before, grads, after = shim_step(nlp, sgd_optimizer(0.1, L2=0.1, L2_is_weight_decay=True))
    frozen = {n: before[n] for n in grads if n.startswith(group)}
    assert same(frozen, {n: after[n] for n in frozen})
    bias = {n: before[n] - 0.3 * grads[n] for n in grads if n.startswith(other) and "bias" in n}
    assert_close(bias, {n: after[n] for n in bias})


def test_averages_are_used_for_a_while(encoder):
    nlp = make_nlp(encoder)
    optimizer = Optimizer(0.01, use_averages=True)
    for _ in range(3):
        transformer_of(nlp).update(make_examples(nlp), sgd=optimizer)
    own = weights(nlp)
    with nlp.use_params(optimizer.averages):
        averaged = weights(nlp)
        assert not same(own, averaged)
    assert same(own, weights(nlp))
    model = transformer_of(nlp).model
    with pytest.raises(KeyError), model.use_params(optimizer.averages):
        assert same(averaged, weights(nlp))
        raise KeyError
    assert same(own, weights(nlp)), "also after an exception"


def test_updates_leave_no_tensors_behind(nlp):
    """A step that keeps hold of the weights before it fills the memory in a few hundred steps."""
    optimizer = nlp.resume_training()

    def alive(n_steps):
        for _ in range(n_steps):
            nlp.update(make_examples(nlp), sgd=False)
            transformer_of(nlp).finish_update(optimizer)
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    assert alive(5) == alive(1)


def test_the_same_seed_gives_the_same_weights(encoder):
    def run(seed):
        nlp = make_nlp(encoder, seed=seed)
        optimizer = nlp.resume_training()
        for _ in range(3):
            nlp.update(make_examples(nlp), sgd=optimizer)
        return weights(nlp)

    first = run(1)
    assert same(first, run(1))
    assert not same(first, run(2))


# --- listeners and steps -------------------------------------------------------------------


LISTENER = {
    "@architectures": "spacy-transformers.TransformerListener.v1",
    "grad_factor": 1.0,
    "pooling": {"@layers": "reduce_mean.v1"},
}


def listening(encoder):
    """A tagger that listens, with weights that send back a gradient."""
    spacy.util.fix_random_seed(0)
    nlp = spacy.blank("en")
    model = {"name": encoder, "offramp_lr_scale": 1.0, **NO_DROPOUT}
    nlp.add_pipe("earlyexit_transformer", name="transformer", config={"model": model})
    nlp.add_pipe("tagger", config={"model": {"tok2vec": LISTENER}})
    nlp.initialize(lambda: tagged(nlp))
    rng = np.random.default_rng(0)
    for node in nlp.get_pipe("tagger").model.walk():
        if node.has_param("W"):
            shape = node.get_param("W").shape
            node.set_param("W", rng.normal(scale=0.5, size=shape).astype("f"))
    return nlp


def tagged(nlp):
    examples = []
    for text, _ in TEXTS:
        words = text.split()
        gold = Doc(nlp.vocab, words=words, tags=["NN" if w[0].isupper() else "VB" for w in words])
        examples.append(Example(Doc(nlp.vocab, words=words), gold))
    return examples


@pytest.mark.parametrize("annotates", [[], ["transformer"]])
def test_a_bare_loop_takes_the_steps_of_spacy_train(encoder, annotates):
    """The listener's gradient goes through the weights that it was made with, none is lost, and
    what is saved has the last step; also where the transformer annotates the batch in between.
    """
    found = []
    for bare in (True, False):
        nlp = listening(encoder)
        optimizer = sgd_optimizer(0.05)
        for _ in range(3):
            if bare:
                nlp.update(tagged(nlp), sgd=optimizer, annotates=annotates)
            else:
                nlp.update(tagged(nlp), sgd=False, annotates=annotates)
                for _, pipe in nlp.pipeline:
                    pipe.finish_update(optimizer)
        saved = nlp.to_bytes()
        again = listening(encoder).from_bytes(saved)
        assert same(weights(again), weights(nlp)), "nothing waits any more"
        found.append(weights(nlp))
    for name, values in found[0].items():
        torch.testing.assert_close(values, found[1][name], rtol=1e-6, atol=1e-7, msg=name)


def test_a_gradient_that_comes_too_late_is_refused(encoder):
    nlp = listening(encoder)
    transformer, tagger = nlp.get_pipe("transformer"), nlp.get_pipe("tagger")
    examples = tagged(nlp)
    transformer.update(examples, sgd=sgd_optimizer(0.05))
    transformer.predict([nlp.make_doc("other documents")])  # makes the step
    with pytest.raises(ValueError, match="sent its gradient after the step"):
        tagger.update(examples)


def test_the_model_is_a_layer_as_any_other(stable):
    """Another thinc layer can send it the gradient of its output."""
    from thinc.api import Model, chain

    from spacy_earlyexit.model.output import OutputGradient, Request, Run

    def forward(model, output, is_train):
        layers = [scores.detach() for _, _, scores in output.layer_scores]
        total = sum(float((scores**2).sum()) for scores in layers)

        def backprop(d_total):
            return OutputGradient([2 * d_total * scores for scores in layers], None)

        return total, backprop

    nlp, transformer = stable, transformer_of(stable)
    model = chain(transformer.model, Model("squares", forward))
    request = Request([eg.predicted for eg in make_examples(nlp)], Run())
    _, backprop = model.begin_update(request)
    module = module_of(transformer.model)
    module.zero_grad()
    assert backprop(0.5) == []
    ours = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    output, _ = transformer.model.begin_update(request)
    (0.5 * sum((scores**2).sum() for _, _, scores in output.layer_scores)).backward()
    assert ours.keys() >= {"offramps.weight", "encoder.words.weight"}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-5, atol=1e-6, msg=name)
