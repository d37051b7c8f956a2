"""The matrix products alone: what the processor gives, what int8 gives, what the encoder adds."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import spacy
import torch
import typer
from spacy.training import Corpus
from torch import nn
from wasabi import msg

from spacy_earlyexit.architectures import module_of
from spacy_earlyexit.cli.tables import print_table
from spacy_earlyexit.encoders.int8 import CHUNK, Int8Linear
from spacy_earlyexit.engine import run
from spacy_earlyexit.evaluation import bare_doc, find_transformer

HIDDEN, INNER = 384, 1536
ROWS = (32, 128, 512, 3_000)

app = typer.Typer(add_completion=False)
Threads = Annotated[int, typer.Option(help="torch's threads, 0 for all cores", min=0)]


def best(call: Callable[..., object], *args: object, seconds: float = 0.5) -> float:
    """Seconds of one call: the median of those that fit into so many seconds, after two."""
    call(*args), call(*args)
    times: list[float] = []
    while sum(times) < seconds:
        start = time.perf_counter()
        call(*args)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


@app.command("kinds")
@torch.inference_mode()
def kinds_cli(threads: Threads = 0) -> None:
    """float32, bfloat16 and int8 products, and a feed-forward of them."""
    torch.set_num_threads(threads or torch.get_num_threads())
    inner, outer = nn.Linear(HIDDEN, INNER), nn.Linear(INNER, HIDDEN)
    inner8, outer8 = Int8Linear(inner), Int8Linear(outer)
    half = nn.Linear(HIDDEN, INNER).to(torch.bfloat16)
    bare = torch.randint(-127, 128, (HIDDEN, INNER), dtype=torch.int8)
    rows = []
    for n in ROWS:
        x = torch.randn(n, HIDDEN)
        whole = torch.randint(-127, 128, (n, HIDDEN), dtype=torch.int8)
        half_x = x.to(torch.bfloat16)
        operations = 2 * n * HIDDEN * INNER / 1e9
        times = [
            best(inner, x),
            best(half, half_x),
            best(torch._int_mm, whole, bare),
            best(inner8, x),
        ]
        rows.append((f"{n:,}", *(f"{operations / t:.0f}" for t in times)))
    msg.divider(f"GFLOP/s of {HIDDEN} by {INNER}, {torch.get_num_threads()} threads")
    header = ["rows", "float32", "bfloat16", "int8 alone", "int8 from and to float32"]
    print_table(rows, header, "rrrrr")

    def float32(x: torch.Tensor) -> torch.Tensor:
        return outer(torch.nn.functional.gelu(inner(x)))

    def int8(x: torch.Tensor) -> torch.Tensor:
        return outer8(torch.nn.functional.gelu(inner8(x)))

    def int8_in_chunks(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([int8(chunk) for chunk in x.split(CHUNK)])

    x = torch.randn(ROWS[-1], HIDDEN)
    msg.divider(f"Milliseconds of a feed-forward of {ROWS[-1]:,} rows")
    kinds = {"float32": float32, "int8": int8, f"int8, {CHUNK} rows at a time": int8_in_chunks}
    print_table([(name, f"{1000 * best(f, x):.0f}") for name, f in kinds.items()], ["", "ms"], "lr")


@app.command("encoder")
@torch.inference_mode()
def encoder_cli(
    pipeline: Annotated[str, typer.Argument(help="Folder of a pipeline")],
    test: Annotated[Path, typer.Argument(help="Test data (.spacy)")],
    limit: Annotated[int, typer.Option(help="First documents only, 0 for all")] = 0,
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    threads: Threads = 0,
) -> None:
    """Time of the encoder at full depth to that of the float32 products it cannot avoid."""
    torch.set_num_threads(threads or torch.get_num_threads())
    nlp = spacy.load(pipeline)
    transformer = find_transformer(nlp)
    module = module_of(transformer.model)
    docs = [bare_doc(eg.predicted) for eg in Corpus(test, gold_preproc=True, limit=limit)(nlp)]
    pieces = transformer.model.layers[0].predict(docs)
    batches = list(pieces.batches(transformer.max_batch_items))
    lengths = [int(np.diff(pieces.unit_starts)[units].sum()) for units in batches]

    def encoder() -> None:
        for units in batches:
            run(module, pieces, units, None, transformer.active_tasks)

    def products() -> None:
        for n in lengths:
            hidden = torch.zeros(n, module.encoder.config.hidden)
            inner = torch.zeros(n, module.encoder.config.inner)
            for number in range(1, transformer.n_layers + 1):
                layer = module.encoder.layer(number)
                layer.query(hidden), layer.key_value(hidden), layer.output(hidden)
                layer.inner(hidden), layer.outer(inner)

    times: dict[str, list[float]] = {"encoder": [], "products": []}
    for repeat in range(repeats + 1):
        for name, call in (("encoder", encoder), ("products", products)):
            start = time.perf_counter()
            call()
            if repeat:
                times[name].append(time.perf_counter() - start)
    ours, theirs = (float(np.median(times[name])) for name in times)
    msg.divider(f"{pipeline}, full depth, {sum(lengths):,} rows, {torch.get_num_threads()} threads")
    msg.text(f"encoder {ours:.2f} s, its products alone {theirs:.2f} s: {ours / theirs:.2f}")


if __name__ == "__main__":
    app()
