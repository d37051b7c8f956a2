"""Stock components that listen to the rows at exit, as they would to spacy-transformers."""

import copy
import gc
import pickle

import numpy as np
import pytest
import spacy
import torch
from conftest import TEXTS, make_encoder
from pipelines import initialized
from spacy.tokens import Doc, DocBin, Span
from spacy.training import Example
from spacy.util import registry
from spacy_transformers.data_classes import TransformerData
from thinc.api import Optimizer

from spacy_earlyexit.model.architecture import module_of
from spacy_earlyexit.model.criteria import FixedExit, TokenExit
from spacy_earlyexit.training.exit_scorer import make_exit_scorer

LISTENER = {
    "@architectures": "spacy-transformers.TransformerListener.v1",
    "grad_factor": 1.0,
    "pooling": {"@layers": "reduce_mean.v1"},
}
STOCK = ["tagger", "morphologizer", "parser", "ner", "textcat", "spancat", "trainable_lemmatizer"]
TAGS = {"Anna": "NNP", "in": "IN", "is": "VBZ", ".": "."}


def make_examples(nlp, *, heads=True, tags=True):
    examples = []
    for text, spans in TEXTS:
        words = text.split()
        ents = ["O"] * len(words)
        for start, end, label in spans:
            ents[start:end] = [f"B-{label}"] + [f"I-{label}"] * (end - start - 1)
        annotation = {"ents": ents}
        if tags:
            annotation["tags"] = [TAGS.get(word, "NN") for word in words]
            annotation["lemmas"] = [word.lower() for word in words]
            annotation["pos"] = ["NOUN" if word[0].isupper() else "VERB" for word in words]
        if heads:
            annotation["heads"] = [0, *range(len(words) - 1)]
            annotation["deps"] = ["ROOT"] + ["obj"] * (len(words) - 1)
        gold = Doc(nlp.vocab, words=words, **annotation)
        gold.spans["sc"] = [Span(gold, 0, 1, label="FIRST")]
        gold.cats = {"long": float(len(words) > 3), "short": float(len(words) <= 3)}
        examples.append(Example(Doc(nlp.vocab, words=words), gold))
    return examples


def make_listening(encoder, factories=("tagger", "ner"), examples=None, **config):
    spacy.util.fix_random_seed(0)
    # Stage 2 would want a stage 1 to start from.
    sampling = config.pop("self_sampling", None)
    nlp = spacy.blank("en")
    model = {
        "name": encoder,
        "offramp_lr_scale": 10.0,
        "transformer_config": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    }
    nlp.add_pipe("earlyexit_transformer", name="transformer", config={"model": model, **config})
    for factory in factories:
        nlp.add_pipe(factory, config={"model": {"tok2vec": LISTENER}})
    nlp.initialize(lambda: examples or make_examples(nlp))
    if sampling is not None:
        nlp.get_pipe("transformer").self_sampling = registry.resolve({"s": sampling})["s"]
    rng = np.random.default_rng(0)
    for factory in factories:
        for node in nlp.get_pipe(factory).model.walk():
            # spaCy's output layers begin with zeros, which send back no gradient.
            if node.has_param("W") and not node.get_param("W").any():
                shape = node.get_param("W").shape
                node.set_param("W", rng.normal(scale=0.1, size=shape).astype("f"))
    return nlp


class Recorder(Optimizer):
    """Keeps the gradients of every step instead of taking it."""

    def __init__(self):
        super().__init__(0.0, grad_clip=0.0, use_averages=False)
        self.steps: list[dict] = []

    def __call__(self, key, weights, gradient, *, lr_scale=1.0):
        if not self.steps or key in self.steps[-1]:
            self.steps.append({})
        self.steps[-1][key] = np.array(gradient)
        return weights, gradient


def like_spacy_train(nlp, examples, sgd, exclude=(), annotates=()):
    """One step as spacy.training.loop takes it."""
    nlp.update(examples, sgd=False, drop=0.0, exclude=exclude, annotates=annotates)
    for name, pipe in nlp.pipeline:
        if name not in exclude and getattr(pipe, "is_trainable", False):
            pipe.finish_update(sgd)


def encoder_gradients(nlp, sgd):
    """The transformer's part of each recorded step."""
    shim = nlp.get_pipe("transformer").model.layers[1].shims[0]
    steps = [
        {name: grad for (owner, name), grad in step.items() if owner == shim.id}
        for step in sgd.steps
    ]
    return [step for step in steps if step]


@pytest.fixture
def listening(encoder):
    return make_listening(encoder)


@pytest.fixture(scope="module")
def trained_listening(encoder):
    """Over-fitted on the six sentences; do not change it."""
    nlp = make_listening(encoder)
    examples = make_examples(nlp)
    optimizer = nlp.resume_training()
    optimizer.learn_rate = 2e-3
    for _ in range(60):
        nlp.update(examples, sgd=optimizer, drop=0.0)
    return nlp


def test_tasks_come_from_the_components_that_listen(listening):
    transformer = listening.get_pipe("transformer")
    assert transformer.tasks == ["tag", "ner"]
    assert transformer.listening_components == ["tagger", "ner"]


@pytest.mark.parametrize("spans,align", [("doc_spans", False), ("sent_spans", True)])
def test_rows_at_full_depth_are_those_of_spacy_transformers(encoder, spans, align):
    stock = spacy.blank("en")
    getter = {"@span_getters": f"spacy-transformers.{spans}.v1"}
    stock.add_pipe("transformer", config={"model": {"name": encoder, "get_spans": getter}})
    stock.initialize()
    model = {"name": encoder, "get_spans": getter, "align_exits": align}
    ours = make_listening(encoder, model=model)
    if align:
        module_of(ours.get_pipe("transformer").model).encoder.align.data.normal_()
    texts = ["Anna lives in New York . She likes it .", "New York", "in the", ""]
    pairs = []
    for text in texts:
        words = text.split()
        starts = [i == 0 or words[i - 1] == "." for i in range(len(words))]
        docs = [
            Doc(nlp.vocab, words=words, sent_starts=starts if words else None)
            for nlp in (stock, ours)
        ]
        pairs.append(docs)
    # spacy-transformers itself fails on an empty Doc under sent_spans.
    theirs_own = [[theirs for theirs, _ in pairs[:3]], [own for _, own in pairs]]
    for nlp, docs in zip((stock, ours), theirs_own, strict=True):
        transformer = nlp.get_pipe("transformer")
        transformer.set_annotations(docs, transformer.predict(docs))
    for theirs, own in pairs[:3]:
        a, b = theirs._.trf_data, own._.trf_data
        lengths = b.wordpieces.lengths
        assert [s[:n] for s, n in zip(a.wordpieces.strings, lengths, strict=True)] == (
            b.wordpieces.strings
        )
        assert a.align.lengths.tolist() == b.align.lengths.tolist()
        rows = [
            data.model_output.last_hidden_state.reshape(-1, data.width)[data.align.dataXd]
            for data in (a, b)
        ]
        np.testing.assert_allclose(*rows, atol=1e-5)
    assert pairs[3][1]._.trf_data.model_output == {}


def total_loss(nlp, examples):
    """Joint loss of the off-ramps plus the tagger's cross-entropy, without a graph."""
    from spacy_earlyexit.model.offramps import joint_loss
    from spacy_earlyexit.model.output import Request

    transformer, tagger = nlp.get_pipe("transformer"), nlp.get_pipe("tagger")
    docs = [eg.predicted for eg in examples]
    output, _ = transformer.model.begin_update(Request(docs))
    loss = joint_loss(
        output.layer_scores,
        transformer.gold(examples, output.pieces),
        output.slices,
        transformer.n_layers,
    )
    transformer.set_annotations(docs, transformer.predict(docs))
    entropy = 0.0
    for example, scores in zip(examples, tagger.model.predict(docs), strict=True):
        gold = [tagger.labels.index(token.tag_) for token in example.reference]
        log_probs = torch.log_softmax(torch.from_numpy(scores), dim=-1).numpy()
        entropy -= log_probs[np.arange(len(gold)), gold].sum()
    return float(loss.detach()) + float(entropy)


@pytest.mark.parametrize("loop", ["spacy train", "bare"])
def test_gradient_of_loss_and_listeners_is_that_of_one_graph(encoder, loop):
    nlp = make_listening(encoder, ["tagger"])
    examples = make_examples(nlp)
    sgd = Recorder()
    if loop == "bare":
        nlp.update(examples, sgd=sgd, drop=0.0)
        nlp.get_pipe("transformer").predict([examples[0].predicted])  # the step is made by now
    else:
        like_spacy_train(nlp, examples, sgd)
    (step,) = encoder_gradients(nlp, sgd)
    parameters = dict(module_of(nlp.get_pipe("transformer").model).named_parameters())
    generator = torch.Generator().manual_seed(0)
    for name, parameter in parameters.items():
        if "embed" in name and "norm" not in name:
            continue  # mostly zero
        direction = torch.randn(parameter.shape, generator=generator)
        direction /= direction.norm()
        found = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * 5e-3 * direction
            found.append(total_loss(nlp, examples))
            with torch.no_grad():
                parameter -= sign * 5e-3 * direction
        numeric = (found[0] - found[1]) / 1e-2
        analytic = float((torch.from_numpy(step[name]) * direction).sum())
        assert analytic == pytest.approx(numeric, rel=0.05, abs=0.02), name


def test_both_loops_take_the_same_gradients(encoder):
    steps = []
    for loop in ("spacy train", "bare"):
        nlp = make_listening(encoder)
        examples = make_examples(nlp)
        sgd = Recorder()
        for batch in (examples[:3], examples[3:]):
            if loop == "bare":
                nlp.update(batch, sgd=sgd, drop=0.0)
            else:
                like_spacy_train(nlp, batch, sgd)
        nlp.to_bytes()  # nothing waits any longer
        steps.append(encoder_gradients(nlp, sgd))
    assert len(steps[0]) == len(steps[1]) == 2
    for a, b in zip(*steps, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], atol=1e-5)


def test_gradients_accumulate(encoder):
    found = []
    for parts in (1, 2):
        nlp = make_listening(encoder, ["tagger"])
        examples = make_examples(nlp)[:4]
        sgd = Recorder()
        if parts == 1:
            for batch in (examples[:2], examples[2:]):
                like_spacy_train(nlp, batch, sgd)
        else:
            nlp.update(examples[:2], sgd=False, drop=0.0)
            like_spacy_train(nlp, examples[2:], sgd)
        found.append(encoder_gradients(nlp, sgd))
    assert (len(found[0]), len(found[1])) == (2, 1)
    for name, total in found[1][0].items():
        np.testing.assert_allclose(total, found[0][0][name] + found[0][1][name], atol=1e-4)


def test_a_frozen_listener_does_not_hold_up_the_step(encoder):
    nlp = make_listening(encoder)
    examples = make_examples(nlp)
    alone, both = Recorder(), Recorder()
    like_spacy_train(nlp, examples, alone, exclude=["tagger"])
    assert encoder_gradients(nlp, alone) == []  # it waits for the tagger …
    nlp("Anna")  # … until the weights are needed
    like_spacy_train(nlp, examples, both)
    (without,), (with_,) = encoder_gradients(nlp, alone), encoder_gradients(nlp, both)
    last = "encoder.layers.3.key_value.weight"
    assert np.abs(without[last]).max() > 0
    assert not np.allclose(without[last], with_[last], atol=1e-4)


def test_a_step_that_waits_has_the_learning_rate_of_its_time(encoder):
    nlp = make_listening(encoder, ["tagger"])
    module = module_of(nlp.get_pipe("transformer").model)
    optimizer = nlp.resume_training()
    optimizer.learn_rate = 1e-2
    nlp.update(make_examples(nlp), sgd=optimizer)
    before = module.offramps.bias.detach().clone()
    optimizer.learn_rate = 0.0
    nlp("Anna")
    assert not torch.equal(module.offramps.bias, before)
    assert optimizer.learn_rate == 0.0


def test_a_frozen_annotating_transformer(encoder):
    nlp = make_listening(encoder)
    examples = make_examples(nlp)
    sgd = Recorder()
    like_spacy_train(nlp, examples, sgd, exclude=["transformer"], annotates=["transformer"])
    assert sgd.steps and encoder_gradients(nlp, sgd) == []


def test_annotating_listeners(encoder):
    nlp = make_listening(encoder)
    examples = make_examples(nlp)
    sgd = Recorder()
    like_spacy_train(nlp, examples, sgd, annotates=["transformer", "tagger"])
    assert len(encoder_gradients(nlp, sgd)) == 1


def test_it_learns_and_predicts_at_exit(trained_listening):
    nlp = trained_listening
    examples = make_examples(nlp)
    full = nlp.evaluate(examples)
    assert full["tag_acc"] > 0.95 and full["ents_f"] > 0.95
    assert full["exit_layer_mean"] == 4.0
    transformer = nlp.get_pipe("transformer")
    with transformer.use(TokenExit(0.2, window=0)):
        early = nlp.evaluate(make_examples(nlp))
    assert early["exit_layer_mean"] < 4.0
    assert early["tag_acc"] > 0.8


def test_rows_are_those_at_each_words_exit(trained_listening):
    """A word that left at layer l shows the row it had there, with nothing halted before."""
    nlp = trained_listening
    transformer = nlp.get_pipe("transformer")
    doc = Doc(nlp.vocab, words=["Anna", "met", "Bob"])
    with transformer.use(FixedExit(2)):
        output = transformer.predict([doc])
    with transformer.use(FixedExit(4)):
        deep = transformer.predict([doc])
    assert not torch.allclose(output.states, deep.states)
    with transformer.use(TokenExit(1.0, window=0)):
        first = transformer.predict([doc])
    with transformer.use(FixedExit(1)):
        torch.testing.assert_close(first.states, transformer.predict([doc]).states)


def test_trf_data_is_made_only_if_someone_listens(encoder, trained_listening):
    nlp = trained_listening
    assert isinstance(nlp("Anna")._.trf_data, TransformerData)
    with nlp.select_pipes(disable=["tagger", "ner"]):
        assert nlp("Anna")._.trf_data is None
    quiet = make_listening(encoder, [], tasks=["ner"])
    assert quiet("Anna")._.trf_data is None
    asked = make_listening(encoder, [], tasks=["ner"], record=["trf_data"])
    assert isinstance(asked("Anna")._.trf_data, TransformerData)


def test_a_disabled_listeners_task_neither_rules_nor_costs(trained_listening):
    nlp = trained_listening
    transformer = nlp.get_pipe("transformer")
    assert transformer.active_tasks == ["tag", "ner"]
    with nlp.select_pipes(disable=["ner"]):
        assert transformer.active_tasks == ["tag"]
        with_one = nlp("Anna met Bob")._.exit_stats["macs"]
    assert with_one < nlp("Anna met Bob")._.exit_stats["macs"]


def predictions(nlp, texts=tuple(text for text, _ in TEXTS)):
    return [
        ([token.tag_ for token in doc], [(e.text, e.label_) for e in doc.ents])
        for doc in nlp.pipe(texts)
    ]


def test_maps_of_early_rows_are_learned_and_stored(encoder, tmp_path):
    """Only rows that left early go through them, and only what listeners want moves them."""
    draws = {"@misc": "spacy-earlyexit.SelfSampling.v1", "windows": [0], "thresholds": [1.0]}
    draws["speedups"] = None
    model = {"name": encoder, "align_exits": True}
    nlp = make_listening(encoder, model=model, self_sampling=draws, record=["trf_data"])
    transformer = nlp.get_pipe("transformer")
    align = module_of(transformer.model).encoder.align
    assert not align.any()
    text = TEXTS[0][0]
    with transformer.use(FixedExit(1)):
        before = nlp(text)._.trf_data.model_output.last_hidden_state
    optimizer = nlp.resume_training()
    nlp.select_pipes(enable=["transformer"])
    nlp.update(make_examples(nlp), sgd=optimizer, drop=0.0)
    assert not align.any(), "nobody listened"
    nlp.enable_pipe("tagger")
    for _ in range(3):
        nlp.update(make_examples(nlp), sgd=optimizer, drop=0.0)
    nlp.to_disk(tmp_path)
    loaded = spacy.load(tmp_path)
    stored = module_of(loaded.get_pipe("transformer").model).encoder.align
    assert align[0].any() and torch.equal(stored, align)
    seen = []
    for pipeline in (nlp, loaded):
        with pipeline.get_pipe("transformer").use(FixedExit(1)):
            seen.append(pipeline(text)._.trf_data.model_output.last_hidden_state)
    np.testing.assert_array_equal(*seen)
    with torch.no_grad():
        align.zero_()
        with transformer.use(FixedExit(1)):
            plain = nlp(text)._.trf_data.model_output.last_hidden_state
    assert np.abs(plain - seen[0]).max() > 1e-4 and plain.shape == before.shape


def test_save_and_load(trained_listening, tmp_path):
    trained_listening.to_disk(tmp_path / "pipeline")
    loaded = spacy.load(tmp_path / "pipeline")
    assert predictions(loaded) == predictions(trained_listening)
    assert loaded.get_pipe("transformer").tasks == ["tag", "ner"]


@pytest.mark.timeout(120)
def test_several_processes(trained_listening):
    texts = [text for text, _ in TEXTS] * 3
    expected = predictions(trained_listening, texts)
    docs = trained_listening.pipe(texts, n_process=2, batch_size=4)
    found = [([t.tag_ for t in d], [(e.text, e.label_) for e in d.ents]) for d in docs]
    assert found == expected


@pytest.mark.parametrize("exit", [None, TokenExit(0.4, window=1)])
def test_replace_listeners(trained_listening, tmp_path, exit):
    trained_listening.to_disk(tmp_path / "pipeline")
    nlp = spacy.load(tmp_path / "pipeline")
    transformer = nlp.get_pipe("transformer")
    transformer.exit = exit
    before = predictions(nlp)
    nlp.replace_listeners("transformer", "ner", ["model.tok2vec"])
    assert transformer.listening_components == ["tagger"]
    assert transformer.active_tasks == ["tag"]
    after = predictions(nlp)
    # The ner goes by both tasks, as before; the tagger's depth is now its own.
    assert [ents for _, ents in after] == [ents for _, ents in before]
    block = nlp.config["components"]["ner"]["model"]["tok2vec"]
    assert block["@architectures"] == "spacy-earlyexit.Tok2VecMultiExit.v1"
    nlp.to_disk(tmp_path / "replaced")
    assert predictions(spacy.load(tmp_path / "replaced")) == after
    optimizer = nlp.resume_training()
    losses: dict = {}
    nlp.update(make_examples(nlp), sgd=optimizer, losses=losses)
    assert losses["ner"] > 0


def test_heads_that_initialisation_does_not_see(encoder, trained_listening):
    """spacy train disables sourced and frozen components while it initialises."""
    nlp = spacy.blank("en")
    nlp.add_pipe("earlyexit_transformer", name="transformer", config={"model": {"name": encoder}})
    nlp.add_pipe("tagger", source=trained_listening)
    with nlp.select_pipes(disable=["tagger"]):
        nlp.initialize(lambda: make_examples(nlp))
    transformer = nlp.get_pipe("transformer")
    assert (transformer.tasks, transformer.cfg["auxiliary"]) == (["tag"], [])
    nlp.update(make_examples(nlp), sgd=nlp.create_optimizer())
    assert transformer.listening_components == ["tagger"]


def test_sourcing_into_another_pipeline(trained_listening, tmp_path):
    trained_listening.to_disk(tmp_path)
    source, nlp = spacy.load(tmp_path), spacy.blank("en")
    for name in ("transformer", "tagger", "ner"):
        nlp.add_pipe(name, source=source)
    assert predictions(nlp) == predictions(trained_listening)
    assert nlp.get_pipe("transformer").listening_components == ["tagger", "ner"]
    # Nothing says that it is in another pipeline too, until a component of that one is behind it.
    transformer = nlp.get_pipe("transformer")
    assert transformer.nlp is source
    nlp.add_pipe("earlyexit_ner", name="exits")
    assert transformer.nlp is nlp
    with nlp.select_pipes(disable=["ner", "exits"]):
        assert transformer.active_tasks == ["tag", "ner"]
        assert [name for name, _ in transformer.components_behind()] == ["tagger"]
        with source.select_pipes(disable="ner"):
            assert transformer.active_tasks == ["tag"]


@pytest.mark.parametrize("kind", ["listens", "reads exits"])
@pytest.mark.parametrize("goes", ["source", "new one", "transformer out of the new one"])
def test_what_is_sourced_goes_on_where_it_was(trained_listening, encoder, tmp_path, kind, goes):
    """With fewer components in the new pipeline."""

    def answers(nlp):
        return [[t.tag_, t.ent_type_, t._.exit_layer] for t in nlp(TEXTS[0][0])]

    trained_listening.to_disk(tmp_path)
    listens = kind == "listens"
    source = spacy.load(tmp_path) if listens else initialized(encoder, ["ner", "other"])
    transformer, last = source.get_pipe("transformer"), source.pipe_names[-1]
    transformer.exit = TokenExit(0.8, window=0)
    expected = answers(source)
    nlp = spacy.blank("en")
    nlp.add_pipe("transformer", source=source)
    nlp.add_pipe(last, source=source)
    assert answers(source) == expected
    assert nlp(TEXTS[0][0]).has_annotation("ENT_IOB")
    assert len(transformer.active_tasks) == 2
    if goes == "new one":
        del nlp
    elif goes == "source":
        del source
    else:
        nlp.remove_pipe("transformer")
    gc.collect()
    if goes == "source":
        assert len(transformer.active_tasks) == 1
        assert [name for name, _ in transformer.components_behind()] == [last]
    else:
        assert transformer.nlp is source and answers(source) == expected
        assert [name for name, _ in transformer.components_behind()] == source.pipe_names[1:]
        assert min(source.update(make_examples(source), sgd=source.create_optimizer()).values()) > 0


def test_a_sourced_transformer_learns_and_is_scored(trained_listening, tmp_path):
    trained_listening.to_disk(tmp_path)
    source, nlp = spacy.load(tmp_path), spacy.blank("en")
    for name in ("transformer", "tagger", "ner"):
        nlp.add_pipe(name, source=source)
    expected = predictions(source)
    del source
    gc.collect()
    transformer = nlp.get_pipe("transformer")
    assert predictions(nlp) == expected
    transformer.scorer = make_exit_scorer([1.1], window=0)
    optimizer = nlp.resume_training()
    losses: dict = {}
    nlp.update(make_examples(nlp), sgd=optimizer, losses=losses)
    assert min(losses.values()) > 0
    with pytest.warns(UserWarning, match="exit_score is left out.*init_from"):
        assert "exit_score" not in nlp.evaluate(make_examples(nlp))
    nlp.add_pipe("earlyexit_ner", name="exits")
    assert nlp.evaluate(make_examples(nlp))["exit_score"] >= 0


def test_pickled_components_know_each_other(trained_listening):
    """As for the workers of nlp.pipe under spawn, which get the pipeline too."""
    with trained_listening.select_pipes(disable="ner"):
        both = [trained_listening, [pipe for _, pipe in trained_listening.pipeline]]
        nlp, pipes = pickle.loads(pickle.dumps(both))
    transformer, tagger = pipes
    assert transformer.nlp is nlp
    assert transformer.components_behind() == [("tagger", tagger)]
    assert transformer.active_tasks == ["tag"]
    doc = tagger(transformer(trained_listening.make_doc(TEXTS[0][0])))
    assert doc.has_annotation("TAG")
    del nlp
    gc.collect()
    with pytest.raises(ValueError, match="is in no pipeline here"):
        _ = transformer.nlp


@pytest.mark.parametrize("how", [copy.deepcopy, lambda nlp: pickle.loads(pickle.dumps(nlp))])
def test_copies_of_a_pipeline_are_linked(trained_listening, how):
    """The copy's transformer is about the copy: its tasks, its listeners, its meta, its scores."""
    nlp = how(trained_listening)
    transformer = nlp.get_pipe("transformer")
    assert transformer is not trained_listening.get_pipe("transformer")
    assert transformer.nlp is nlp
    assert predictions(nlp) == predictions(trained_listening)
    with nlp.select_pipes(disable="ner"):
        assert transformer.active_tasks == ["tag"]
        assert trained_listening.get_pipe("transformer").active_tasks == ["tag", "ner"]
    transformer.exit = FixedExit(2)
    assert nlp.meta["earlyexit"]["transformer"]["exit"]["layer"] == 2
    assert nlp.config["components"]["transformer"]["exit"] == "custom"
    assert trained_listening.config["components"]["transformer"]["exit"] is None
    transformer.exit = None
    names = ["transformer", "tagger"]
    before = [nlp.get_pipe(name).to_bytes() for name in names]
    original = trained_listening.to_bytes()
    losses = nlp.update(make_examples(nlp), sgd=nlp.resume_training())
    assert min(losses.values()) > 0
    after = [nlp.get_pipe(name).to_bytes() for name in names]
    assert before[0] != after[0] and before[1] != after[1]
    assert trained_listening.to_bytes() == original
    assert nlp.evaluate(make_examples(nlp))["tag_acc"] > 0


def test_a_copy_of_the_component_alone_copies_no_pipeline(trained_listening):
    transformer = copy.deepcopy(trained_listening.get_pipe("transformer"))
    with pytest.raises(ValueError, match="is in no pipeline here"):
        _ = transformer.nlp


def test_memory_zone(trained_listening):
    nlp = trained_listening
    expected = predictions(nlp)
    n_strings = len(nlp.vocab.strings)
    with nlp.memory_zone():
        assert predictions(nlp) == expected
        nlp("an unseenword inside")
    assert len(nlp.vocab.strings) == n_strings
    assert predictions(nlp) == expected


def test_rehearse_says_why_not(trained_listening):
    with pytest.raises(ValueError, match="mix examples of the old data"):
        trained_listening.get_pipe("transformer").rehearse([])


def test_auxiliary_task_where_only_the_parser_listens(encoder):
    nlp = make_listening(encoder, ["parser"])
    transformer = nlp.get_pipe("transformer")
    assert transformer.tasks == ["tag", "pos", "ner"]
    assert transformer.active_tasks == ["tag", "pos", "ner"]
    one = make_listening(encoder, ["parser"], tasks=["pos"])
    assert one.get_pipe("transformer").active_tasks == ["pos"]
    with one.get_pipe("transformer").use(TokenExit(1.0, window=0)):
        assert one("Anna met Bob .")._.exit_stats["mean_depth"] < 4


def test_auxiliary_task_beside_a_component_of_its_own(encoder, tmp_path):
    nlp = make_listening(encoder, ["ner", "parser"], tasks=["pos", "ner"])
    nlp.to_disk(tmp_path)
    for pipeline in (nlp, spacy.load(tmp_path)):
        with pipeline.select_pipes(disable=["ner"]):
            assert pipeline.get_pipe("transformer").active_tasks == ["pos"]


def test_nothing_to_exit_by_is_an_error(encoder):
    bare = make_examples(spacy.blank("en"), tags=False)
    for example in bare:
        example.reference.set_ents([], default="missing")
    with pytest.raises(ValueError, match=r'tasks = \["pos"\].*FixedExit'):
        make_listening(encoder, ["parser"], examples=bare)


def test_fixed_exit_needs_no_task(encoder, tmp_path):
    nlp = make_listening(encoder, ["textcat"], tasks=[])
    transformer = nlp.get_pipe("transformer")
    transformer.exit = FixedExit(2)
    optimizer = nlp.resume_training()
    optimizer.learn_rate = 2e-3
    examples = make_examples(nlp)
    for _ in range(30):
        nlp.update(examples, sgd=optimizer, drop=0.0)
    doc = nlp("Berlin is nice")
    assert doc._.exit_layers == [2, 2, 2]
    assert doc.cats["short"] > doc.cats["long"]
    nlp.to_disk(tmp_path)
    loaded = spacy.load(tmp_path)
    assert loaded("Berlin is nice").cats == doc.cats
    with pytest.raises(ValueError, match="has no tasks"):
        loaded.get_pipe("transformer").exit = TokenExit(0.5, window=1)


def test_what_is_trained_at_a_fixed_layer_is_its_row(encoder):
    """Without tasks there is no loss but the listeners', and it does not reach deeper layers."""
    nlp = make_listening(encoder, ["tagger"], tasks=[])
    nlp.get_pipe("transformer").exit = FixedExit(2)
    sgd = Recorder()
    like_spacy_train(nlp, make_examples(nlp), sgd)
    (step,) = encoder_gradients(nlp, sgd)
    assert "encoder.layers.1.key_value.weight" in step
    assert "encoder.layers.2.key_value.weight" not in step


def write_corpus(nlp, folder):
    docs = [eg.reference for eg in make_examples(nlp)]
    for part in ("train", "dev"):
        DocBin(docs=docs * 2, store_user_data=True).to_disk(folder / f"{part}.spacy")


@pytest.fixture(scope="module")
def swapped(tmp_path_factory):
    """A config that spaCy makes for spacy-transformers, with the factory's name changed."""
    from spacy.cli.init_config import init_config

    folder = tmp_path_factory.mktemp("swapped")
    make_encoder(folder / "encoder")
    write_corpus(spacy.blank("en"), folder)
    config = init_config(
        lang="en",
        pipeline=STOCK,
        optimize="efficiency",
        gpu=True,
    )
    assert config["components"]["transformer"]["factory"] == "transformer"
    config["components"]["transformer"]["factory"] = "earlyexit_transformer"
    for key, value in {"paths.train": "train.spacy", "paths.dev": "dev.spacy"}.items():
        section, name = key.split(".")
        config[section][name] = str(folder / value)
    config["components"]["transformer"]["model"]["name"] = str(folder / "encoder")
    config["components"]["parser"]["min_action_freq"] = 1
    config["system"]["gpu_allocator"] = None
    config["training"].update(max_steps=20, eval_frequency=10)
    config["training"]["optimizer"]["learn_rate"] = 0.002
    config.to_disk(folder / "config.cfg")
    return folder


@pytest.mark.slow
def test_a_config_of_spacy_transformers_trains(swapped, capfd):
    from spacy.cli.train import train

    output = swapped / "output"
    train(swapped / "config.cfg", output)
    nlp = spacy.load(output / "model-best")
    transformer = nlp.get_pipe("transformer")
    assert transformer.tasks == ["tag", "pos", "ner"]
    assert transformer.listening_components == STOCK
    doc = nlp("Anna Smith lives in New York .")
    assert doc.has_annotation("DEP") and doc.has_annotation("TAG") and doc.cats
    assert doc._.exit_layers == [4] * 7


@pytest.mark.slow
def test_stage_2_goes_on_with_sourced_heads(swapped, capfd):
    from spacy.cli.train import train
    from spacy.util import load_config

    stage1 = swapped / "output" / "model-best"
    if not stage1.is_dir():
        train(swapped / "config.cfg", swapped / "output")
    config = load_config(swapped / "config.cfg")
    names = [name for name in config["nlp"]["pipeline"] if name != "transformer"]
    for name in names:
        config["components"][name] = {"source": str(stage1)}
    config["components"]["transformer"]["self_sampling"] = {
        "@misc": "spacy-earlyexit.SelfSampling.v1",
        "windows": [1, 2],
        "thresholds": [0.2, 0.5],
        "speedups": None,
        "aggressive": 0.2,
        "full_depth": 0.2,
    }
    config["components"]["transformer"]["scorer"] = {
        "@scorers": "spacy-earlyexit.exit_scorer.v1",
        "speedups": [1.5],
        "window": 1,
    }
    config["initialize"]["components"] = {"transformer": {"init_from": str(stage1)}}
    config.to_disk(swapped / "stage2.cfg")
    train(swapped / "stage2.cfg", swapped / "stage2")
    before, after = spacy.load(stage1), spacy.load(swapped / "stage2" / "model-last")
    transformer = after.get_pipe("transformer")
    assert transformer.listening_components == names
    assert transformer.cfg["auxiliary"] == []
    with after.select_pipes(disable=["ner"]):
        assert transformer.active_tasks == ["tag", "pos"]
    for name in ("tagger", "ner"):
        a, b = (nlp.get_pipe(name).model.to_bytes() for nlp in (before, after))
        assert a != b  # it went on learning
    assert after.get_pipe("transformer").points == {}, "training stores none"


@pytest.mark.slow
def test_assemble_and_debug_model(swapped, tmp_path, capfd):
    from spacy.cli._util import app
    from spacy.cli.train import train
    from spacy.util import load_config
    from typer.testing import CliRunner

    stage1 = swapped / "output" / "model-best"
    if not stage1.is_dir():
        train(swapped / "config.cfg", swapped / "output")
    config = load_config(swapped / "config.cfg")
    for name in config["nlp"]["pipeline"]:
        config["components"][name] = {"source": str(stage1)}
    config.to_disk(tmp_path / "assemble.cfg")
    result = CliRunner().invoke(
        app, ["assemble", str(tmp_path / "assemble.cfg"), str(tmp_path / "assembled")]
    )
    assert result.exit_code == 0, result.output
    texts = ["Anna Smith lives in New York ."]
    assert predictions(spacy.load(tmp_path / "assembled"), texts) == predictions(
        spacy.load(stage1), texts
    )
    for component in ("transformer", "tagger"):
        arguments = ["debug", "model", str(swapped / "config.cfg"), component, "-P0", "-P2", "-P3"]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, (component, result.output, result.exception)


def test_another_annotation_setter_is_refused(encoder):
    from spacy_earlyexit.pipeline.factory import make_transformer

    nlp = spacy.blank("en")
    config = {
        "model": {"name": encoder},
        "set_extra_annotations": {
            "@annotation_setters": "spacy-transformers.null_annotation_setter.v1"
        },
    }
    nlp.add_pipe("earlyexit_transformer", config=config)
    with pytest.raises(ValueError, match="set_extra_annotations"):
        settings = [None, None, None, None, None, [], 10, "float32"]
        make_transformer(nlp, "t", *settings, lambda docs, trf_data: None, None)
