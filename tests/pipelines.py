"""Small pipelines, and what tests of several files ask of them."""

import numpy as np
import spacy
import torch
from conftest import TEXTS, make_examples
from thinc.api import Optimizer

from spacy_earlyexit.model.architecture import module_of
from spacy_earlyexit.model.criteria import FixedExit, TokenExit
from spacy_earlyexit.pipeline.exits import find_exits
from spacy_earlyexit.pipeline.tasks import NerTask, Task, tasks

N_LAYERS = 4
TEXT = "Anna Smith lives in New York ."
NO_DROPOUT = {
    "transformer_config": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}
TOKEN_BLOCK = {"@misc": "spacy-earlyexit.TokenExit.v1", "threshold": 0.9, "window": 1}
FIXED_BLOCK = {"@misc": "spacy-earlyexit.FixedExit.v1", "layer": 1}


@tasks("test_other_ner")
class OtherNer(NerTask):
    """A second task that an earlyexit_ner can serve."""


@tasks("test_title")
class Title(Task):
    """Two classes, known for every token."""

    annotation = "token.is_title"

    def gold(self, example):
        return ["T" if token.is_title else "t" for token in example.predicted]


def transformer_of(nlp):
    return nlp.get_pipe("transformer")


def weights(nlp):
    own = module_of(transformer_of(nlp).model).named_parameters()
    return {name: tensor.detach().clone() for name, tensor in own}


def gradients(nlp):
    named = module_of(transformer_of(nlp).model).named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def same(a, b):
    assert a and list(a) == list(b)
    return all(torch.equal(a[name], b[name]) for name in a)


def assert_close(a, b):
    assert a and list(a) == list(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6, msg=name)


def exits_of(nlp, text):
    """What the transformer leaves for a text, before anything reads it."""
    return find_exits(transformer_of(nlp)(nlp.make_doc(text)))


def predictions(nlp):
    """Everything that a pipeline says about a few texts."""
    found = []
    for text, _ in TEXTS:
        doc = nlp(text)
        entities = [(e.start, e.end, e.label_) for e in doc.ents]
        found.append([entities, doc._.exit_layers, exits_of(nlp, text).scores.tolist()])
    return found


def halfway(nlp):
    """Token exit under which half the words leave at layer 1, and others later."""
    transformer = transformer_of(nlp)
    with transformer.use(FixedExit(1)):
        doubt = transformer.predict([nlp.make_doc(text) for text, _ in TEXTS]).uncertainty
    return TokenExit(float(np.median(doubt)), 0)


def sgd_optimizer(rate=1.0, **settings):
    """Plain gradient descent: the change of a weight is the gradient."""
    return Optimizer(rate, beta1=0.0, beta2=0.0, **{"L2": 0.0, "grad_clip": 0.0, **settings})


def untrained(encoder, components=("ner",), **config):
    """A pipeline that is not initialised."""
    nlp = spacy.blank("en")
    name = encoder and str(encoder)  # None in stage 2
    model = {"@architectures": "spacy-earlyexit.MultiExitTransformer.v1", "name": name}
    model.update(config.pop("model", {}))
    nlp.add_pipe("earlyexit_transformer", name="transformer", config={"model": model, **config})
    for name in components:
        task = "test_other_ner" if name == "other" else "ner"
        nlp.add_pipe("earlyexit_ner", name=name, config={"task": task})
    return nlp


def initialized(encoder, components=("ner",), **config):
    spacy.util.fix_random_seed(0)
    nlp = untrained(encoder, components, **config)
    nlp.initialize(lambda: make_examples(nlp))
    return nlp


def from_stage1(encoder, path, model=None, config=None, **settings):
    """What stage 2 begins with."""
    nlp = untrained(encoder, model=model or {}, **(config or {}))
    nlp.config["initialize"]["components"]["transformer"] = {"init_from": str(path), **settings}
    nlp.initialize(lambda: make_examples(nlp))
    return nlp


def depth(nlp):
    (layer,) = set(nlp(TEXT)._.exit_layers)
    return layer
