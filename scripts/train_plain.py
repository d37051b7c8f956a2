"""Fine-tune a plain Hugging Face token classifier: the peer of the early-exit model."""

import random
import statistics
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence, Sized
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import numpy as np
import spacy
import torch
import typer
from plain_tasks import ANNOTATIONS, Annotation, main_score, to_characters
from spacy.cli._util import setup_gpu
from spacy.tokens import Doc, DocBin
from thinc.api import get_torch_default_device
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_linear_schedule_with_warmup,
    set_seed,
)

from spacy_earlyexit.cli.options import GpuId
from spacy_earlyexit.files import write_json
from spacy_earlyexit.model.pieces import PieceTokenizer

IGNORED = -100  # the target that torch's cross-entropy passes over
WEIGHT_DECAY = 0.01
WARMUP = 0.1
MAX_GRAD_NORM = 1.0
# Sorting by length only inside buckets of this many batches leaves the order mostly random.
BUCKET_BATCHES = 16

app = typer.Typer(add_completion=False)


class Encoded(NamedTuple):
    """A sentence's pieces, and where each word's first piece is (None for a word without one)."""

    pieces: list[int]
    firsts: list[int | None]


class Peer(NamedTuple):
    annotation: Annotation
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    labels: list[str]
    max_pieces: int
    single: PieceTokenizer | None
    """For characters: cuts each for itself, with no mark of a word's start in front of it."""


@app.command()
def train_plain_cli(
    train_path: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    dev_path: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    encoder: Annotated[str, typer.Option(help="Hub name or folder of a Hugging Face encoder")],
    output: Annotated[Path, typer.Option(help="JSON file for the metrics")],
    task: Annotated[str, typer.Option(help="What is learned: ner, tag, pos or seg")] = "ner",
    test: Annotated[Path | None, typer.Option(exists=True, dir_okay=False)] = None,
    epochs: Annotated[int, typer.Option(min=1)] = 5,
    batch_words: Annotated[int, typer.Option(min=1)] = 400,
    learn_rate: float = 1e-4,
    head_scale: Annotated[
        float, typer.Option(help="The classifier's learning rate is this times the encoder's")
    ] = 10.0,
    seed: int = 0,
    limit: Annotated[int, typer.Option(help="First dev and test Docs only, 0 for all")] = 0,
    characters: Annotated[
        bool,
        typer.Option("--characters", help="Words are the characters of the text; for seg always"),
    ] = False,
    layers: Annotated[
        int | None, typer.Option(help="Cut the encoder to its first layers", min=1)
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Folder to save model and tokenizer in")
    ] = None,
    mixed_precision: Annotated[bool, typer.Option(help="Train with bfloat16 products")] = False,
    threads: Annotated[int | None, typer.Option(help="Threads for torch", min=1)] = None,
    gpu_id: GpuId = -1,
    max_steps: Annotated[int | None, typer.Option(help="Stop early, for tests", min=1)] = None,
) -> None:
    """Fine-tune a token classifier on gold tokens; keep the epoch that is best on dev."""
    if task not in ANNOTATIONS:
        raise typer.BadParameter(f"{task} is none of {', '.join(ANNOTATIONS)}", param_hint="--task")
    setup_gpu(gpu_id, silent=True)
    if threads is not None:
        torch.set_num_threads(threads)
    metrics = train_plain(
        read_docs(train_path),
        read_docs(dev_path, limit),
        encoder,
        task=task,
        test=None if test is None else read_docs(test, limit),
        epochs=epochs,
        batch_words=batch_words,
        learn_rate=learn_rate,
        head_scale=head_scale,
        seed=seed,
        max_steps=max_steps,
        characters=characters,
        layers=layers,
        save=model,
        mixed_precision=mixed_precision,
    )
    write_json(output, {**metrics, "limit": limit})


def train_plain(
    train: Sequence[Doc],
    dev: Sequence[Doc],
    encoder: str,
    *,
    task: str = "ner",
    test: Sequence[Doc] | None = None,
    epochs: int = 6,
    batch_words: int = 600,
    learn_rate: float = 1e-4,
    head_scale: float = 10.0,
    seed: int = 0,
    max_steps: int | None = None,
    characters: bool = False,
    layers: int | None = None,
    save: Path | None = None,
    mixed_precision: bool = False,
) -> dict[str, Any]:
    """Train, choose the epoch by its dev score and return the metrics. With `characters`, and for
    the task seg, words are the characters of the text; `layers` cuts the encoder, `save` is a
    folder for model and tokenizer.

    `train_seconds` leaves out the predictions on dev; `words_per_second` is the prediction of
    test from words to annotated Docs.
    """
    set_seed(seed)
    annotation = ANNOTATIONS[task]
    characters = characters or task == "seg"
    if characters:
        train, dev = [to_characters(doc) for doc in train], [to_characters(doc) for doc in dev]
        test = None if test is None else [to_characters(doc) for doc in test]
    peer = load_peer(encoder, train, annotation, layers, characters)
    model = peer.model
    # cast: transformers hides its types behind a wrapper
    cast(torch.nn.Module, model).to(get_torch_default_device())
    encoded = encode(peer, train)
    targets = [encode_labels(peer, doc, sent) for doc, sent in zip(train, encoded, strict=True)]
    rng = random.Random(seed)
    plan = [shuffled_batches(train, encoded, batch_words, rng) for _ in range(epochs)]
    steps = sum(map(len, plan))
    if max_steps is not None:
        steps = min(steps, max_steps)
    optimizer = make_optimizer(model, learn_rate, head_scale)
    schedule = get_linear_schedule_with_warmup(optimizer, int(WARMUP * steps), steps)
    history: list[dict[str, float]] = []
    train_seconds, step = 0.0, 0
    best_dev: dict[str, float] | None = None
    best_weights: dict[str, torch.Tensor] = {}
    progress = tqdm(total=steps, unit="step", disable=None)
    for epoch, batches in enumerate(plan, start=1):
        batches = batches[: steps - step]
        if not batches:
            break
        model.train()
        losses = []
        start = time.perf_counter()
        for batch in batches:
            inputs = collate(peer, [encoded[i] for i in batch])
            labels = pad([targets[i] for i in batch], IGNORED).to(model.device)
            with torch.autocast(model.device.type, torch.bfloat16, enabled=mixed_precision):
                loss = model(**inputs, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            progress.update()
        seconds = time.perf_counter() - start
        train_seconds += seconds
        step += len(batches)
        scores = evaluate(peer, dev, batch_words)
        dev_score = main_score(scores)
        history.append({"epoch": epoch, "loss": statistics.fmean(losses), "dev_score": dev_score})
        say(f"epoch {epoch}: loss {history[-1]['loss']:.4f}, dev {show(scores)}, {seconds:.0f} s")
        if best_dev is None or dev_score > main_score(best_dev):
            best_dev = scores
            best_weights = {name: value.clone() for name, value in model.state_dict().items()}
    progress.close()
    model.load_state_dict(best_weights)
    if save is not None:
        model.save_pretrained(save)
        peer.tokenizer.save_pretrained(save)
    test_scores = words_per_second = None
    if test is not None:
        start = time.perf_counter()
        predicted = predict(peer, test, batch_words)
        words_per_second = sum(map(len, test)) / (time.perf_counter() - start)
        test_scores = peer.annotation.score(predicted, test)
        say(f"test {show(test_scores)}, {words_per_second:.0f} words per second")
    return {
        "system": "plain",
        "task": task,
        "encoder": Path(encoder).name,
        "characters": characters,
        "layers": model.config.num_hidden_layers,
        "epochs": epochs,
        "batch_words": batch_words,
        "learn_rate": learn_rate,
        "head_scale": head_scale,
        "seed": seed,
        "history": history,
        "dev": best_dev,
        "test": test_scores,
        "train_seconds": train_seconds,
        "words_per_second": words_per_second,
        "versions": {name: version(name) for name in ("spacy", "torch", "transformers")},
    }


def show(scores: dict[str, float]) -> str:
    return " ".join(f"{key.upper()} {value:.4f}" for key, value in scores.items())


def say(line: str) -> None:
    tqdm.write(line)  # above the progress bar
    sys.stdout.flush()  # a log file shows an epoch when it ends, not when the run does


def read_docs(path: Path, limit: int = 0) -> list[Doc]:
    """Gold sentences as Docs of their own, as spaCy's gold_preproc makes them.

    limit (int): First documents only, 0 for all.
    """
    # A blank pipeline's vocab, since the language plays no part with gold tokens.
    docs = list(DocBin().from_disk(path).get_docs(spacy.blank("xx").vocab))[: limit or None]
    return [
        part
        for doc in docs
        for part in ([s.as_doc() for s in doc.sents] if doc.has_annotation("SENT_START") else [doc])
    ]


def load_peer(
    encoder: str,
    train: Iterable[Doc],
    annotation: Annotation,
    layers: int | None = None,
    characters: bool = False,
) -> Peer:
    labels = sorted(set(chain.from_iterable(map(annotation.read, train))) - {""})
    if not labels:
        raise ValueError("the training data has no labels")
    tokenizer = AutoTokenizer.from_pretrained(encoder, use_fast=True)
    whole = AutoConfig.from_pretrained(encoder).num_hidden_layers
    if layers is not None and layers > whole:
        raise ValueError(f"the encoder has {whole} layers, of which {layers} are asked for")
    model = AutoModelForTokenClassification.from_pretrained(
        encoder,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        **({} if layers is None else {"num_hidden_layers": layers}),
    )
    model.float()  # weights that are float16 on disk may be loaded as such
    max_pieces = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    single = PieceTokenizer.from_transformers(tokenizer, encoder) if characters else None
    return Peer(annotation, model, tokenizer, labels, max_pieces, single)


def encode(peer: Peer, docs: Iterable[Doc]) -> list[Encoded]:
    if peer.single is None:
        encoded = encode_words(peer, docs)
    else:
        encoded = [encode_characters(peer.single, doc, peer.max_pieces) for doc in docs]
    without = sum(sent.firsts.count(None) for sent in encoded)
    if without:
        warnings.warn(
            f"{without} words have no piece (cut off after {peer.max_pieces} pieces, or nothing "
            "that the tokenizer keeps): they are not trained on and get no label",
            stacklevel=2,
        )
    return encoded


def encode_characters(tokenizer: PieceTokenizer, doc: Doc, max_pieces: int) -> Encoded:
    spaced = [word.i == 0 or bool(word.nbor(-1).whitespace_) for word in doc]
    ids, lengths, heads = tokenizer.encode([word.text for word in doc], spaced)
    start, end = tokenizer.special["start"], tokenizer.special["end"]
    kept = max_pieces - 2
    firsts = (np.cumsum(lengths) - lengths + heads + 1).tolist()
    return Encoded(
        [start, *ids[:kept].tolist(), end], [first if first <= kept else None for first in firsts]
    )


def encode_words(peer: Peer, docs: Iterable[Doc]) -> list[Encoded]:
    sentences = [[word.text for word in doc] for doc in docs]
    encodings = peer.tokenizer(
        sentences, is_split_into_words=True, truncation=True, max_length=peer.max_pieces
    )
    encoded = []
    for i, words in enumerate(sentences):
        firsts: list[int | None] = [None] * len(words)
        # Backwards, so that a word's first piece is the one that stays.
        for place, word in reversed(list(enumerate(encodings.word_ids(i)))):
            if word is not None:
                firsts[word] = place
        encoded.append(Encoded(encodings["input_ids"][i], firsts))
    return encoded


def encode_labels(peer: Peer, doc: Doc, sent: Encoded) -> list[int]:
    """The target of each piece: a word's label on its first one, nothing on the others."""
    ids = peer.model.config.label2id
    targets = [IGNORED] * len(sent.pieces)
    for first, label in zip(sent.firsts, peer.annotation.read(doc), strict=True):
        if first is not None:
            targets[first] = ids.get(label, IGNORED)
    return targets


def shuffled_batches(
    docs: Sequence[Doc], encoded: Sequence[Encoded], batch_words: int, rng: random.Random
) -> list[list[int]]:
    """The indices of one epoch's batches: in a random order, each of similar lengths."""
    order = list(range(len(docs)))
    rng.shuffle(order)
    batches: list[list[int]] = []
    for bucket in by_words(order, docs, BUCKET_BATCHES * batch_words):
        bucket.sort(key=lambda i: len(encoded[i].pieces))
        batches.extend(by_words(bucket, docs, batch_words))
    rng.shuffle(batches)
    return batches


def by_words(order: Iterable[int], docs: Sequence[Sized], max_words: int) -> Iterator[list[int]]:
    """Cut an order of Docs (or lists of words) into groups of at most `max_words` words, or of one
    that is longer.
    """
    group: list[int] = []
    words = 0
    for i in order:
        if group and words + len(docs[i]) > max_words:
            yield group
            group, words = [], 0
        group.append(i)
        words += len(docs[i])
    if group:
        yield group


def collate(peer: Peer, batch: Sequence[Encoded]) -> dict[str, torch.Tensor]:
    inputs = {
        "input_ids": pad([sent.pieces for sent in batch], peer.tokenizer.pad_token_id),
        "attention_mask": pad([[1] * len(sent.pieces) for sent in batch], 0),
    }
    return {name: values.to(peer.model.device) for name, values in inputs.items()}


def pad(rows: Iterable[list[int]], value: int) -> torch.Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def make_optimizer(
    model: PreTrainedModel, learn_rate: float, head_scale: float
) -> torch.optim.Optimizer:
    """AdamW; biases and norms (the parameters with one dimension) do not decay."""
    groups = []
    for is_head, rate in ((False, learn_rate), (True, learn_rate * head_scale)):
        own = [p for n, p in model.named_parameters() if n.startswith("classifier.") == is_head]
        groups += [
            {"params": [p for p in own if p.ndim > 1], "lr": rate, "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in own if p.ndim <= 1], "lr": rate, "weight_decay": 0.0},
        ]
    try:
        return torch.optim.AdamW(groups, lr=learn_rate, fused=True)
    except RuntimeError:  # older releases of torch have no fused step on the CPU
        return torch.optim.AdamW(groups, lr=learn_rate)


def evaluate(peer: Peer, docs: Sequence[Doc], batch_words: int) -> dict[str, float]:
    return peer.annotation.score(predict(peer, docs, batch_words), docs)


@torch.inference_mode()
def predict(peer: Peer, docs: Sequence[Doc], batch_words: int) -> list[Doc]:
    """Annotated copies of the Docs, in their order; the batches are sorted by length."""
    peer.model.eval()
    encoded = encode(peer, docs)
    order = sorted(range(len(docs)), key=lambda i: len(encoded[i].pieces))
    predicted: dict[int, Doc] = {}
    for batch in by_words(order, docs, batch_words):
        logits = peer.model(**collate(peer, [encoded[i] for i in batch])).logits
        for i, ids in zip(batch, logits.argmax(-1).tolist(), strict=True):
            labels = [
                "" if first is None else peer.labels[ids[first]] for first in encoded[i].firsts
            ]
            predicted[i] = peer.annotation.write(docs[i], labels)
    return [predicted[i] for i in range(len(docs))]


if __name__ == "__main__":
    app()
