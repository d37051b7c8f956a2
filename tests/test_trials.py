"""Which of two ways is faster: as many calls of each, in turns, their best times compared. Which is
taken changes nothing.
"""

import numpy as np
import pytest
import torch

from spacy_earlyexit.model.criteria import TokenExit
from spacy_earlyexit.model.kernels import attention, products, trials
from spacy_earlyexit.model.kernels.trials import gain


def test_compares_the_best_of_each(monkeypatch):
    now = 0.0
    calls = []

    def takes(name, *seconds):
        left = list(seconds)

        def run(*args):
            nonlocal now
            calls.append((name, args))
            now += left.pop(0)

        return run

    monkeypatch.setattr(trials.time, "perf_counter", lambda: now)
    new, old = takes("new", 9.0, 0.5, 1.0), takes("old", 2.0, 4.0, 1.5)
    assert gain(new, old, "rows", rounds=3) == pytest.approx(3.0)
    assert calls == 3 * [("old", ("rows",)), ("new", ("rows",))]


@pytest.mark.parametrize("error", [AttributeError, RuntimeError])
def test_what_does_not_run_here_gains_nothing(error):
    def missing():
        raise error

    assert gain(missing, lambda: None) == 0.0


@pytest.mark.parametrize("exit", [None, TokenExit(0.6, 1)])
@pytest.mark.parametrize(
    ("module", "trial"), [(products, "onednn_is_faster"), (attention, "batched_is_faster")]
)
def test_results_do_not_depend_on_the_way_or_the_batch(trained, exit, module, trial, monkeypatch):
    if module is products and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    texts = ["Anna Smith lives in New York .", "Berlin", "Bob met Anna in Paris and Berlin"]
    transformer = trained.get_pipe("transformer")

    def found(some):
        output = transformer.predict([trained.make_doc(text) for text in some])
        return output.scores, output.exit_layer

    monkeypatch.setattr(products, "_LEAST", 0)
    with transformer.use(exit):
        monkeypatch.setattr(module, trial, lambda *args: False)
        scores, layers = found(texts)
        monkeypatch.setattr(module, trial, lambda *args: True)
        for some in ([texts], [[text] for text in texts]):
            parts = [found(each) for each in some]
            np.testing.assert_allclose(np.concatenate([s for s, _ in parts]), scores, atol=1e-5)
            np.testing.assert_array_equal(np.concatenate([n for _, n in parts]), layers)
