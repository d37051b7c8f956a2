"""Early-exit transformers for spaCy. See README.md for how to use them.

The names in `__all__` are what people import; everything else may move. They are imported when they
are first used, so that `python -m spacy`, which imports this package for its commands, stays quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .about import __version__

if TYPE_CHECKING:
    from .calibration.search import Search, calibrate
    from .conversion.accelerate import accelerate
    from .conversion.convert import convert
    from .evaluation.scores import evaluate
    from .model.criteria import FixedExit, SentenceExit, TokenExit
    from .pipeline.consumer import ExitConsumer
    from .pipeline.extensions import install_extensions, word_record
    from .pipeline.tasks import Task, TokenExtensionTask, aligned, tasks
    from .visuals.html import depth_html
    from .visuals.svg import depth_svg
    from .visuals.terminal import depth_text

_HOMES = {
    "model.criteria": ("TokenExit", "SentenceExit", "FixedExit"),
    "pipeline.consumer": ("ExitConsumer",),
    "pipeline.tasks": ("Task", "TokenExtensionTask", "aligned", "tasks"),
    "pipeline.extensions": ("install_extensions", "word_record"),
    "visuals.terminal": ("depth_text",),
    "visuals.svg": ("depth_svg",),
    "visuals.html": ("depth_html",),
    "evaluation.scores": ("evaluate",),
    "calibration.search": ("Search", "calibrate"),
    "conversion.accelerate": ("accelerate",),
    "conversion.convert": ("convert",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "ExitConsumer",
    "FixedExit",
    "Search",
    "SentenceExit",
    "Task",
    "TokenExit",
    "TokenExtensionTask",
    "__version__",
    "accelerate",
    "aligned",
    "calibrate",
    "convert",
    "depth_html",
    "depth_svg",
    "depth_text",
    "evaluate",
    "install_extensions",
    "tasks",
    "word_record",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f".{_HOME_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
