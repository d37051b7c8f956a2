"""The training log: spaCy's table, with depths and speed-ups as they are."""

from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from spacy.training.loggers import console_logger as spacy_console_logger

if TYPE_CHECKING:
    from spacy.language import Language

# spaCy's logger shows every score but "speed" times 100; these are layers and factors.
_PLAIN = ("exit_layer_mean", "exit_speedup")

LogStep = Callable[[dict[str, Any] | None], None]


def console_logger(
    progress_bar: str | None = None,
    console_output: bool = True,
    output_file: str | Path | None = None,
) -> Callable[["Language", IO, IO], tuple[LogStep, Callable[[], None]]]:
    """Registered as spacy-earlyexit.ConsoleLogger.v1; settings as spacy.ConsoleLogger.v3.

    progress_bar (Optional[str]): "train" or "eval", to follow steps in all or until evaluation.
    console_output (bool): Print the table.
    output_file (Optional[str]): Write JSONL to this file.
    """
    # Typed as bool in spaCy 3.8, but these strings are what ConsoleLogger.v3 passes on.
    setup = spacy_console_logger(progress_bar, console_output, output_file)  # type: ignore[arg-type]

    def setup_printer(nlp: "Language", stdout: IO, stderr: IO) -> tuple[LogStep, Callable]:
        log_step, finalize = setup(nlp, stdout, stderr)

        def log_plain(info: dict[str, Any] | None) -> None:
            if info is not None:
                scores = dict(info["other_scores"])
                for name in _PLAIN:
                    if scores.get(name) is not None:
                        scores[name] /= 100
                info = {**info, "other_scores": scores}
            log_step(info)

        return log_plain, finalize

    return setup_printer
