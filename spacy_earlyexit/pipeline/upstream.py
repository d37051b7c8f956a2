"""The transformer's links to the components behind it: those that read its exits, and those that
listen to its rows.
"""

import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from spacy.language import Language
from spacy.pipeline import EntityRecognizer, Morphologizer, Tagger
from spacy.training import Example
from spacy_transformers.layers import TransformerListener
from thinc.api import Model

from ..errors import Errors
from .consumer import ExitConsumer
from .tasks import get_task

# What stock components learn that may listen, and what a task can be learned for where no
# component needs it.
STOCK_TASKS: dict[type, str] = {Tagger: "tag", Morphologizer: "pos", EntityRecognizer: "ner"}


@dataclass
class Links:
    """What a pipeline has behind the transformer.

    readers (List[Any]): The components that read its exits or listen.
    listeners (Dict[str, List[TransformerListener]]): Listening layers by component.
    seen (Set[int]): Ids of all components that were linked, readers or not.
    """

    readers: list[Any] = field(default_factory=list)
    listeners: dict[str, list[TransformerListener]] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)


class Upstream:
    """What spaCy needs of a component that others listen to, and what follows from who does.

    Mixed into the transformer, which has a name, a model, cfg["auxiliary"] and its tasks.
    """

    name: str
    model: Model
    cfg: dict[str, Any]
    record: list[str]
    _nlp: Callable[[], Language | None]
    _links: Links
    _others: list[tuple[Callable[[], Language | None], Links]]
    _task_names: list[str] | None

    if TYPE_CHECKING:

        def tell_meta(self) -> None: ...

    @property
    def tasks(self) -> list[str]:
        """RETURNS (List[str]): The tasks it was trained with, else those that are configured."""
        return list(self.cfg["labels"]) or list(self._task_names or [])

    @property
    def active_tasks(self) -> list[str]:
        """The tasks that rule the exit and are scored: those whose component is enabled, in any
        pipeline that has this transformer, and those that were learned without any (auxiliary
        ones). If that leaves none, all of them.
        """
        enabled = {
            task
            for nlp, links in self._pipelines()
            for _, pipe in self._behind(nlp, links)
            for task in self._tasks_of(pipe, nlp, links)
        }
        active = [t for t in self.tasks if t in enabled or t in self.cfg["auxiliary"]]
        return active or self.tasks

    @property
    def nlp(self) -> Language:
        """RETURNS (Language): The pipeline it is in; of several (it was sourced), the one that was
        put together last, which is the one that training and scores are about.

        RAISES (ValueError): If it is in none (in a worker process).
        """
        nlp, _ = self._here()
        if nlp is None:
            raise ValueError(Errors.E027.format(name=self.name))
        return nlp

    def components_behind(self, *, disabled: bool = False) -> list[tuple[str, Any]]:
        """The components behind this one, linked: spaCy links only what is enabled at that time, so
        that what was enabled since (or sourced, in training) is linked here. In a worker process or
        a copy, which have no pipeline: the components that were linked.

        disabled (bool): Also those that are disabled.
        RETURNS (List[Tuple[str, Any]]): Names and components, in order.
        """
        return self._behind(*self._here(), disabled=disabled)

    def _here(self) -> tuple[Language | None, Links]:
        """The pipeline that this is about, and its links: the one that was put together last,
        unless it is gone or has given this transformer away.
        """
        nlp = self._nlp()
        if nlp is not None and _has(nlp, self):
            return nlp, self._links
        for ref, _ in reversed(self._others):
            other = ref()
            if other is not None and _has(other, self):
                self._move(other)
                return other, self._links
        return None, self._links

    def _behind(
        self, nlp: Language | None, links: Links, *, disabled: bool = False
    ) -> list[tuple[str, Any]]:
        """See components_behind; of any pipeline."""
        if nlp is None:
            return [(pipe.name, pipe) for pipe in links.readers]
        at = next(i for i, (_, pipe) in enumerate(nlp._components) if pipe is self)
        off = set() if disabled else set(nlp.disabled)
        behind = [part for part in nlp._components[at + 1 :] if part[0] not in off]
        for _, pipe in behind:
            if id(pipe) not in links.seen:
                self._link(pipe, nlp, links)
        return behind

    def _pipelines(self) -> list[tuple[Language | None, Links]]:
        """The pipelines that this transformer is in, sourced from one another, with their links."""
        self._others = [(ref, links) for ref, links in self._others if ref() is not None]
        others = [(ref(), links) for ref, links in self._others]
        alive = [(nlp, links) for nlp, links in others if nlp is not None and _has(nlp, self)]
        return [*alive, self._here()]

    def _all_links(self) -> Links:
        """What reads from it and is enabled, in any pipeline: all that a worker process needs."""
        found = Links()
        for nlp, links in self._pipelines():
            for name, pipe in self._behind(nlp, links):
                if self._feeds(pipe, nlp) or name in links.listeners:
                    found.readers.append(pipe)
                if name in links.listeners:
                    found.listeners[name] = links.listeners[name]
        return found

    def tasks_of(self, component: Any) -> list[str]:
        """The tasks that a component needs, if it reads from this transformer."""
        return self._tasks_of(component, *self._here())

    def _tasks_of(self, component: Any, nlp: Language | None, links: Links) -> list[str]:
        if self._feeds(component, nlp):
            return component.tasks
        task = STOCK_TASKS.get(type(component))
        return [task] if task and component.name in links.listeners else []

    def find_tasks(self, examples: Sequence[Example]) -> list[str]:
        """What `initialize` trains: the tasks that are configured; else those of the components
        behind this one; else what the data annotates.

        examples (Sequence[Example]): The training data.
        RETURNS (List[str]): The tasks' names.
        RAISES (ValueError): If none is configured and there is nothing to exit by.
        """
        if self._task_names is not None:
            return self._task_names
        behind = self.components_behind(disabled=True)
        components = [(pipe, self.tasks_of(pipe)) for _, pipe in behind]
        wanted = dict.fromkeys(task for _, tasks in components for task in tasks)
        read = {task for consumer in self.consumers for task in consumer.tasks}
        annotated = [
            task
            for task in wanted or STOCK_TASKS.values()
            if task in read or get_task(task, self.name).labels(examples)
        ]
        if not annotated:
            known = ", ".join(STOCK_TASKS.values())
            raise ValueError(Errors.E012.format(name=self.name, n_docs=len(examples), tasks=known))
        return annotated

    def _states_wanted(self) -> bool:
        """Whether anything reads the rows: an enabled component that listens, or who asked."""
        if "trf_data" in self.record:
            return True
        return any(
            name in links.listeners
            for nlp, links in self._pipelines()
            for name, _ in self._behind(nlp, links)
        )

    def _listening(self) -> list[TransformerListener]:
        """The listening layers of the components behind this one that are enabled."""
        names = [name for name, _ in self.components_behind()]
        return [listener for name in names for listener in self.listener_map.get(name, [])]

    def _set_widths(self) -> None:
        """Tell the listeners how wide the rows are."""
        if self.model.has_dim("nO"):
            for listener in self.listeners:
                listener.set_dim("nO", self.model.get_dim("nO"), force=True)

    @property
    def listener_map(self) -> dict[str, list[TransformerListener]]:
        """RETURNS (Dict[str, List[TransformerListener]]): Listening layers by component."""
        return self._here()[1].listeners

    @listener_map.setter
    def listener_map(self, value: dict[str, list[TransformerListener]]) -> None:
        # spaCy assigns {} before it links a pipeline's components anew. Which pipeline that is it
        # does not say; but it is another one than this was made for where this was sourced.
        linking = sys._getframe(1).f_locals.get("self")
        if isinstance(linking, Language):
            self._move(linking)
        self._links = Links(listeners=value)
        self.tell_meta()

    def _move(self, nlp: Language) -> None:
        """From now on this is about another pipeline; those it was in before still get theirs."""
        known = [*self._others, (self._nlp, self._links)]
        before = [(ref, links) for ref, links in known if ref() not in (None, nlp)]
        self._links = next((links for ref, links in known if ref() is nlp), Links())
        self._others = before
        self._nlp = weakref.ref(nlp)

    @property
    def consumers(self) -> list[ExitConsumer]:
        """RETURNS (List[ExitConsumer]): The components that read its exits, disabled ones too
        (which spaCy leaves out when it links a pipeline), in order.
        """
        nlp, _ = self._here()
        behind = self.components_behind(disabled=True)
        return [pipe for _, pipe in behind if self._feeds(pipe, nlp)]

    @property
    def listeners(self) -> list[TransformerListener]:
        """RETURNS (List[TransformerListener]): Listening layers of the components behind it."""
        return [listener for own in self.listener_map.values() for listener in own]

    @property
    def listening_components(self) -> list[str]:
        """RETURNS (List[str]): Names of the components that listen."""
        return list(self.listener_map)

    def add_listener(self, listener: TransformerListener, component_name: str) -> None:
        """Add a listening layer of a component behind it."""
        self._add_listener(listener, component_name, self._links)

    def _add_listener(
        self, listener: TransformerListener, component_name: str, links: Links
    ) -> None:
        own = links.listeners.setdefault(component_name, [])
        if listener not in own:
            own.append(listener)
        self._set_widths()

    def remove_listener(self, listener: TransformerListener, component_name: str) -> bool:
        """Remove a listening layer. RETURNS (bool): Whether it was there."""
        if listener not in self.listener_map.get(component_name, []):
            return False
        self.listener_map[component_name].remove(listener)
        if not self.listener_map[component_name]:
            del self.listener_map[component_name]
        return True

    def find_listeners(self, component: Any) -> None:
        """Link a component behind this one if it reads this transformer's exits, or has a layer
        that listens to it (spacy-transformers.TransformerListener.v1).
        """
        self._link(component, *self._here())

    def _link(self, component: Any, nlp: Language | None, links: Links) -> None:
        links.seen.add(id(component))
        feeds, listens = self._feeds(component, nlp), False
        if feeds:
            component.transformer = self
        model = getattr(component, "model", None)
        if isinstance(model, Model):
            for node in model.walk():
                if isinstance(node, TransformerListener) and node.upstream_name in ("*", self.name):
                    self._add_listener(node, component.name, links)
                    listens = True
        if feeds or listens:
            links.readers.append(component)

    def _feeds(self, component: Any, nlp: Language | None) -> bool:
        """Whether a component behind this one reads its exits. "*" is the nearest in front that is
        enabled, as in exits.find_exits.
        """
        if not isinstance(component, ExitConsumer):
            return False
        if component.upstream != "*" or nlp is None:
            return component.upstream in ("*", self.name)
        off = set(nlp.disabled)
        nearest: Any = None
        for name, pipe in nlp._components:
            if cast(Any, pipe) is component:
                break
            if isinstance(pipe, Upstream) and (name not in off or pipe is self):
                nearest = pipe
        return nearest is self


def _has(nlp: Language, component: Any) -> bool:
    return any(pipe is component for _, pipe in nlp._components)
