"""Off-ramps: a small linear classifier per layer, all tasks in one product, and the joint loss."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import Errors
from .kernels.products import linear

IGNORE = -100  # gold label of a word without annotation, as in torch's cross_entropy


class OffRamps(nn.Module):
    """One linear layer per encoder layer; its columns are the tasks' classes side by side.

    classes (Mapping[str, Sequence[str]]): The classes of each task.
    n_layers, hidden (int): Layers of the encoder and size of its rows.
    context (int): Words on each side that an off-ramp sees beside its own. 0 is the paper's.

    temperature (Tensor): Divides the scores of a layer and task before their uncertainty is taken,
        shape (n_layers, n_tasks). 1 until it is fitted on dev data (calibration.py).

    Its dropout on the words' vectors follows the `drop` of the training loop.
    """

    def __init__(
        self, classes: Mapping[str, Sequence[str]], n_layers: int, hidden: int, context: int = 0
    ):
        super().__init__()
        self.context = context
        # What a class is multiplied with per word: its own vector and those of its neighbours.
        self.width = (2 * context + 1) * hidden
        self.classes = {task: list(names) for task, names in classes.items()}
        self.slices: dict[str, slice] = {}
        start = 0
        for task, names in self.classes.items():
            self.slices[task] = slice(start, start + len(names))
            start += len(names)
        self.weight = nn.Parameter(torch.empty(n_layers, start, self.width))
        self.bias = nn.Parameter(torch.zeros(n_layers, start))
        if start:  # no task: the exit layer is fixed
            nn.init.normal_(self.weight, std=0.02)
        self.temperature: Tensor
        self.register_buffer("temperature", torch.ones(n_layers, len(self.classes)))
        self.dropout = nn.Dropout(0.0)

    def select(self, tasks: Sequence[str]) -> tuple[dict[str, slice], Tensor | None]:
        """The columns of some tasks.

        tasks (Sequence[str]): The tasks that are wanted.
        RETURNS (Tuple[Dict[str, slice], Optional[Tensor]]): Where each task lies in the scores,
            and the columns to compute (None for all).
        """
        if list(tasks) == list(self.classes):
            return self.slices, None
        slices, columns, start = {}, [], 0
        for task in tasks:
            own = self.slices[task]
            columns.append(torch.arange(own.start, own.stop))
            slices[task] = slice(start, start + own.stop - own.start)
            start = slices[task].stop
        return slices, torch.cat(columns)

    def forward(
        self,
        layer: int,
        words: Tensor,
        columns: Tensor | None = None,
        neighbours: Sequence[tuple[int, int, Tensor]] = (),
    ) -> Tensor:
        """s_j^l = W_l dropout(h_j^l) + b_l (method: off-ramps); with context
        s_j^l = sum_i W_l,i dropout(h_j+i^l) + b_l, |i| <= context, over the neighbours there are.

        layer (int): The layer, from 1.
        words (Tensor): The words' vectors behind that layer, shape (n_words, hidden).
        columns (Optional[Tensor]): The classes to compute, all if None.
        neighbours (Sequence[Tuple[int, int, Tensor]]): With context: which words lie around which,
            see Batch.neighbours.
        RETURNS (Tensor): Scores, shape (n_words, n_classes).
        """
        weight, bias = self.weight[layer - 1], self.bias[layer - 1]
        if columns is not None:
            columns = columns.to(weight.device)
            weight, bias = weight[columns], bias[columns]
        words = self.dropout(words)
        # One product for all distances. A class's weights for them lie behind one another; in the
        # product, the classes of a distance do.
        near, around = 2 * self.context + 1, self.context * len(bias)
        by_distance = weight.reshape(len(bias), near, words.shape[1]).transpose(0, 1).flatten(0, 1)
        once = F.pad(bias, (around, around))
        parts = linear(words, by_distance, once).view(len(words), near, len(bias))
        scores = parts[:, self.context]
        for distance, step, mask in neighbours:
            # Scores are moved to the neighbours: they are smaller than the vectors.
            there = mask.to(scores.dtype)
            scores[:-step].addcmul_(parts[step:, self.context + distance], there)
            scores[step:].addcmul_(parts[:-step, self.context - distance], there)
        return scores

    def column_temperatures(self, slices: Mapping[str, slice]) -> Tensor:
        """The temperatures as `uncertainty` takes them.

        slices (Mapping[str, slice]): Where each task's classes lie in the scores.
        RETURNS (Tensor): shape (n_layers, n_classes).
        """
        tasks = list(self.classes)
        columns = [
            self.temperature[:, tasks.index(task), None].expand(-1, part.stop - part.start)
            for task, part in slices.items()
        ]
        return torch.cat(columns, dim=1) if columns else self.temperature[:, :0]


def uncertainty(
    scores: Tensor, slices: Mapping[str, slice], temperatures: Tensor | None = None
) -> Tensor:
    """Normalised entropy of each word's most uncertain task.

    u = -sum_c p_c ln p_c / ln C, p = softmax(s / T) (ACL 2021 paper, section 3.2, with the
    temperature of Guo et al., ICML 2017).

    scores (Tensor): Scores of all tasks, shape (n_words, n_classes).
    slices (Mapping[str, slice]): Where each task's classes lie.
    temperatures (Optional[Tensor]): T of each class's task, shape (n_classes,); None for 1.
    RETURNS (Tensor): In [0, 1], shape (n_words,).
    """
    worst = None
    if temperatures is not None:
        scores = scores / temperatures
    by_class = scores.T.contiguous()  # sums over a few numbers are faster across words
    for part in slices.values():
        n_classes = part.stop - part.start
        if n_classes > 1:  # a single class is always certain
            log_p = F.log_softmax(by_class[part], dim=0)
            entropy = log_p.exp().mul_(log_p).sum(0) / -math.log(n_classes)
            worst = entropy if worst is None else torch.maximum(worst, entropy)
    return scores.new_zeros(len(scores)) if worst is None else worst


def joint_loss(
    layer_scores: Sequence[tuple[int, Tensor, Tensor]],
    gold: Mapping[str, Tensor],
    slices: Mapping[str, slice],
    n_layers: int,
    *,
    layer_weights: str = "uniform",
    task_weights: Mapping[str, float] | None = None,
) -> Tensor:
    """Weighted loss over all layers and tasks: sum_l w_l·CE_l / sum_l w_l, CE_l a mean over words.

    layer_scores (Sequence[Tuple[int, Tensor, Tensor]]): Per layer its number from 1, the scored
        words' indices, shape (n,), and their scores, shape (n, n_classes). Words that had left the
        batch before a layer are not in it; the mean is over all words all the same, so that such a
        word weighs nothing rather than the others more.
    gold (Mapping[str, Tensor]): Per task the gold class of every word, IGNORE where there is none.
    slices (Mapping[str, slice]): Where each task's classes lie.
    n_layers (int): Layers of the encoder, also those that no unit of the batch lived to see.
    layer_weights (str): "linear": w_l = l, as in the paper; "uniform": w_l = 1.
    task_weights (Optional[Mapping[str, float]]): What each task's loss is multiplied with; 1 for
        those that it does not name.
    RETURNS (Tensor): The sum of the tasks' losses, a scalar.
    RAISES (ValueError): If task_weights names a task that is not there.
    """
    task_weights = task_weights or {}
    if unknown := sorted(set(task_weights) - set(slices)):
        raise ValueError(
            Errors.E018.format(
                setting="task_weights", expected=f"tasks out of {', '.join(slices)}", value=unknown
            )
        )
    weight_of = {layer: float(layer) for layer in range(1, n_layers + 1)}
    if layer_weights == "uniform":
        weight_of = dict.fromkeys(weight_of, 1.0)
    scores = torch.cat([s for _, _, s in layer_scores])
    words = torch.cat([w for _, w, _ in layer_scores])
    weights = torch.cat([s.new_full((len(s),), weight_of[layer]) for layer, _, s in layer_scores])
    weights = weights / sum(weight_of.values())
    total = scores.new_zeros(())
    for task, labels in gold.items():
        n_gold = int((labels != IGNORE).sum())
        if n_gold:
            losses = F.cross_entropy(
                scores[:, slices[task]], labels[words], ignore_index=IGNORE, reduction="none"
            )
            total = total + task_weights.get(task, 1.0) * (losses * weights).sum() / n_gold
    return total


def make_joint_loss(
    layer_weights: str = "uniform", task_weights: dict[str, float] | None = None
) -> Callable[..., Tensor]:
    """Registered as spacy-earlyexit.JointLoss.v1; for `loss` of the transformer.

    layer_weights (str): "uniform", or "linear": each layer weighs its number, as in the paper.
    task_weights (Optional[Dict[str, float]]): What the loss of a task counts, such as {"ner": 2.0};
        1 for those that it does not name.
    RAISES (ValueError): If a setting is impossible.
    """
    if layer_weights not in ("linear", "uniform"):
        expected = '"linear" or "uniform"'
        raise ValueError(
            Errors.E018.format(setting="layer_weights", expected=expected, value=layer_weights)
        )
    if task_weights and min(task_weights.values()) < 0:
        expected = "numbers >= 0"
        raise ValueError(
            Errors.E018.format(setting="task_weights", expected=expected, value=task_weights)
        )
    return partial(joint_loss, layer_weights=layer_weights, task_weights=task_weights)
