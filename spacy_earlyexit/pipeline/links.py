"""A transformer's links: the pipelines that hold it, and the components behind it that read its
exits or listen to its rows.

A pipeline is known if it made the transformer or a component behind it, initialised it, or is a
copy of such a pipeline. Of known pipelines the links are read off whenever they are needed, so that
disabled components, copies and pickles need no care. spaCy does not say which pipeline it links: a
transformer that was sourced with all components behind it goes by those that spaCy linked last.
"""

from typing import Any, Protocol, cast

from spacy.language import Language
from spacy.pipeline import EntityRecognizer, Morphologizer, Tagger
from spacy_transformers.layers import TransformerListener
from thinc.api import Model

from .consumer import ExitConsumer
from .home import PipelineRef

# What stock components learn that may listen, and what a task can be learned for where no
# component needs it.
STOCK_TASKS: dict[type, str] = {Tagger: "tag", Morphologizer: "pos", EntityRecognizer: "ner"}


class Linked(Protocol):
    """What links need of a transformer."""

    name: str
    model: Model


class Links:
    """See the module.

    owner (Linked): The transformer.
    homes (List[PipelineRef]): The known pipelines, the one that training and scores are about last.
    linked (List[Any]): The components behind it that spaCy linked last.
    """

    def __init__(self, owner: Linked, nlp: Language | None):
        self.owner = owner
        self.homes = [PipelineRef(nlp)]
        self.linked: list[Any] = []
        self._layers: list[tuple[Any, list[TransformerListener]]] = []

    # --- pipelines -------------------------------------------------------------------------

    def pipelines(self) -> list[Language]:
        """RETURNS (List[Language]): The known pipelines that have the transformer now."""
        found = [home() for home in self.homes]
        return [nlp for nlp in found if nlp is not None and self._position(nlp) is not None]

    @property
    def nlp(self) -> Language | None:
        """RETURNS (Optional[Language]): The one that training and scores are about."""
        return next(reversed(self.pipelines()), None)

    def move(self, nlp: Language) -> None:
        """From now on training and scores are about this pipeline."""
        others = [home for home in self.homes if home() not in (None, nlp)]
        self.homes = [*others, PipelineRef(nlp)]

    def _position(self, nlp: Language) -> int | None:
        places = (i for i, (_, pipe) in enumerate(nlp._components) if pipe is self.owner)
        return next(places, None)

    # --- components ------------------------------------------------------------------------

    def behind(self, nlp: Language, *, disabled: bool = False) -> list[tuple[str, Any]]:
        """The components behind the transformer in a pipeline, in order.

        disabled (bool): Also those that are disabled.
        RETURNS (List[Tuple[str, Any]]): Names and components.
        """
        position = self._position(nlp)
        if position is None:
            return []
        off = set() if disabled else set(nlp.disabled)
        components: list[tuple[str, Any]] = list(nlp._components)
        found = [part for part in components[position + 1 :] if part[0] not in off]
        for _, pipe in found:
            if self.feeds(pipe, nlp):
                pipe.transformer = self.owner
        return found

    def here(self, *, disabled: bool = False) -> list[tuple[str, Any]]:
        """The components behind the transformer in `nlp`; where no pipeline is known, those that
        spaCy linked last.
        """
        nlp = self.nlp
        if nlp is None:
            return [(pipe.name, pipe) for pipe in self.linked]
        return self.behind(nlp, disabled=disabled)

    def enabled(self) -> list[tuple[Language | None, Any]]:
        """The enabled components behind the transformer in all pipelines, known or not.

        RETURNS (List[Tuple[Optional[Language], Any]]): Pipelines and components.
        """
        pipelines = self.pipelines()
        found: list[tuple[Language | None, Any]] = []
        for nlp in pipelines:
            found += [(nlp, pipe) for _, pipe in self.behind(nlp)]
        elsewhere = [pipe for nlp in pipelines for _, pipe in nlp._components]
        found += [(None, p) for p in self.linked if not any(p is other for other in elsewhere)]
        return found

    def readers(self) -> list[frozenset[Any]]:
        """RETURNS (List[FrozenSet[Any]]): Of each pipeline, the enabled components that read the
        exits; those of unknown pipelines together.
        """
        found: dict[Language | None, set[Any]] = {}
        for nlp, component in self.enabled():
            if self.feeds(component, nlp):
                found.setdefault(nlp, set()).add(component)
        return [frozenset(components) for components in found.values()]

    def feeds(self, component: Any, nlp: Language | None) -> bool:
        """Whether a component behind the transformer reads its exits. "*" is the nearest enabled
        transformer in front, as in exits.find_exits.
        """
        if not isinstance(component, ExitConsumer):
            return False
        if component.upstream != "*" or nlp is None:
            return component.upstream in ("*", self.owner.name)
        off = set(nlp.disabled)
        nearest: Any = None
        for name, pipe in nlp._components:
            if cast(Any, pipe) is component:
                break
            if isinstance(getattr(pipe, "links", None), Links):
                if name not in off or cast(Any, pipe) is self.owner:
                    nearest = pipe
        return nearest is self.owner

    def tasks_of(self, component: Any, nlp: Language | None) -> list[str]:
        """RETURNS (List[str]): The tasks that a component needs of the transformer."""
        if self.feeds(component, nlp):
            return component.tasks
        task = STOCK_TASKS.get(type(component))
        return [task] if task and self.layers_of(component) else []

    def layers_of(self, component: Any) -> list[TransformerListener]:
        """RETURNS (List[TransformerListener]): The layers of a component that listen."""
        for known, layers in self._layers:
            if known is component:
                return layers
        model = getattr(component, "model", None)
        nodes = model.walk() if isinstance(model, Model) else ()
        upstream = ("*", self.owner.name)
        layers = [
            node
            for node in nodes
            if isinstance(node, TransformerListener) and node.upstream_name in upstream
        ]
        self._layers.append((component, layers))
        self._set_widths(layers)
        return layers

    def listeners(self) -> list[TransformerListener]:
        """RETURNS (List[TransformerListener]): Those of the enabled components in `nlp`."""
        return [layer for _, pipe in self.here() for layer in self.layers_of(pipe)]

    @property
    def listener_map(self) -> dict[str, list[TransformerListener]]:
        """RETURNS (Dict[str, List[TransformerListener]]): Listening layers by component, those that
        are disabled too.
        """
        of_each = {name: self.layers_of(pipe) for name, pipe in self.here(disabled=True)}
        return {name: layers for name, layers in of_each.items() if layers}

    # --- what spaCy calls ------------------------------------------------------------------

    def reset(self) -> None:
        """spaCy begins to link the components of a pipeline anew."""
        self.linked, self._layers = [], []

    def link(self, component: Any) -> None:
        """spaCy has found a component behind the transformer."""
        nlp = self._home_of(component)
        feeds = self.feeds(component, nlp)
        if feeds:
            component.transformer = self.owner
            component.check_classes(self.owner)
        if feeds or self.layers_of(component):
            self.linked.append(component)

    def _home_of(self, component: Any) -> Language | None:
        """The pipeline that made a component, if it has the transformer; known from now on."""
        home = getattr(component, "home", None)
        nlp = home() if isinstance(home, PipelineRef) else None
        if nlp is None or self._position(nlp) is None:
            return self.nlp
        self.move(nlp)
        return nlp

    def add(self, listener: TransformerListener, name: str) -> None:
        """Add a listening layer of the component of this name."""
        for known, component in self.here(disabled=True):
            layers = self.layers_of(component)
            if known == name and listener not in layers:
                layers.append(listener)
                self._set_widths([listener])

    def remove(self, listener: TransformerListener, name: str) -> bool:
        """Remove a listening layer. RETURNS (bool): Whether it was there."""
        for known, component in self.here(disabled=True):
            layers = self.layers_of(component)
            if known == name and listener in layers:
                layers.remove(listener)
                return True
        return False

    def set_widths(self) -> None:
        """Tell all listeners how wide the rows are."""
        for layers in self.listener_map.values():
            self._set_widths(layers)

    def _set_widths(self, layers: list[TransformerListener]) -> None:
        if self.owner.model.has_dim("nO"):
            for listener in layers:
                listener.set_dim("nO", self.owner.model.get_dim("nO"), force=True)
