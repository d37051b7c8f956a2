"""What the package does to its process can be switched off, and is the same in all processes."""

import json
import os
import subprocess
import sys

import pytest

from spacy_earlyexit.model.kernels import choice

CODE = """
import json, logging, os, sys, torch
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
import spacy
from spacy_earlyexit.model.kernels.choice import chosen
from spacy_earlyexit.model.kernels.memory import keep_freed_memory

nlp = spacy.load(sys.argv[1])
nlp(sys.argv[2])
read, write = os.pipe()
if os.fork() == 0:
    os.write(write, str(torch.get_num_threads()).encode())
    os._exit(0)
os.wait()
threads = int(os.read(read, 10))
pins = os.environ.get("SPACY_EARLYEXIT_KERNELS")
print(json.dumps([chosen(), pins, keep_freed_memory(), threads]))
"""


def run(stored, **settings):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SPACY_EARLYEXIT")}
    environment |= {"OMP_NUM_THREADS": "2", **settings}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(stored), "Anna lives in New York . " * 40],
        capture_output=True,
        text=True,
        env=environment,
    )
    return done


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@needs_fork
def test_what_is_chosen_is_logged_and_pins_others(stored):
    done = run(stored)
    chosen, environment, _, threads = json.loads(done.stdout)
    assert chosen.keys() == {"products", "attention"} and threads == 1
    assert environment == ",".join(f"{kernel}={way}" for kernel, way in chosen.items())
    for kernel, way in chosen.items():
        assert f"{kernel} of this processor by {way} (tried out)" in done.stderr
    assert "forked processes have 1 thread(s)" in done.stderr


@needs_fork
@pytest.mark.parametrize("pins", ["products=mkl,attention=batched", "products=onednn"])
def test_switches(stored, pins):
    settings = {"SPACY_EARLYEXIT_KEEP_MEMORY": "0", "SPACY_EARLYEXIT_FORK_THREADS": "2"}
    done = run(stored, SPACY_EARLYEXIT_KERNELS=pins, **settings)
    chosen, _, kept, threads = json.loads(done.stdout)
    wanted = dict(pin.split("=") for pin in pins.split(","))
    assert wanted.items() <= chosen.items()
    assert not kept and threads == 2


@pytest.mark.parametrize(
    "name,value",
    [
        ("SPACY_EARLYEXIT_KERNELS", "products=fast"),
        ("SPACY_EARLYEXIT_KERNELS", "product=mkl"),
        ("SPACY_EARLYEXIT_FORK_THREADS", "one"),
        ("SPACY_EARLYEXIT_KEEP_MEMORY", "-1"),
    ],
)
def test_wrong_switches_name_the_variable(stored, name, value):
    done = run(stored, **{name: value})
    assert done.returncode == 1 and f"environment variable {name} has to be" in done.stderr


def test_the_choice_is_made_once(monkeypatch):
    monkeypatch.setattr(choice, "_chosen", {})
    monkeypatch.setattr(choice, "pinned", dict)
    monkeypatch.setenv(choice.ENVIRONMENT, "")
    tried = []
    assert choice.takes_other_way("products", lambda: tried.append(1) or True)
    assert choice.chosen() == {"products": "onednn"} and tried == [1]
    assert os.environ[choice.ENVIRONMENT] == "products=onednn"
