"""Systems side by side: each in a process of its own, timed in turns, its accuracy in the same row.

A row is a system with a setting on a corpus. Its process loads the system and the gold Docs, and
then does what it is told, one process at a time: run all Docs once, run chosen Docs one by one,
score. So a slow minute of the machine hits all rows, and peak memory is each one's own.
"""

import gc
import importlib
import multiprocessing
import os
import platform
import statistics
import subprocess
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import spacy
import torch
from spacy.cli._util import import_code
from spacy.tokens import Doc
from spacy.training import Example
from tqdm import tqdm

from ..errors import Errors
from ..pipeline.finding import bare_doc, find_transformer, segmenters
from .scores import component_scores, cpu_name, depth_scores, read_examples

FORMAT = "spacy-earlyexit.benchmark.v1"
SPACY_SYSTEM = "spacy_earlyexit.evaluation.benchmark:SpacySystem"
# Sentences that people feel the latency of.
LATENCY_WORDS = range(18, 23)
# How much of the data the best batch size is looked for on.
SWEEP_DOCS = 200
_SCORES = ("ents_f", "tag_acc", "pos_acc", "token_f")


class System(Protocol):
    """What a process runs. Made with the row's `settings` as keyword arguments."""

    def prepare(self, docs: Sequence[Doc]) -> Any:
        """RETURNS (Any): The Docs, gold tokens without annotation, as `run` takes them; not timed,
        made anew for every run.
        """

    def run(self, prepared: Any) -> Any:
        """RETURNS (Any): Predictions for all of them; this is what is timed."""

    def annotated(self, docs: Sequence[Doc], predictions: Any) -> list[Doc]:
        """RETURNS (List[Doc]): The predictions as annotated Docs, for the scores."""


@dataclass
class Row:
    """One row of the table.

    system, setting, corpus (str): What is run on what.
    test (str): The test data (.spacy).
    kind (str): Module and class of the System, "module:Class".
    settings (Dict[str, Any]): What the class is made with.
    baseline (Optional[str]): The system and setting ("name, setting") of the same corpus that
        wall_speedup compares with.
    others (Sequence[Dict[str, Any]]): What the class is made with for the same system of other
        seeds: each runs once, and the row's scores are means over all.
    """

    system: str
    setting: str
    corpus: str
    test: str
    kind: str = SPACY_SYSTEM
    settings: dict[str, Any] = field(default_factory=dict)
    baseline: str | None = None
    others: Sequence[dict[str, Any]] = ()

    @property
    def name(self) -> str:
        return f"{self.system}, {self.setting}" if self.setting else self.system


class SpacySystem:
    """A spaCy pipeline, from Doc to Doc through nlp.pipe; one that makes words of characters gets
    the text.

    path (str): What spacy.load takes.
    exit (Optional[str]): Exit setting of its earlyexit_transformer, if it has one.
    precision (str): That of its earlyexit_transformer.
    batch_sizes (Sequence[int]): Tried out on part of the data, the fastest is taken. Empty: the
        pipeline's own.
    code (Optional[str]): Python file with registered functions to import first.
    """

    def __init__(
        self,
        path: str,
        exit: str | None = None,
        precision: str = "float32",
        batch_sizes: Sequence[int] = (),
        code: str | None = None,
    ):
        import_code(code)
        self.nlp = spacy.load(path)
        self.batch_sizes = list(batch_sizes)
        self.batch_size: int | None = None
        self.makes_words = bool(segmenters(self.nlp))
        try:
            transformer = find_transformer(self.nlp)
        except ValueError:
            return
        transformer.exit = exit
        transformer.precision = precision

    def prepare(self, docs: Sequence[Doc]) -> list[Doc]:
        if self.makes_words:
            return [self.nlp.make_doc(doc.text) for doc in docs]
        return [bare_doc(doc, sentences=False, vocab=self.nlp.vocab) for doc in docs]

    def run(self, prepared: list[Doc]) -> list[Doc]:
        if self.batch_sizes and self.batch_size is None and len(prepared) > 1:
            self.batch_size = self._sweep(prepared[:SWEEP_DOCS])
        return list(self.nlp.pipe(prepared, batch_size=self.batch_size))

    def annotated(self, docs: Sequence[Doc], predictions: list[Doc]) -> list[Doc]:
        return predictions

    def scores(self, examples: Sequence[Example]) -> dict[str, float]:
        """RETURNS (Dict[str, float]): What counts for the components, such as {"dep_las": 0.9}."""
        return component_scores(self.nlp.pipeline, self.nlp, examples)[0]

    def _sweep(self, docs: list[Doc]) -> int:
        seconds = {}
        for size in self.batch_sizes:
            own = self.prepare(docs)
            start = time.perf_counter()
            list(self.nlp.pipe(own, batch_size=size))
            seconds[size] = time.perf_counter() - start
        return min(seconds, key=lambda size: seconds[size])


def _serve(connection: Connection, row: Row, limit: int, threads: int) -> None:
    """The process of a row: loads, says how it went, then answers until it is told to stop."""
    try:
        torch.set_num_threads(threads)
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        os.environ["RAYON_NUM_THREADS"] = str(threads)  # the tokenizers' threads
        module, _, name = row.kind.partition(":")
        try:
            system: System = getattr(importlib.import_module(module), name)(**row.settings)
            blank, test = spacy.blank("xx"), Path(row.test)
            examples = read_examples(blank, test, gold_preproc=True, limit=limit)
        except (OSError, ValueError) as error:  # the message says it all
            connection.send(("failed", str(error)))
            return
        docs = [bare_doc(eg.predicted, sentences=False) for eg in examples]
        connection.send(("loaded", sum(map(len, docs))))
        predictions: Any = None
        while True:
            order = connection.recv()
            answer: Any
            if order == "run":
                prepared = system.prepare(docs)
                gc.collect()  # so that what earlier runs left is not collected in this one
                start = time.perf_counter()
                predictions = system.run(prepared)
                answer = time.perf_counter() - start
            elif order == "one by one":
                answer = []
                for doc in docs:
                    if len(doc) in LATENCY_WORDS:
                        prepared = system.prepare([doc])
                        start = time.perf_counter()
                        system.run(prepared)
                        answer.append(time.perf_counter() - start)
            elif order == "score":
                done = system.annotated(docs, predictions)
                answer = _scores(
                    [Example(x, eg.reference) for x, eg in zip(done, examples, strict=True)], system
                )
                answer["batch_size"] = getattr(system, "batch_size", None)
            elif order == "memory":
                answer = peak_memory()
            else:
                return
            connection.send((order, answer))
    except Exception:
        connection.send(("failed", traceback.format_exc()))


def peak_memory() -> float:
    """RETURNS (float): The most memory that this process has had, in MB; loading is part of it.
    RAISES (RuntimeError): If psutil is needed here and not installed.
    """
    try:
        # Not ru_maxrss, which begins with that of the process that started this one.
        status = Path("/proc/self/status").read_text(encoding="utf8")
        return int(status.partition("VmHWM:")[2].split()[0]) / 2**10
    except (OSError, IndexError):  # not on Linux
        pass
    if platform.system() == "Darwin":
        return importlib.import_module("resource").getrusage(0).ru_maxrss / 2**20
    try:
        info = importlib.import_module("psutil").Process().memory_info()
    except ImportError:
        raise RuntimeError(Errors.E082) from None
    return getattr(info, "peak_wset", info.rss) / 2**20  # the former on Windows


def _scores(examples: Sequence[Example], system: Any = None) -> dict[str, Any]:
    """Scores in [0, 1] of what the gold annotates and the system looks for, and the MAC speed-up if
    there is one.

    system (Any): Whose own `scores` are taken if it has any; else those of what it annotates.
    """
    scores = system.scores(examples) if hasattr(system, "scores") else _annotation_scores(examples)
    depth = depth_scores(examples)
    if depth["exit_layer_mean"]:
        scores["mac_speedup"] = depth["exit_speedup"]
    return scores


def _annotation_scores(examples: Sequence[Example]) -> dict[str, Any]:
    from spacy.scorer import Scorer, get_ner_prf

    found: dict[str, Any] = {}
    predicted = [eg.predicted for eg in examples if len(eg.predicted)]
    if any(doc.has_annotation("ENT_IOB") for doc in predicted):
        found["ents_f"] = get_ner_prf(examples)["ents_f"]
    for attribute in ("tag", "pos"):
        if any(doc.has_annotation(attribute.upper()) for doc in predicted):
            found.update(Scorer.score_token_attr(examples, attribute))
    return {key: value for key, value in found.items() if key in _SCORES and value is not None}


class Worker:
    """The process of a row, seen from outside."""

    def __init__(self, row: Row, limit: int, threads: int):
        context = multiprocessing.get_context("spawn")
        self.row = row
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, row, limit, threads))
        self.process.start()
        self.n_words: int = self._answer()

    def ask(self, order: str) -> Any:
        """order (str): "run", "one by one", "score" or "memory". RETURNS (Any): The answer.
        RAISES (RuntimeError): If the process failed; the message has its traceback.
        """
        self.connection.send(order)
        return self._answer()

    def _answer(self) -> Any:
        try:
            kind, answer = self.connection.recv()
        except EOFError:
            kind, answer = "failed", "it ended without a word (out of memory?)"
        if kind == "failed":
            self.stop()
            raise RuntimeError(f"{self.row.name} ({self.row.corpus}) failed:\n{answer}")
        return answer

    def stop(self) -> None:
        if self.process.is_alive():
            self.connection.send("stop")
        self.process.join(10)
        self.process.kill()


def benchmark(
    rows: Sequence[Row],
    *,
    repeats: int = 5,
    limit: int = 0,
    threads: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Run all rows, corpus by corpus.

    rows (Sequence[Row]): What to run.
    repeats (int): Timed rounds after a warm-up, in each of which every row runs once.
    limit (int): First documents only, 0 for all.
    threads (int): torch's threads in each process; 0 for all cores.
    progress (bool): Show a progress bar.
    RETURNS (Dict[str, Any]): Machine, threads, versions, date and commit, and `rows`: system,
        setting, corpus, scores (all that count for its components), score of them (F1 of entities,
        else accuracy) and tag_acc (means over so many seeds: the last entry), words_per_second
        (median), spread (least and greatest), mac_speedup, wall_speedup (to the row's baseline),
        peak_mb, latency_ms (median over the sentences of 18 to 22 words, of each its median).
    RAISES (RuntimeError): If a system fails.
    """
    peak_memory()  # says what is missing before anything runs
    threads = threads or os.cpu_count() or 1
    done: list[dict[str, Any]] = []
    for corpus in dict.fromkeys(row.corpus for row in rows):
        own = [row for row in rows if row.corpus == corpus]
        done += _run_corpus(own, repeats, limit, threads, progress)
    return {"format": FORMAT, **header(threads), "repeats": repeats, "limit": limit, "rows": done}


def _run_corpus(
    rows: Sequence[Row], repeats: int, limit: int, threads: int, progress: bool
) -> list[dict[str, Any]]:
    workers: list[Worker] = []
    steps = len(rows) * (2 + 2 * repeats) + sum(len(row.others) for row in rows)
    try:
        hidden = None if progress else True
        with tqdm(total=steps, unit="run", desc=rows[0].corpus, disable=hidden, leave=False) as bar:
            for row in rows:
                workers.append(Worker(row, limit, threads))
                bar.update()
            scores = []
            for worker in workers:
                worker.ask("run")
                worker.ask("one by one")
                scores.append(worker.ask("score"))
                bar.update()
            seconds: list[list[float]] = [[] for _ in workers]
            single: list[list[list[float]]] = [[] for _ in workers]
            for _ in range(repeats):
                for worker, times in zip(workers, seconds, strict=True):
                    times.append(worker.ask("run"))
                    bar.update()
                for worker, one_by_one in zip(workers, single, strict=True):
                    one_by_one.append(worker.ask("one by one"))
                    bar.update()
            peaks = [worker.ask("memory") for worker in workers]
            others: list[list[dict[str, Any]]] = [[] for _ in rows]
            for row, found in zip(rows, others, strict=True):
                for settings in row.others:
                    workers.append(Worker(replace(row, settings=settings), limit, threads))
                    workers[-1].ask("run")
                    found.append(workers[-1].ask("score"))
                    workers.pop().stop()
                    bar.update()
    finally:
        for worker in workers:
            worker.stop()
    results: list[dict[str, Any]] = []
    medians = [statistics.median(times) for times in seconds]
    median_of = dict(zip([row.name for row in rows], medians, strict=True))
    for i, row in enumerate(rows):
        n_words = workers[i].n_words
        median = medians[i]
        score = scores[i]
        mac_speedup, batch_size = score.pop("mac_speedup", None), score.pop("batch_size")
        latency = np.median(np.asarray(single[i]), axis=0) if single[i] and single[i][0] else []
        base = median_of.get(row.baseline) if row.baseline else None
        seeds = [score, *others[i]]
        mean = {k: statistics.fmean(each[k] for each in seeds if k in each) for k in score}
        results.append(
            {
                "system": row.system,
                "setting": row.setting,
                "corpus": row.corpus,
                "score": next((mean[k] for k in (*_SCORES, *mean) if k in mean), None),
                "scores": mean,
                "tag_acc": mean.get("tag_acc"),
                "words_per_second": n_words / median,
                "spread": [n_words / max(seconds[i]), n_words / min(seconds[i])],
                "mac_speedup": mac_speedup,
                "wall_speedup": base / median if base else None,
                "peak_mb": peaks[i],
                "latency_ms": 1000 * float(np.median(latency)) if len(latency) else None,
                "batch_size": batch_size,
                "seeds": len(seeds),
            }
        )
    return results


def header(threads: int) -> dict[str, Any]:
    """RETURNS (Dict[str, Any]): What was measured where: machine, threads, versions, date and
    commit.
    """
    names = ("spacy-earlyexit", "spacy", "spacy-transformers", "torch", "transformers")
    return {
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "system": platform.system()},
        "threads": threads,
        "versions": {name: _version(name) for name in (*names, "onnxruntime")},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """RETURNS (Tuple[List[str], List[List[str]]]): Header and rows, as text."""
    others = list(dict.fromkeys(key for row in results["rows"] for key in _others(row)))
    columns = ["corpus", "system", "setting", "score", "tags", *others]
    columns += ["words/s", "MACs", "wall-clock", "20 words", "memory"]
    rows = []
    for row in results["rows"]:
        low, high = row["spread"]
        rows.append(
            [
                row["corpus"],
                row["system"],
                row["setting"],
                _cell(row["score"], lambda x: f"{100 * x:.2f}"),
                _cell(row["tag_acc"], lambda x: f"{100 * x:.2f}"),
                *(_cell(_others(row).get(key), lambda x: f"{100 * x:.2f}") for key in others),
                f"{row['words_per_second']:,.0f} ({low:,.0f}–{high:,.0f})",
                _cell(row["mac_speedup"], lambda x: f"{x:.2f}×"),
                _cell(row["wall_speedup"], lambda x: f"{x:.2f}×"),
                _cell(row["latency_ms"], lambda x: f"{x:.1f} ms"),
                f"{row['peak_mb']:,.0f} MB",
            ]
        )
    return columns, rows


def _others(row: Mapping[str, Any]) -> dict[str, float]:
    """The scores of a row that have no column of their own."""
    scores = row.get("scores") or {}
    shown = next((key for key in (*_SCORES, *scores) if key in scores), None)
    # The table names no other score "score" where it stands for one of these.
    named = {"tag_acc", shown if shown in _SCORES else None}
    return {key: value for key, value in scores.items() if key not in named}


def _cell(value: Any, show: Any) -> str:
    return "" if value is None else show(value)
