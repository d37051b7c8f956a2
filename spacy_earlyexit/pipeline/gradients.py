"""Training batches whose gradient has not come yet, and the step that waits for it."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from spacy.tokens import Doc
from spacy_transformers.data_classes import TransformerData
from spacy_transformers.layers import TransformerListener
from thinc.api import Model, Optimizer, xp2torch
from torch import Tensor

from ..errors import Errors
from ..model.output import OutputGradient
from ..model.trf_data import TrfDataPlan


class PendingGradient:
    """Collects what the listeners send back, and takes it through the graph with the loss's.

    name (str): The transformer's, for messages.
    docs (List[Doc]): The batch.
    backprop (Callable[[OutputGradient], Any]): Of the model.
    d_scores (Optional[Sequence[Tensor]]): The loss's gradient of the layers' scores, None without
        gold.
    """

    def __init__(
        self,
        name: str,
        docs: Sequence[Doc],
        backprop: Callable[[OutputGradient], Any],
        d_scores: Sequence[Tensor] | None,
    ):
        self.name = name
        self.docs = list(docs)
        self.backprop: Callable[[OutputGradient], Any] | None = backprop
        self.d_scores = d_scores
        self.d_states: Any = None
        self.waiting: set[int] = set()

    def send(
        self,
        listeners: Iterable[TransformerListener],
        data: Sequence[TransformerData],
        plan: TrfDataPlan,
    ) -> None:
        """Give the batch to the listeners, and wait for each to send its gradient."""
        batch_id = TransformerListener.get_batch_id(self.docs)
        for number, listener in enumerate(listeners):
            self.waiting.add(number)

            def receive(gradients: Sequence[TransformerData], number: int = number) -> list:
                if self.backprop is None:
                    raise ValueError(Errors.E053.format(name=self.name))
                self.waiting.discard(number)
                if gradients:  # else nothing of the batch was encoded
                    joined = plan.join(gradients)
                    self.d_states = joined if self.d_states is None else self.d_states + joined
                return []

            listener.receive(batch_id, data, receive)

    def is_about(self, docs: Iterable[Doc]) -> bool:
        """Whether all these Docs are of the batch."""
        ids = {id(doc) for doc in self.docs}
        return all(id(doc) in ids for doc in docs)

    def take(self) -> None:
        """Take what has come through the graph. What comes later is refused."""
        backprop, self.backprop = self.backprop, None
        d_states = None if self.d_states is None else xp2torch(self.d_states)
        if backprop is not None:
            backprop(OutputGradient(self.d_scores, d_states))
        self.d_scores = self.d_states = None


class Steps:
    """The batches of a model whose gradient is not taken yet, and the optimiser's step that waits.

    pending (List[PendingGradient]): The batches.
    waiting (Optional[Tuple[Optimizer, float]]): Who steps, and at what rate, once the gradient has
        come or the weights are needed.
    """

    def __init__(self, model: Model):
        self.model = model
        self.pending: list[PendingGradient] = []
        self.waiting: tuple[Optimizer, float] | None = None

    def forget(self) -> None:
        """New weights: nothing of an earlier training goes on."""
        self.pending, self.waiting = [], None

    def are_about(self, docs: Sequence[Doc]) -> bool:
        """Whether these Docs are of a batch that still waits for a listener."""
        return any(batch.waiting and batch.is_about(docs) for batch in self.pending)

    def finish(self, sgd: Optimizer) -> None:
        """Let the optimiser step, or wait for listeners that have not sent their gradient."""
        self.make()
        self.waiting = (sgd, sgd.learn_rate)
        if not any(batch.waiting for batch in self.pending):
            self.make()

    def make(self) -> None:
        """Make the step that waits, if one does, with all gradient that has come."""
        if self.waiting is None:
            return
        (sgd, learn_rate), self.waiting = self.waiting, None
        self.take()
        current, sgd.learn_rate = sgd.learn_rate, learn_rate
        try:
            self.model.finish_update(sgd)
        finally:
            sgd.learn_rate = current

    def take(self) -> None:
        """Take the gradient of all batches through their graphs."""
        pending, self.pending = self.pending, []
        for batch in pending:
            batch.take()

    def __getstate__(self) -> dict[str, Any]:
        # Graphs can't be copied; a copy goes on from the weights.
        return {**self.__dict__, "pending": [], "waiting": None}
