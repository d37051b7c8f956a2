"""Which of two ways is faster: as many calls of each, in turns, their best times compared."""

import pytest

from spacy_earlyexit.encoders import trials
from spacy_earlyexit.encoders.trials import gain


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
