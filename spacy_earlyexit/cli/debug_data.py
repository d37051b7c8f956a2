"""python -m spacy earlyexit debug-data"""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from wasabi import MESSAGES, Printer, msg

from .info import format_block, shorten
from .options import CodePath
from .tables import print_table

if TYPE_CHECKING:
    from spacy.tokens import Doc
    from spacy.training import Example
    from thinc.api import Config

    from ..model.pieces import PieceTokenizer
    from ..model.units import SpanGetter
    from ..pipeline.tasks import Task
    from ..pipeline.transformer import EarlyExitTransformer

# As in spaCy's debug data: fewer gold examples than this are few for a label.
FEW = 50
LABELS_SHOWN = 30
EXAMPLES_SHOWN = 5
BATCH = 256


@dataclass
class TaskStats:
    """Gold of one task in one corpus, on the words (all tokens but whitespace).

    n_docs_without (int): Documents that have words but no gold.
    n_words (int): Words with gold.
    labels (Counter): How often each label occurs: words, or for B- and I- classes the entities.
    """

    n_docs_without: int = 0
    n_words: int = 0
    labels: Counter[str] = field(default_factory=Counter)


@dataclass
class UnitStats:
    """What the encoder will see of one corpus.

    n_units, n_long (int): Units from the span getter, and those that the encoder can't take whole.
    n_windows (int): Windows that the long ones are cut into.
    longest (int): Pieces of the longest unit, special pieces not counted.
    without_pieces, unknown, too_long (Counter): Words that have no sub-words at all, words with
        an unknown piece (the former left out), and words that lose their last pieces.
    """

    n_units: int = 0
    n_long: int = 0
    n_windows: int = 0
    longest: int = 0
    without_pieces: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    too_long: Counter[str] = field(default_factory=Counter)


@dataclass
class CorpusStats:
    """One corpus. units is None where the span getter can't be applied."""

    n_docs: int
    n_words: int
    n_spaces: int
    tasks: dict[str, TaskStats]
    units: UnitStats | None = None


def debug_data_cli(
    ctx: typer.Context,
    config_path: Annotated[Path, typer.Argument(help="Training config")],
    code_path: CodePath = None,
    ignore_warnings: Annotated[
        bool, typer.Option("--ignore-warnings", "-IW", help="Only show figures and errors")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-V", help="Show all labels")] = False,
    no_format: Annotated[
        bool, typer.Option("--no-format", "-NF", help="Don't pretty-print the results")
    ] = False,
) -> None:
    """Check the training and dev data of a config against its earlyexit_transformer: gold and
    labels of each task, units that the encoder can't take whole, words that its tokenizer does
    not know. Settings of the config can be overridden, such as --paths.train train.spacy.
    """
    from click import ClickException
    from spacy.cli._util import import_code, parse_config_overrides

    try:
        overrides = parse_config_overrides(ctx.args)
    except ClickException as error:  # of click, where Typer has a copy of its own
        msg.fail(error.format_message(), exits=1)
    import_code(code_path)
    debug_data(
        config_path,
        config_overrides=overrides,
        ignore_warnings=ignore_warnings,
        verbose=verbose,
        no_format=no_format,
        silent=False,
    )


def debug_data(
    config_path: Path,
    *,
    config_overrides: Mapping[str, Any] | None = None,
    ignore_warnings: bool = False,
    verbose: bool = False,
    no_format: bool = True,
    silent: bool = True,
) -> dict[str, CorpusStats]:
    """See debug_data_cli. Exits with 1 if there is an error, as spaCy's debug data does.

    config_path (Path): The training config.
    config_overrides (Optional[Mapping[str, Any]]): Settings by dotted name.
    ignore_warnings, verbose, no_format (bool): How to print.
    silent (bool): Don't print.
    RETURNS (Dict[str, CorpusStats]): By "train" and "dev".
    """
    msg = Printer(no_print=silent, pretty=not no_format, ignore_warnings=ignore_warnings)
    from spacy.cli._util import show_validation_error
    from spacy.schemas import ConfigSchemaTraining
    from spacy.util import load_config, load_model_from_config, registry, resolve_dot_names

    from ..model.architecture import settings_of
    from ..pipeline.finding import find_transformer
    from ..pipeline.tasks import GoldLabels, get_task

    msg.divider("Data file validation")
    with _exit_on_error(msg, f"Can't build the pipeline of {config_path}"):
        with show_validation_error(config_path):
            raw = load_config(config_path, overrides=dict(config_overrides or {}))
            nlp = load_model_from_config(raw)
            config = nlp.config.interpolate()
            settings = registry.resolve(config["training"], schema=ConfigSchemaTraining)  # type: ignore[arg-type]
        transformer = find_transformer(nlp)
        for consumer in transformer.consumers if transformer.tasks else []:
            consumer.check(transformer)
    msg.good(f"Pipeline built: {', '.join(nlp.pipe_names)}")

    examples: dict[str, list[Example]] = {}
    for corpus in ("train", "dev"):
        dot_name = settings[f"{corpus}_corpus"]
        with _exit_on_error(msg, f"Can't read the {corpus} corpus [{dot_name}]"):
            (reader,) = resolve_dot_names(_only(config, dot_name), [dot_name])
            examples[corpus] = list(reader(nlp))
        if not examples[corpus]:
            msg.fail(f"No documents in the {corpus} corpus [{dot_name}]", exits=1)
    with _exit_on_error(msg, f"Can't tell the tasks of '{transformer.name}'"):
        names = transformer.find_tasks(GoldLabels(lambda: examples["train"], transformer.name))
        tasks = {name: get_task(name, transformer.name) for name in names}
    msg.good("Corpora loaded")

    with _exit_on_error(msg, "Can't load the encoder's tokenizer"):
        block = config["initialize"]["components"].get(transformer.name, {})
        init = registry.resolve({"settings": block})["settings"]
        if init.get("init_from") is not None:
            transformer.initialize(lambda: examples["train"], nlp=nlp, **init)
        tokenizer, n_positions = load_tokenizer(transformer)
    known = transformer.label_data or init.get("labels") or {}
    origin = init.get("init_from") or settings_of(transformer.model).name
    msg.good(f"Tokenizer loaded from {origin}; a unit holds {n_positions - 2} pieces")

    get_spans = transformer.model.layers[0].attrs["get_spans"]
    stats = {corpus: count_gold(own, tasks) for corpus, own in examples.items()}
    problem = ""
    for corpus, own in examples.items():
        try:
            docs = [eg.predicted for eg in own]
            stats[corpus].units = count_units(docs, tokenizer, get_spans, n_positions)
        except ValueError as error:
            problem = f"{corpus}: {error}"

    getter = config["components"][transformer.name]["model"]["get_spans"]
    _print_corpora(msg, stats, f"units ({format_block(getter)})", n_positions - 2)
    if problem and settings["annotating_components"]:
        annotating = ", ".join(settings["annotating_components"])
        msg.warn(
            f"Units not checked: {format_block(getter)} needs annotation that is not in the "
            f"corpus, perhaps that of the annotating components ({annotating})",
            problem,
        )
    elif problem:
        msg.fail(f"{format_block(getter)} can't be applied to the corpus", problem)
    for name, task in tasks.items():
        _print_task(msg, name, task, stats, known.get(name), transformer.name, verbose)
    _print_summary(msg)
    return stats


@contextmanager
def _exit_on_error(msg: Printer, title: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        msg.fail(title, str(error), exits=1)


def _only(config: Mapping[str, Any], dot_name: str) -> "Config":
    """The part of the config that a corpus is in, without its siblings: what is wrong with them
    should not be put down to it.
    """
    from thinc.api import Config

    section, *path = dot_name.split(".")
    part = config[section]
    if len(path) == 1 and path[0] in part and not any(key.startswith("@") for key in part):
        part = {path[0]: part[path[0]]}
    return Config({section: part})


def load_tokenizer(transformer: "EarlyExitTransformer") -> tuple["PieceTokenizer", int]:
    """The encoder's tokenizer and limit, without loading weights.

    transformer (EarlyExitTransformer): If it has weights, its own tokenizer is taken.
    RETURNS (Tuple[PieceTokenizer, int]): The tokenizer, and the most pieces of a unit with its two
        special ones.
    RAISES (OSError): If the encoder can't be reached.
    RAISES (ValueError): If it is not supported.
    """
    pieces = transformer.model.layers[0]
    if pieces.shims[0]._model is None:
        pieces.initialize()
    return pieces.shims[0]._model, pieces.attrs["max_positions"]


def count_gold(examples: Sequence["Example"], tasks: Mapping[str, "Task"]) -> CorpusStats:
    """Count words and gold.

    examples (Sequence[Example]): The corpus.
    tasks (Mapping[str, Task]): The tasks by name.
    RETURNS (CorpusStats): Without units.
    """
    is_word = [[not token.is_space for token in eg.predicted] for eg in examples]
    n_words = sum(map(sum, is_word))
    return CorpusStats(
        n_docs=len(examples),
        n_words=n_words,
        n_spaces=sum(map(len, is_word)) - n_words,
        tasks={name: _count_task(examples, is_word, task) for name, task in tasks.items()},
    )


def _count_task(
    examples: Sequence["Example"], is_word: Sequence[Sequence[bool]], task: "Task"
) -> TaskStats:
    stats = TaskStats()
    classes: Counter[str] = Counter()
    for example, words in zip(examples, is_word, strict=True):
        gold = [c for c, word in zip(task.gold(example), words, strict=True) if word]
        known = [c for c in gold if c is not None]
        stats.n_words += len(known)
        stats.n_docs_without += bool(gold and not known)
        classes.update(known)
    labels = task.labels(examples)
    names = set(task.classes(labels))
    for label in labels:  # also those that only whitespace has, which count 0
        begin = f"B-{label}"
        stats.labels[label] = classes[begin if begin in names else label]
    return stats


def count_units(
    docs: Iterable["Doc"], tokenizer: "PieceTokenizer", get_spans: "SpanGetter", n_positions: int
) -> UnitStats:
    """Cut documents into pieces, as the encoder will get them, and look for trouble.

    docs (Iterable[Doc]): The documents, with the tokens that training will see.
    tokenizer (PieceTokenizer): The encoder's.
    get_spans (SpanGetter): Proposes the units.
    n_positions (int): The most pieces of a unit with its two special ones.
    RETURNS (UnitStats): The counts.
    RAISES (ValueError): If the span getter can't be applied.
    """
    import numpy as np
    from spacy.util import minibatch

    from ..model.pieces import encode_docs
    from ..model.units import cut_windows

    stats = UnitStats()
    capacity = n_positions - 2
    unknown: Counter[str] = Counter()
    for batch in minibatch(docs, BATCH):
        # Without a limit nothing is cut, so that the true lengths are seen.
        pieces = encode_docs(batch, tokenizer, get_spans, sys.maxsize)
        words = pieces.row_word >= 0
        lengths = np.bincount(pieces.row_word[words], minlength=len(pieces.word_row))
        units = np.diff(pieces.unit_starts) - 2
        # What is too long is judged by the words' own limit first, as when units are cut.
        for unit in np.flatnonzero(units > capacity):
            own = np.minimum(lengths[slice(*pieces.word_starts[unit : unit + 2])], capacity)
            windows = len(cut_windows(own, capacity))
            stats.n_long += windows > 1
            stats.n_windows += windows if windows > 1 else 0
        stats.n_units += len(units)
        stats.longest = max([stats.longest, *units.tolist()])
        is_unknown = np.zeros(len(lengths), dtype=bool)
        is_unknown[pieces.row_word[words & (pieces.ids == tokenizer.special["unk"])]] = True
        for counter, chosen in ((unknown, is_unknown), (stats.too_long, lengths > capacity)):
            for i in np.flatnonzero(chosen & pieces.owned):
                counter[batch[pieces.word_doc[i]][int(pieces.word_token[i])].text] += 1
    texts = list(unknown)
    for text, nothing in zip(texts, tokenizer.leaves_nothing(texts), strict=True):
        (stats.without_pieces if nothing else stats.unknown)[text] = unknown[text]
    return stats


# --- printing ------------------------------------------------------------------------------


def _print_corpora(
    msg: Printer, stats: Mapping[str, CorpusStats], unit_name: str, capacity: int
) -> None:
    msg.divider("Corpora")

    def units(get: Callable[[UnitStats], int]) -> list[str]:
        return ["-" if own.units is None else f"{get(own.units):,}" for own in stats.values()]

    spaces = [
        f"{own.n_spaces:,} ({own.n_spaces / max(own.n_spaces + own.n_words, 1):.1%})"
        for own in stats.values()
    ]
    rows = [
        ("documents", *(f"{own.n_docs:,}" for own in stats.values())),
        ("words", *(f"{own.n_words:,}" for own in stats.values())),
        ("whitespace tokens (not encoded)", *spaces),
        (unit_name, *units(lambda u: u.n_units)),
        ("longest unit, in pieces", *units(lambda u: u.longest)),
        ("units that will be cut", *units(lambda u: u.n_long)),
        ("words without sub-words", *units(lambda u: u.without_pieces.total())),
        ("other words with unknown pieces", *units(lambda u: u.unknown.total())),
    ]
    _table(msg, rows, ("", *stats))
    for corpus, own in stats.items():
        if own.units is not None:
            _print_units(msg, corpus, own.units, capacity)


def _print_units(msg: Printer, corpus: str, units: UnitStats, capacity: int) -> None:
    if units.n_long:
        msg.warn(
            f"{corpus}: {units.n_long:,} of {units.n_units:,} units are longer than the "
            f"{capacity} pieces that the encoder takes and will be cut into {units.n_windows:,} "
            f"overlapping windows (the longest has {units.longest:,} pieces)"
        )
    else:
        msg.good(f"{corpus}: the encoder can take every unit whole")
    if units.too_long:
        msg.warn(
            f"{corpus}: {_plural(units.too_long.total(), 'word')} longer than {capacity} pieces "
            f"will lose the last of them: {_examples(units.too_long)}"
        )
    if units.without_pieces:
        msg.warn(
            f"{corpus}: {_plural(units.without_pieces.total(), 'word')} without sub-words will "
            f"become one unknown piece each: {_examples(units.without_pieces)}"
        )
    else:
        msg.good(f"{corpus}: every word has sub-words")
    if units.unknown:
        msg.info(f"{corpus}: most frequent words with unknown pieces: {_examples(units.unknown)}")


def _print_task(
    msg: Printer,
    name: str,
    task: "Task",
    stats: Mapping[str, CorpusStats],
    known: Sequence[str] | None,
    component: str,
    verbose: bool,
) -> None:
    """known (Optional[Sequence[str]]): Labels that are settled before training starts."""
    from ..errors import Errors

    msg.divider(f"Task: {name}")
    train, dev = stats["train"].tasks[name], stats["dev"].tasks[name]
    rows = [
        ("documents without gold", f"{train.n_docs_without:,}", f"{dev.n_docs_without:,}"),
        ("words with gold", f"{train.n_words:,}", f"{dev.n_words:,}"),
    ]
    _table(msg, rows, ("", "train", "dev"))
    if not train.labels:
        error = Errors.E013.format(
            n_docs=stats["train"].n_docs,
            what=f"'{name}' ({task.annotation})",
            names=name,
            others="",
            name=component,
        )
        msg.fail(f"No label of '{name}' in the train corpus", error)
        return
    labels = sorted(
        {**train.labels, **dev.labels},
        key=lambda label: (-train.labels[label], -dev.labels[label], label),
    )
    shown = labels if verbose else labels[:LABELS_SHOWN]
    counts = [(label, f"{train.labels[label]:,}", f"{dev.labels[label]:,}") for label in shown]
    _table(msg, counts, ("label", "train", "dev"))
    if len(shown) < len(labels):
        msg.text(f"… and {len(labels) - len(shown)} more (--verbose shows all)")

    few = {label: n for label, n in train.labels.most_common() if n < FEW}
    if few:
        msg.warn(
            f"Low number of examples (fewer than {FEW}) in the train corpus for "
            f"{_plural(len(few), 'label')} of '{name}': {_counted(few)}"
        )
    else:
        msg.good(f"Good amount of examples for all labels of '{name}'")
    learned = set(train.labels if known is None else known)
    if known is not None:
        ignored = {label: n for label, n in train.labels.most_common() if label not in learned}
        if ignored:
            msg.warn(
                f"Labels of '{name}' in the train corpus that the component is not initialised "
                f"with, and will not learn: {_counted(ignored)}"
            )
    lacking = {label: n for label, n in dev.labels.most_common() if label not in learned}
    if not dev.n_words:
        msg.warn(f"No gold for '{name}' in the dev corpus: it can't be scored")
    elif lacking:
        msg.warn(
            f"Labels of '{name}' in the dev corpus that are not learned, since "
            f"{'train' if known is None else 'the initialisation'} lacks them: {_counted(lacking)}"
        )
    else:
        msg.good(f"All labels of '{name}' in the dev corpus are learned")


def _print_summary(msg: Printer) -> None:
    msg.divider("Summary")
    good, warn, fail = (msg.counts[kind] for kind in (MESSAGES.GOOD, MESSAGES.WARN, MESSAGES.FAIL))
    if good:
        msg.good(f"{_plural(good, 'check')} passed")
    if warn:
        msg.warn(_plural(warn, "warning"))
    if fail:
        msg.fail(_plural(fail, "error"))
        sys.exit(1)


def _plural(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _counted(labels: Mapping[str, int]) -> str:
    return shorten(f"'{label}' ({n})" for label, n in labels.items())


def _examples(words: Counter[str]) -> str:
    """The most frequent words, escaped where they can't be seen."""
    most = words.most_common(EXAMPLES_SHOWN)
    found = ", ".join(f"{_short(word)!r} ({n})" for word, n in most)
    return found + (", …" if len(words) > len(most) else "")


def _short(word: str) -> str:
    return word if len(word) <= 30 else f"{word[:29]}…"


def _table(msg: Printer, rows: Sequence[tuple[str, ...]], header: tuple[str, ...]) -> None:
    if not msg.no_print:
        print_table(rows, header, "l" + "r" * (len(header) - 1))
