"""Products and attention alone: what the processor and int8 give, what the encoder adds."""

import gc
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import spacy
import torch
import torch.nn.functional as F
import typer
from spacy.training import Corpus
from torch import nn
from wasabi import msg

from spacy_earlyexit.cli.tables import print_table
from spacy_earlyexit.model import encoder_layer
from spacy_earlyexit.model.architecture import module_of, pieces_of
from spacy_earlyexit.model.engine import run
from spacy_earlyexit.model.kernels.attention import batched, batched_is_faster
from spacy_earlyexit.model.kernels.chunks import CHUNK
from spacy_earlyexit.model.kernels.int8 import Int8Linear, Int8Product
from spacy_earlyexit.model.kernels.products import (
    Linear,
    by_onednn,
    column_major,
    onednn_is_faster,
)
from spacy_earlyexit.pipeline.finding import bare_doc, find_transformer

HIDDEN, INNER, N_HEADS = 384, 1536, 12
ROWS = (32, 128, 512, 3_000)
Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

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
    inner, outer = column_major(Linear(HIDDEN, INNER)), column_major(Linear(INNER, HIDDEN))
    with_gelu = column_major(Linear(HIDDEN, INNER, gelu=True))
    inner8, outer8 = Int8Linear(inner), Int8Linear(outer)
    half = nn.Linear(HIDDEN, INNER).to(torch.bfloat16)
    bare = torch.randint(-63, 64, (INNER, HIDDEN), dtype=torch.int8)
    product = Int8Product(bare, torch.ones(INNER))
    rows = []
    for n in ROWS:
        x = torch.randn(n, HIDDEN)
        whole = torch.randint(-127, 128, (n, HIDDEN), dtype=torch.int8)
        half_x = x.to(torch.bfloat16)
        operations = 2 * n * HIDDEN * INNER / 1e9
        times = [
            best(F.linear, x, inner.weight, inner.bias),
            best(by_onednn, x, inner.weight, inner.bias),
            best(half, half_x),
            best(product, whole),
            best(torch._int_mm, whole, bare.T),
            best(inner8, x),
        ]
        rows.append((f"{n:,}", *(f"{operations / t:.0f}" for t in times)))
    msg.divider(f"GFLOP/s of {HIDDEN} by {INNER}, {torch.get_num_threads()} threads")
    header = [
        "rows",
        "float32, MKL",
        "float32, oneDNN",
        "bfloat16",
        "int8 alone",
        "torch._int_mm",
        "int8 from and to float32",
    ]
    print_table(rows, header, "rrrrrrr")
    chosen = "oneDNN" if onednn_is_faster() else "MKL"
    msg.text(f"float32 products of predictions here are by {chosen}")

    def float32(x: torch.Tensor) -> torch.Tensor:
        return outer(F.gelu(inner(x)))

    def gelu_in_product(x: torch.Tensor) -> torch.Tensor:
        return outer(with_gelu(x))

    def int8(x: torch.Tensor) -> torch.Tensor:
        return outer8(F.gelu(inner8(x)))

    def in_chunks(forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.cat([forward(chunk) for chunk in x.split(CHUNK)])

    x = torch.randn(ROWS[-1], HIDDEN)
    msg.divider(f"Milliseconds of a feed-forward of {ROWS[-1]:,} rows")
    kinds = {"float32": float32, "float32, GELU in the product": gelu_in_product, "int8": int8}
    kinds |= {f"{k}, {CHUNK} rows at a time": partial(in_chunks, f) for k, f in kinds.items()}
    print_table([(name, f"{1000 * best(f, x):.0f}") for name, f in kinds.items()], ["", "ms"], "lr")


@app.command("layout")
@torch.inference_mode()
def layout_cli(threads: Threads = 0) -> None:
    """float32 products of 12 layers in turn, with weights stored by rows and by columns. Few rows
    are what deep layers and single sentences have; the weights of the other layers have then
    driven a layer's own out of the fast caches.
    """
    torch.set_num_threads(threads or torch.get_num_threads())
    shapes = [(HIDDEN, HIDDEN), (HIDDEN, 2 * HIDDEN), (HIDDEN, INNER), (INNER, HIDDEN)]

    def products(product: Product, layers: list[Linear], inputs: dict[int, torch.Tensor]) -> None:
        for layer in layers:
            product(inputs[layer.in_features], layer.weight, layer.bias)

    by_row = [Linear(*shape) for _ in range(12) for shape in shapes]
    by_column = [column_major(Linear(*shape)) for _ in range(12) for shape in shapes]
    rows = []
    for n in (8, 16, 32, 64, 128, 512):
        inputs = {size: torch.randn(n, size) for size in (HIDDEN, INNER)}
        operations = 2 * n * 12 * sum(a * b for a, b in shapes) / 1e9
        times = [
            best(products, product, layers, inputs)
            for product in (F.linear, by_onednn)
            for layers in (by_row, by_column)
        ]
        rows.append((f"{n:,}", *(f"{operations / t:.0f}" for t in times)))
    msg.divider(f"GFLOP/s of 12 layers, {torch.get_num_threads()} threads")
    header = ["rows", "MKL, by rows", "by columns", "oneDNN, by rows", "by columns"]
    print_table(rows, header, "rrrrr")


@app.command("attention")
@torch.inference_mode()
def attention_cli(threads: Threads = 0) -> None:
    """Attention of units of one length, by torch's fused kernel and by batched products; with all
    of their rows as queries, and with a few, as in deep layers.
    """
    torch.set_num_threads(threads or torch.get_num_threads())
    size = HIDDEN // N_HEADS
    rows = []
    for length in (5, 10, 20, 40, 80):
        for width in dict.fromkeys((length, min(length, 4))):
            n_units = -(-800 // length)
            query, key, value = (
                torch.randn(n_units, n, N_HEADS, size).transpose(1, 2)
                for n in (width, length, length)
            )
            times = [
                best(way, query, key, value) for way in (F.scaled_dot_product_attention, batched)
            ]
            rows.append((length, n_units, width, *(f"{1e6 * t:.0f}" for t in times)))
    msg.divider(f"Microseconds of {N_HEADS} heads of {size}, {torch.get_num_threads()} threads")
    print_table(rows, ["length", "units", "queries of each", "fused", "batched"], "rrrrr")
    chosen = "batched" if batched_is_faster(torch.get_num_threads()) else "fused"
    msg.text(f"attention of short units is {chosen} in predictions here")


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
    pieces = pieces_of(transformer.model, docs)
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


@app.command("shares")
def shares_cli(
    pipeline: Annotated[str, typer.Argument(help="Folder of a calibrated pipeline")],
    test: Annotated[Path, typer.Argument(help="Test data (.spacy)")],
    points: Annotated[str, typer.Option(help="With commas")] = "full,2x,3x,4x",
    precision: Annotated[str, typer.Option(help="float32 or int8")] = "float32",
    budget: Annotated[int, typer.Option(help="max_batch_items, 0: as it is")] = 0,
    ahead: Annotated[int, typer.Option(help="Documents read ahead, 0: as it is")] = 0,
    limit: Annotated[int, typer.Option(help="First documents only, 0 for all")] = 0,
    new_words: Annotated[bool, typer.Option(help="Forget all words before each run")] = False,
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    threads: Threads = 0,
) -> None:
    """How much of the time of nlp.pipe is spent outside the encoder and its off-ramps, and how the
    speed-up of both follows that of the MACs.
    """
    torch.set_num_threads(threads or torch.get_num_threads())
    nlp = spacy.load(pipeline)
    transformer = find_transformer(nlp)
    pieces = transformer.model.layers[0]
    transformer.precision = precision
    transformer.max_batch_items = budget or transformer.max_batch_items
    inside = 0.0

    def timed(*args: Any, **settings: Any) -> Any:
        nonlocal inside
        start = time.perf_counter()
        try:
            return run(*args, **settings)
        finally:
            inside += time.perf_counter() - start

    encoder_layer.run = timed  # type: ignore[assignment]
    examples = list(Corpus(test, gold_preproc=True, limit=limit)(nlp))
    names = points.split(",")
    whole: dict[str, list[float]] = {name: [] for name in names}
    engine: dict[str, list[float]] = {name: [] for name in names}
    macs: dict[str, float] = {}
    for repeat in range(repeats + 1):
        for name in names:
            docs = [bare_doc(eg.predicted) for eg in examples]
            if new_words:
                pieces.shims[0]._model.forget()  # type: ignore[union-attr]
            gc.collect()  # or it falls into the same point each time, and takes as long as a layer
            inside, start = 0.0, time.perf_counter()
            with transformer.use(name):
                done = list(nlp.pipe(docs, batch_size=ahead or None))
            if repeat:
                whole[name].append(time.perf_counter() - start)
                engine[name].append(inside)
            else:
                stats = [doc._.exit_stats for doc in done]
                macs[name] = sum(s["macs_full"] for s in stats) / sum(s["macs"] for s in stats)
    rows = []
    for name in names:
        total, inner = np.median(whole[name]), np.median(engine[name])
        base, inner_base = np.median(whole[names[0]]), np.median(engine[names[0]])
        rows.append(
            (
                name,
                f"{total:.2f} s",
                f"{100 * (1 - inner / total):.1f} %",
                f"{macs[name]:.2f}x",
                f"{inner_base / inner:.2f}x ({inner_base / inner / macs[name]:.2f})",
                f"{base / total:.2f}x ({base / total / macs[name]:.2f})",
            )
        )
    msg.divider(f"{pipeline} on {test}, {precision}, {torch.get_num_threads()} threads")
    header = ["", "time", "outside the encoder", "MACs", "encoder (to MACs)", "pipeline (to MACs)"]
    print_table(rows, header, "lrrrrr")


if __name__ == "__main__":
    app()
