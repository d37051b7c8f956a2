"""The graph of a training batch, until all of its gradient has come."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from spacy.tokens import Doc
from spacy_transformers.data_classes import TransformerData
from spacy_transformers.layers import TransformerListener
from thinc.api import xp2torch
from torch import Tensor

from ..model.trf_data import TrfDataPlan


class PendingGradient:
    """Collects what the listeners send back, and takes it through the graph with the loss.

    backprop (Callable): Of the model: takes a loss, the gradient of the states, and whether to
        keep the graph.
    loss (Optional[Tensor]): The off-ramps' loss, None without gold.
    """

    def __init__(self, backprop: Callable[..., Any], loss: Tensor | None):
        self.backprop = backprop
        self.loss = loss
        self.d_states: Any = None
        self.waiting: set[int] = set()

    def send(
        self,
        listeners: Iterable[TransformerListener],
        docs: Sequence[Doc],
        data: Sequence[TransformerData],
        plan: TrfDataPlan,
    ) -> None:
        """Give the batch to the listeners, and wait for each to send its gradient."""
        batch_id = TransformerListener.get_batch_id(list(docs))
        for number, listener in enumerate(listeners):
            self.waiting.add(number)

            def receive(gradients: Sequence[TransformerData], number: int = number) -> list:
                self.waiting.discard(number)
                if gradients:  # else nothing of the batch was encoded
                    own = plan.join(gradients)
                    self.d_states = own if self.d_states is None else self.d_states + own
                return []

            listener.receive(batch_id, data, receive)

    def take(self, *, keep: bool) -> bool:
        """Take what has come so far through the graph.

        keep (bool): Keep the graph for listeners that have not sent theirs yet.
        RETURNS (bool): Whether it was kept.
        """
        keep = keep and bool(self.waiting)
        d_states = None if self.d_states is None else xp2torch(self.d_states)
        self.backprop(self.loss, d_states, keep)
        self.loss = self.d_states = None
        return keep
