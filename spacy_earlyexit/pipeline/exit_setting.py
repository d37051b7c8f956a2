"""The exit setting of a transformer: given at load, then stored, then full depth."""

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from spacy.language import Language

from ..errors import Errors, Warnings
from ..model.criteria import ExitCriterion, make_criterion, read_criterion

FULL_DEPTH = "full"
# Stands in the config for a criterion that was set: the config never holds a block.
CUSTOM = "custom"

Value = None | str | ExitCriterion
_METHODS = ("checks", "halts", "validate", "to_config", "__call__")


class HasExits(Protocol):
    """What a setting has to fit."""

    name: str

    @property
    def n_layers(self) -> int: ...

    @property
    def tasks(self) -> list[str]: ...

    @property
    def points(self) -> dict[str, dict[str, Any]]: ...


class ExitSetting:
    """How words leave, and for how long.

    owner (HasExits): The transformer.
    given (Value): What was given when the component was made. At load it beats what is stored.
    """

    def __init__(self, owner: HasExits, given: Any = None):
        if isinstance(given, dict):
            given = make_criterion(given)
        check_exit(given)
        self.owner = owner
        self.given: Value = given
        self.value: Value = None if given == CUSTOM else given

    def set(self, value: Any) -> None:
        """value (Union[None, str, ExitCriterion, Dict]): See EarlyExitTransformer.exit."""
        self.resolve(value)
        if value is not None and not isinstance(value, str):
            # By way of its config, which is what is saved.
            block = value if isinstance(value, dict) else value.to_config()
            value = make_criterion(block)
            if self.resolve(value) is None:
                raise ValueError(Errors.E010.format(value=block))
        self.value = value

    def load(self, stored: None | str | dict[str, Any], in_file: str | None = None) -> None:
        """Settle what is in force: what was given at load, then what is stored, then full depth.

        stored (Union[None, str, Dict]): Of the component.
        in_file (Optional[str]): What the config that is stored with it says; the same was not given
            at load.
        """
        if self.given in (None, CUSTOM, in_file):
            self.value = make_criterion(stored) if isinstance(stored, dict) else stored
        if self.given == CUSTOM and not isinstance(stored, dict):
            raise ValueError(Errors.E054.format(name=self.owner.name))

    @property
    def stored(self) -> None | str | dict[str, Any]:
        """RETURNS (Union[None, str, Dict]): As it is kept with the component."""
        if self.value is None or isinstance(self.value, str):
            return self.value
        return self.value.to_config()

    @property
    def in_config(self) -> None | str:
        """RETURNS (Optional[str]): As the pipeline's config shows it."""
        return self.value if self.value is None or isinstance(self.value, str) else CUSTOM

    @property
    def criterion(self) -> ExitCriterion | None:
        """RETURNS (Optional[ExitCriterion]): What rules in this context; None is full depth."""
        overrides = _override.get()
        return overrides[self] if self in overrides else self.resolve(self.value)

    def resolve(self, value: Any) -> ExitCriterion | None:
        """What a setting comes to; None is full depth.

        value (Union[None, str, ExitCriterion, Dict]): See EarlyExitTransformer.exit.
        RAISES (ValueError): If it is no setting, or does not fit this transformer.
        """
        owner = self.owner
        if isinstance(value, dict):
            value = make_criterion(value)
        check_exit(value)
        if value is None or value == FULL_DEPTH:
            return None
        if isinstance(value, str):
            value = read_point(owner.points, value)
            if value is None:
                return None
        if getattr(value, "needs_tasks", True) and not owner.tasks:
            raise ValueError(Errors.E022.format(criterion=value, name=owner.name))
        value.validate(owner.n_layers)
        return value

    def __getstate__(self) -> dict[str, Any]:
        # A worker process does not share this context.
        value = _override.get().get(self, self.value)
        return {**self.__dict__, "value": value}


# Settings of `use`; a context variable, so that threads can differ.
_override: ContextVar[Mapping[ExitSetting, ExitCriterion | None]] = ContextVar(
    "earlyexit_use",
    default={},  # noqa: B039, never changed in place
)


def check_exit(value: Any) -> None:
    """RAISES (ValueError): If this is no exit setting at all."""
    if value is None or isinstance(value, str):
        return
    if isinstance(value, type):
        raise ValueError(Errors.E055.format(name=value.__name__))
    if missing := [method for method in _METHODS if not callable(getattr(value, method, None))]:
        raise ValueError(Errors.E010.format(value=value) + _lacks(value, missing))


def _lacks(value: Any, missing: list[str]) -> str:
    if len(missing) == len(_METHODS):
        return ""
    return f" This {type(value).__name__} lacks {', '.join(missing)}."


def read_point(points: Mapping[str, Any], name: str) -> ExitCriterion | None:
    """The criterion of an operating point; None is full depth.

    RAISES (ValueError): If there is no such point, or it is none.
    """
    if name not in points:
        known = ", ".join(dict.fromkeys([FULL_DEPTH, *points]))
        raise ValueError(Errors.E009.format(name=name, points=known))
    point = points[name]
    block = point.get("exit", ...) if isinstance(point, dict) else ...
    if block is not None and not (isinstance(block, dict) and "@misc" in block):
        raise ValueError(Errors.E056.format(name=name, value=point))
    return read_criterion(block)


def find_override() -> Mapping[ExitSetting, ExitCriterion | None]:
    """RETURNS (Mapping): What `use` set in this context."""
    return _override.get()


def with_override(
    override: Mapping[ExitSetting, ExitCriterion | None], stream: Iterator[Any]
) -> Iterator[Any]:
    """Read a stream under the settings that were in use when it was made.

    override (Mapping): Of find_override, then.
    stream (Iterator[Any]): A generator, read item by item.
    """
    while True:
        token = _override.set({**_override.get(), **override})
        try:
            item = next(stream)
        except StopIteration:
            return
        finally:
            _override.reset(token)
        yield item


class Use:
    """Another exit setting for a while, as a context manager. Generators of nlp.pipe that are made
    inside of it keep the setting wherever they are read.
    """

    def __init__(self, setting: ExitSetting, value: Any, pipelines: list[Language]):
        self._setting, self._criterion = setting, setting.resolve(value)
        self._pipelines = pipelines
        self._tokens: list[Any] = []
        self._entered = False

    def __enter__(self) -> None:
        self._entered = True
        for nlp in self._pipelines:
            _pin(nlp)
        self._tokens.append(_override.set({**_override.get(), self._setting: self._criterion}))

    def __exit__(self, *_: Any) -> None:
        _override.reset(self._tokens.pop())
        for nlp in self._pipelines:
            _unpin(nlp)

    def __del__(self) -> None:
        if not getattr(self, "_entered", True):
            name = self._setting.owner.name
            warnings.warn(Warnings.W006.format(name=name), stacklevel=2)


# Pipelines whose `pipe` is wrapped, and how many open blocks want it.
_pinned: "WeakKeyDictionary[Language, int]" = WeakKeyDictionary()
_lock = threading.Lock()


def _pin(nlp: Language) -> None:
    """While a block is open, generators of nlp.pipe remember the settings they were made under.
    They would look for them when they are first read, and that can be after the block.
    """
    with _lock:
        _pinned[nlp] = _pinned.get(nlp, 0) + 1
        if _pinned[nlp] == 1:
            vars(nlp)["pipe"] = _PinnedPipe(nlp.pipe)


def _unpin(nlp: Language) -> None:
    with _lock:
        _pinned[nlp] -= 1
        if not _pinned[nlp]:
            del _pinned[nlp]
            wrapper = vars(nlp).pop("pipe", None)
            if isinstance(wrapper, _PinnedPipe) and not _is_method(wrapper.original, nlp):
                vars(nlp)["pipe"] = wrapper.original  # somebody had wrapped it before


def _is_method(function: Any, nlp: Language) -> bool:
    return getattr(function, "__self__", None) is nlp


class _PinnedPipe:
    """nlp.pipe, whose generators keep the settings in use."""

    def __init__(self, original: Callable[..., Iterator[Any]]):
        self.original = original

    def __call__(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        return with_override(find_override(), self.original(*args, **kwargs))
