"""The shim's optimiser steps."""

import gc

import torch
from conftest import make_examples

from spacy_earlyexit.architectures import module_of


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
