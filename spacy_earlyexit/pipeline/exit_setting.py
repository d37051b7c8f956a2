"""The exit setting of a transformer: given at load, then stored, then full depth."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, cast

from spacy.language import Language
from thinc.api import Model

from ..errors import Errors
from ..model.architecture import module_of
from ..model.criteria import ExitCriterion, make_criterion, read_criterion
from .meta import tell_meta

FULL_DEPTH = "full"

# Settings made with use(), by component; a context variable so that threads can differ.
_override: ContextVar[dict[int, ExitCriterion | None]] = ContextVar("earlyexit_use", default={})  # noqa: B039


class ExitSetting:
    """How words leave, and for how long. Mixed into the transformer, whose cfg keeps it."""

    name: str
    cfg: dict[str, Any]
    model: Model
    _nlp: Callable[[], Language | None]
    _exit: None | str | ExitCriterion

    if TYPE_CHECKING:

        @property
        def tasks(self) -> list[str]: ...

    @property
    def n_layers(self) -> int:
        """RETURNS (int): Layers of the encoder."""
        return module_of(self.model).encoder.config.n_layers

    @property
    def points(self) -> dict[str, dict[str, Any]]:
        """RETURNS (Dict[str, Dict]): The operating points: name to {"exit": a criterion's block,
        and what was measured for it on dev}.
        """
        return self.cfg["points"]

    @property
    def exit(self) -> None | str | ExitCriterion:
        """How words leave: None or "full" for full depth, the name of an operating point, or a
        criterion, also as a config's block. What is set here is saved with the pipeline.

        RAISES (ValueError): If it is no setting, does not fit this transformer, or could not be
            loaded again.
        """
        return self._exit

    @exit.setter
    def exit(self, value: None | str | ExitCriterion | dict[str, Any]) -> None:
        self.resolve(value)
        if value is not None and not isinstance(value, str):
            # By way of its config, which is what is saved.
            block = value if isinstance(value, dict) else value.to_config()
            value = make_criterion(block)
            if self.resolve(value) is None:
                raise ValueError(Errors.E010.format(value=block))
        self._exit = cast("None | str | ExitCriterion", value)
        self.tell_meta()

    @contextlib.contextmanager
    def use(self, value: None | str | ExitCriterion | dict[str, Any]) -> Iterator[None]:
        """Another exit setting for a while, in this thread (context) only.

        value (Union[None, str, ExitCriterion, Dict]): As for `exit`.
        """
        token = _override.set({**_override.get(), id(self): self.resolve(value)})
        try:
            yield
        finally:
            _override.reset(token)

    @property
    def criterion(self) -> ExitCriterion | None:
        """RETURNS (Optional[ExitCriterion]): What rules in this context; None is full depth."""
        overrides = _override.get()
        return overrides[id(self)] if id(self) in overrides else self.resolve(self._exit)

    def resolve(self, value: None | str | ExitCriterion | dict[str, Any]) -> ExitCriterion | None:
        """What a setting comes to; None is full depth.

        value (Union[None, str, ExitCriterion, Dict]): As for `exit`.
        RAISES (ValueError): If it is no setting, or does not fit this transformer.
        """
        if isinstance(value, dict):
            value = make_criterion(value)
        check_exit(value)
        if value is None or value == FULL_DEPTH:
            return None
        if isinstance(value, str):
            if value not in self.points:
                points = ", ".join(dict.fromkeys([FULL_DEPTH, *self.points]))
                raise ValueError(Errors.E009.format(name=value, points=points))
            value = read_criterion(self.points[value]["exit"])
        if getattr(value, "needs_tasks", True) and not self.tasks:
            raise ValueError(Errors.E023.format(criterion=value, name=self.name))
        value.validate(self.n_layers)  # type: ignore[union-attr]
        return value  # type: ignore[return-value]

    def _exit_here(self) -> None | str | ExitCriterion:
        """The setting for a worker process, which does not share this context."""
        return self.criterion if id(self) in _override.get() else self._exit

    @property
    def stored_exit(self) -> None | str | dict[str, Any]:
        """RETURNS (Union[None, str, Dict]): The exit setting as it is saved."""
        value = self._exit
        return value if value is None or isinstance(value, str) else value.to_config()

    def tell_meta(self) -> None:
        """Write points and exit setting into the pipeline's meta.json, see meta.tell_meta."""
        nlp = self._nlp()
        if nlp is not None:
            components: list[tuple[str, Any]] = nlp._components
            tell_meta(nlp, {n: pipe for n, pipe in components if isinstance(pipe, ExitSetting)})

    def forget_points(self) -> None:
        """Without the weights that they were found for, points mean nothing."""
        if isinstance(self._exit, str) and self._exit in self.points:
            self._exit = None
        self.points.clear()
        self.tell_meta()

    def _store_exit(self) -> None:
        self.cfg["exit"] = self.stored_exit

    def _scrub_config(self) -> None:
        """The exit setting lives on in this component's own data; the pipeline's config keeps null,
        so that what it says at load was given then. (And a block given over a stored block can be
        ignored silently at load.)
        """
        nlp = self._nlp()
        if nlp is not None and self.name in nlp._pipe_configs:
            nlp.get_pipe_config(self.name)["exit"] = None


def check_exit(value: Any) -> None:
    if value is None or isinstance(value, str):
        return
    if not all(hasattr(value, attr) for attr in ("checks", "validate", "to_config")):
        raise ValueError(Errors.E010.format(value=value))
