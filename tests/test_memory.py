"""Freed memory stays with the process: blocks of many megabytes are not handed out page by page."""

import ctypes
import os
import subprocess
import sys

import pytest

from spacy_earlyexit.model import encoder_layer
from spacy_earlyexit.model.kernels import memory
from spacy_earlyexit.model.kernels.memory import keep_freed_memory

needs_glibc = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None) if os.name == "posix" else None, "gnu_get_libc_version"),
    reason="malloc is not that of the GNU C library",
)
# How often the system hands out pages for 100 MB: as it is, and with what is asked for.
COUNT = """
import resource, torch
from spacy_earlyexit.model.kernels.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(25 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.ones(25 * 2**20)
before = faults()
done = keep_freed_memory()
torch.ones(25 * 2**20)
print(before, faults(), done)
"""


def count(**settings):
    done = subprocess.run(
        [sys.executable, "-c", COUNT],
        capture_output=True,
        check=True,
        text=True,
        env={**os.environ, **settings},
    )
    before, after, kept = done.stdout.split()
    return int(before), int(after), kept == "True"


@needs_glibc
def test_blocks_are_taken_again():
    assert count()[2]
    # Where the heap begins is chance, and with it whether something lies in between: try some.
    tries = (after / before for before, after, _ in (count() for _ in range(15)))
    assert any(rate < 0.11 for rate in tries), "one of ten may be new"


@needs_glibc
@pytest.mark.parametrize(
    "settings",
    [{"MALLOC_MMAP_THRESHOLD_": "1000000"}, {"GLIBC_TUNABLES": "glibc.malloc.check=0"}],
)
def test_settings_of_malloc_stay(settings):
    before, after, kept = count(**settings)
    assert not kept and after > before / 2


def test_another_malloc_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    keep_freed_memory.cache_clear()
    try:
        assert not keep_freed_memory()
    finally:
        keep_freed_memory.cache_clear()


def test_prediction_asks_for_it(trained, monkeypatch):
    asked = []
    monkeypatch.setattr(encoder_layer, "keep_freed_memory", lambda: asked.append(True))
    trained("Anna lives in Berlin")
    assert asked
