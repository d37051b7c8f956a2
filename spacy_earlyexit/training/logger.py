"""The training log: spaCy's table, with the scores that say something."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any

from spacy.training.loggers import console_logger as spacy_console_logger

if TYPE_CHECKING:
    from spacy.language import Language

# spaCy's logger shows every score but "speed" times 100; these are layers and factors.
_PLAIN = ("exit_layer_mean", "exit_speedup")
# exit_score_2x is shown as 2x; exit_score itself is the last column.
_AT_SPEEDUP = "exit_score_"

LogStep = Callable[[dict[str, Any] | None], None]


def console_logger(
    progress_bar: str | None = None,
    console_output: bool = True,
    output_file: str | Path | None = None,
) -> Callable[["Language", IO, IO], tuple[LogStep, Callable[[], None]]]:
    """Registered as spacy-earlyexit.ConsoleLogger.v1; settings as spacy.ConsoleLogger.v3. Scores of
    components that are not there get no column, and dev scores at a speed-up are named by it.

    progress_bar (Optional[str]): "train" or "eval", to follow steps in all or until evaluation.
    console_output (bool): Print the table.
    output_file (Optional[str]): Write JSONL to this file, all scores under their own names.
    """
    # Typed as bool in spaCy 3.8, but these strings are what ConsoleLogger.v3 passes on.
    setup = spacy_console_logger(progress_bar, console_output, None)  # type: ignore[arg-type]
    to_file = spacy_console_logger(None, False, output_file)  # type: ignore[arg-type]

    def setup_printer(nlp: "Language", stdout: IO, stderr: IO) -> tuple[LogStep, Callable]:
        shown = list(_shown_scores(nlp))
        weights = {_column(name): 0.0 for name in shown}
        config = {"training": {**nlp.config["training"], "score_weights": weights}}
        pipeline: Any = SimpleNamespace(config=config, pipeline=nlp.pipeline)
        log_step, finalize = setup(pipeline, stdout, stderr)
        write_step, close = to_file(nlp, stdout, stderr)

        def log(info: dict[str, Any] | None) -> None:
            if info is None:
                log_step(None)
                return
            scores = dict(info["other_scores"])
            scores |= {name: scores[name] / 100 for name in _PLAIN if scores.get(name)}
            scores |= {_column(name): scores[name] for name in shown if name in scores}
            log_step({**info, "other_scores": scores})
            write_step(info)

        def finish() -> None:
            finalize()
            close()

        return log, finish

    return setup_printer


def _shown_scores(nlp: "Language") -> Iterator[str]:
    """The scores that have a weight, of the components that are there."""
    known = {
        score
        for name in nlp.pipe_names
        for score in nlp.get_pipe_meta(name).default_score_weights or {}
    }
    every = {
        score
        for factory in ("earlyexit_ner", "earlyexit_tagger", "earlyexit_segmenter")
        for score in nlp.get_factory_meta(factory).default_score_weights or {}
    }
    for name, weight in nlp.config["training"]["score_weights"].items():
        if weight is not None and name != "exit_score" and (name in known or name not in every):
            yield name


def _column(score: str) -> str:
    return score.removeprefix(_AT_SPEEDUP)
