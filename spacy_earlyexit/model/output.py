"""What goes into a multi-exit transformer, and what comes out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from spacy.tokens import Doc
from torch import Tensor

from .criteria import ExitCriterion
from .pieces import Pieces
from .self_sampling import SelfSampling


@dataclass(frozen=True)
class Run:
    """How far words go, and what is asked for. The only place where calls differ.

    criterion (Optional[ExitCriterion]): Who leaves when; None for full depth.
    sampler (Optional[SelfSampling]): In training, instead of a criterion: draws one (stage 2).
    tasks (Optional[Sequence[str]]): The tasks that are scored and rule the exit; None for all.
    precision (str): In prediction, what the encoder multiplies in: "float32" or "int8".
    max_rows (int): The budget of rows of one batch in prediction.
    states (bool): Return the rows at exit, for listeners.
    every_layer (bool): In prediction, return the scores of every layer.
    pieces (Optional[Pieces]): The pieces of the documents, if they are known already.
    """

    criterion: ExitCriterion | None = None
    sampler: SelfSampling | None = None
    tasks: Sequence[str] | None = None
    precision: str = "float32"
    max_rows: int = 24576
    states: bool = False
    every_layer: bool = False
    pieces: Pieces | None = None


@dataclass(frozen=True)
class Request:
    """What the model takes: documents, and how to run them."""

    docs: list[Doc]
    run: Run = field(default_factory=Run)


@dataclass(frozen=True)
class Packed:
    """What its first layer makes of that: pieces, and how to run them."""

    pieces: Pieces
    run: Run


@dataclass
class MultiExitOutput:
    """What the forward pass says about the words of `pieces`, in their order.

    slices (Mapping[str, slice]): Where each task's classes lie in the scores.
    scores (ndarray): At each word's exit, shape (n_words, n_classes).
    exit_layer (ndarray): From 1, shape (n_words,).
    uncertainty (ndarray): At each word's exit, in [0, 1], shape (n_words,).
    macs, macs_full (ndarray): Multiply-accumulates spent on each unit and at full depth,
        shape (n_units,).
    layer_scores (List[Tuple[int, Tensor, Tensor]]): In training: layer, words, scores with graph.
    states (Optional[Tensor]): Rows at exit in the pieces' order, shape (n_rows, H), if asked for;
        in training with graph.
    every_layer (Optional[ndarray]): In prediction, the scores of every layer, shape
        (n_layers, n_words, n_classes), if asked for. Only at full depth are they all there.
    """

    pieces: Pieces
    slices: Mapping[str, slice]
    scores: np.ndarray
    exit_layer: np.ndarray
    uncertainty: np.ndarray
    macs: np.ndarray
    macs_full: np.ndarray
    layer_scores: list[tuple[int, Tensor, Tensor]]
    states: Tensor | None = None
    every_layer: np.ndarray | None = None


@dataclass
class OutputGradient:
    """The gradient of a MultiExitOutput, as `backprop` takes it.

    layer_scores (Optional[Sequence[Tensor]]): Of each of the layers' scores, in their order, shapes
        (n, n_classes); None if there is none.
    states (Optional[Tensor]): Of the rows at exit, shape (n_rows, H); None if there is none.
    """

    layer_scores: Sequence[Tensor] | None = None
    states: Tensor | None = None
