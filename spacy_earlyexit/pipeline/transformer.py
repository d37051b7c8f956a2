"""The multi-exit transformer as a spaCy component."""

import copy
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spacy.language import Language
from spacy.pipeline.trainable_pipe import TrainablePipe
from spacy.tokens import Doc
from spacy.training import Example, validate_examples, validate_get_examples
from spacy.vocab import Vocab
from spacy_transformers.annotation_setters import null_annotation_setter
from spacy_transformers.pipeline_component import install_extensions as install_trf_data
from thinc.api import Config, Model, Optimizer, set_dropout_rate, torch2xp

from ..errors import Errors, Warnings
from ..model.architecture import MultiExitOutput, Request, as_multi_exit, module_of, plan_of
from ..model.criteria import make_criterion
from ..model.engine import MultiExitModule
from ..model.offramps import IGNORE, joint_loss
from ..model.pieces import Pieces
from ..model.self_sampling import SelfSampling
from .exit_setting import ExitSetting, check_exit
from .exits import DocExits, leave_exits
from .extensions import install_extensions, record
from .forks import one_thread_in_forks
from .gradients import PendingGradient
from .stage1 import take_over
from .tasks import collect_labels, get_task, gold_ids
from .upstream import Links, Upstream

DEFAULT_CONFIG = Config().from_str(
    """
[transformer]
tasks = null
exit = null
self_sampling = null
record = []
max_batch_items = 24576
precision = "float32"
set_extra_annotations = null

[transformer.loss]
@misc = "spacy-earlyexit.JointLoss.v1"
layer_weights = "uniform"
task_weights = null

[transformer.model]
@architectures = "spacy-earlyexit.MultiExitTransformer.v1"
name = "bert-base-cased"
tokenizer_config = {"use_fast": true}
transformer_config = {}
encoder_lr_scale = 1.0
offramp_lr_scale = 100.0
special_share = 0.5
reach = 2
mean_pieces = true
offramp_context = 1
align_exits = false
catch_up = 0
mixed_precision = false

[transformer.model.get_spans]
@span_getters = "spacy-transformers.doc_spans.v1"

[transformer.scorer]
@scorers = "spacy-earlyexit.exit_scorer.v1"
speedups = []
window = 2
"""
)

_PRECISIONS = ("float32", "int8")
_RECORDABLE = ("uncertainty", "confidence", "trf_data")


@Language.factory(
    "earlyexit_transformer",
    assigns=["doc._.exit_layers", "doc._.exit_stats", "token._.exit_layer", "span._.exit_layer"],
    default_config=DEFAULT_CONFIG["transformer"],
    # No score weights: spaCy's log and model cards show whatever has one as per cent.
)
def make_transformer(
    nlp: Language,
    name: str,
    model: Model,
    tasks: list[str] | None,
    exit: Any,
    self_sampling: Any,
    loss: Any,
    record: list[str],
    max_batch_items: int,
    precision: str,
    set_extra_annotations: Callable | None,
    scorer: Callable | None,
) -> "EarlyExitTransformer":
    """Construct a multi-exit transformer. Takes the settings of spacy-transformers' "transformer"
    too, so that in a config for it only the factory's name has to change.

    model (Model): A spacy-earlyexit.MultiExitTransformer.v1, or a spacy-transformers.
        TransformerModel, whose settings are taken over.
    tasks (Optional[List[str]]): Tasks that the off-ramps learn. None: those of the components
        behind it; without any, those of tag, pos and ner that the data annotates.
    exit (Union[None, str, ExitCriterion]): "full" for full depth, the name of an operating point,
        or a criterion. Given at load it beats what is stored. None: what is stored, else full
        depth.
    self_sampling (Optional[SelfSampling]): Given: `update` is stage 2. None: stage 1.
    loss (Optional[Callable]): The joint loss, a spacy-earlyexit.JointLoss.v1. None: its defaults.
    record (List[str]): "uncertainty" and / or "confidence" to keep them on the Doc, where
        extensions.word_record finds them; "trf_data" to set doc._.trf_data also if no component
        listens.
    max_batch_items (int): The most sub-word pieces that are encoded at once in prediction.
    precision (str): What the encoder multiplies in at prediction: "float32", or "int8", which is
        faster on a CPU and a little less exact. Nothing is retrained or stored differently.
    set_extra_annotations (Optional[Callable]): Only null, or the setter that does nothing.
    scorer (Optional[Callable]): The scoring method.
    """
    if set_extra_annotations not in (None, null_annotation_setter):
        raise ValueError(Errors.E026.format(name=name))
    return EarlyExitTransformer(
        nlp,
        as_multi_exit(model, name),
        name=name,
        tasks=tasks,
        exit=exit,
        self_sampling=self_sampling,
        loss=loss,
        record=record,
        max_batch_items=max_batch_items,
        precision=precision,
        scorer=scorer,
    )


class EarlyExitTransformer(ExitSetting, Upstream, TrainablePipe):
    """Encodes Docs with an encoder whose words leave as soon as they are certain.

    Follows spaCy's TrainablePipe API. What the words' exits say lies beside the Doc for the
    components behind it; doc._.exit_layers says how deep each token went.

    changed (bool): Whether the weights have been trained since the last evaluation.
    """

    changed: bool
    _trained: bool  # since it was made or loaded
    _frozen: MultiExitModule | None
    _pending: list[PendingGradient]
    _deferred: tuple[Optimizer, float] | None

    def __init__(
        self,
        nlp: Language,
        model: Model,
        *,
        name: str = "transformer",
        tasks: list[str] | None = None,
        exit: Any = None,
        self_sampling: SelfSampling | None = None,
        loss: Callable[..., torch.Tensor] | None = None,
        record: Iterable[str] = (),
        max_batch_items: int = 24576,
        precision: str = "float32",
        scorer: Callable | None = None,
    ):
        """See make_transformer.

        RAISES (ValueError): If a setting is impossible.
        """
        record = list(record)
        if not set(record) <= set(_RECORDABLE):
            expected = f"a list out of {', '.join(_RECORDABLE)}"
            raise ValueError(Errors.E019.format(setting="record", expected=expected, value=record))
        if max_batch_items < 1:
            raise ValueError(
                Errors.E019.format(
                    setting="max_batch_items", expected=">= 1", value=max_batch_items
                )
            )
        for task in tasks or []:
            get_task(task, name)
        self.name = name
        self.vocab: Vocab = nlp.vocab
        self.model = model
        self.scorer = scorer
        self.self_sampling = self_sampling
        self.loss = loss or joint_loss
        self.record = record
        self.max_batch_items = max_batch_items
        self.precision = precision
        self.cfg: dict[str, Any] = {"labels": {}, "auxiliary": [], "points": {}, "exit": None}
        self._task_names = tasks
        self._forget_training()
        self._nlp: Callable[[], Language | None] = weakref.ref(nlp)
        self._links, self._others = Links(), []
        check_exit(exit)
        self._exit_given = self._exit = exit
        install_extensions()
        install_trf_data()
        one_thread_in_forks()

    # --- what it learned -------------------------------------------------------------------

    @property
    def label_data(self) -> dict[str, list[str]]:
        """RETURNS (Dict[str, List[str]]): The labels of each task, as `initialize` takes them."""
        return self.cfg["labels"]

    @property
    def labels(self) -> tuple[str, ...]:
        """RETURNS (Tuple[str]): All tasks' labels."""
        return tuple(label for labels in self.label_data.values() for label in labels)

    @property
    def temperatures(self) -> dict[str, list[float]]:
        """RETURNS (Dict[str, List[float]]): What divides the scores of each task before their
        uncertainty is taken, per layer. 1 until `spacy earlyexit calibrate` fits them.
        """
        try:
            offramps = module_of(self.model).offramps
        except ValueError:  # no weights yet
            return {}
        return dict(zip(offramps.classes, offramps.temperature.T.tolist(), strict=True))

    # --- prediction ------------------------------------------------------------------------

    @property
    def precision(self) -> str:
        """What the encoder multiplies in at prediction. Can be changed at any time; what is set
        here is not saved, the config is.

        RAISES (ValueError): If it is set to something else than "float32" or "int8".
        """
        return self._precision

    @precision.setter
    def precision(self, value: str) -> None:
        if value not in _PRECISIONS:
            expected = " or ".join(f'"{precision}"' for precision in _PRECISIONS)
            raise ValueError(
                Errors.E019.format(setting="precision", expected=expected, value=value)
            )
        self._precision = value

    def predict(
        self,
        docs: Iterable[Doc],
        *,
        pieces: Pieces | None = None,
        every_layer: bool = False,
    ) -> MultiExitOutput:
        """Encode Docs under the current exit setting, without changing them.

        docs (Iterable[Doc]): The documents.
        pieces (Optional[Pieces]): Their pieces, if an earlier output had them.
        every_layer (bool): Keep the scores of every layer.
        RETURNS (MultiExitOutput): Scores and exit layers of their words.
        """
        self._settle()
        return self.model.predict(
            Request(
                list(docs),
                criterion=self.criterion,
                tasks=self.active_tasks,
                precision=self.precision,
                max_rows=self.max_batch_items,
                states=self._states_wanted(),
                every_layer=every_layer,
                pieces=pieces,
            )
        )

    def set_annotations(self, docs: Iterable[Doc], scores: MultiExitOutput) -> None:
        """Leave the scores beside each Doc and record the exit layers on it.

        docs (Iterable[Doc]): The documents.
        scores (MultiExitOutput): What predict returned for them.
        """
        docs = list(docs)
        pieces = scores.pieces
        order = np.flatnonzero(pieces.owned)
        place = pieces.word_doc * (pieces.word_token.max(initial=0) + 1) + pieces.word_token
        if (np.diff(place[order]) < 0).any():  # spans in another order than the text
            order = order[np.argsort(place[order], kind="stable")]
        word_doc, tokens, rows = (
            pieces.word_doc[order],
            pieces.word_token[order],
            scores.scores[order],
        )
        of_words = {"layer": scores.exit_layer[order].astype(np.uint8)}
        if "uncertainty" in self.record:
            of_words["uncertainty"] = scores.uncertainty[order]
        if "confidence" in self.record:
            of_words["confidence"] = _confidence(rows, list(scores.slices.values()))
        first, last = pieces.word_starts[:-1], pieces.word_starts[1:] - 1
        unit_chars = np.stack([pieces.word_chars[first, 0], pieces.word_chars[last, 1]], axis=1)
        chars = pieces.word_chars[order]
        unit_macs = np.stack([scores.macs, scores.macs_full], axis=1)
        record(docs, word_doc, chars, of_words, pieces.unit_doc, unit_chars, unit_macs)
        classes = module_of(self.model).offramps.classes
        words_by_doc = np.searchsorted(word_doc, np.arange(len(docs) + 1)).tolist()
        for i, doc in enumerate(docs):
            own = slice(*words_by_doc[i : i + 2])
            # Copies: a Doc that is kept must not keep the arrays of its whole batch.
            exits = DocExits(len(doc), tokens[own].copy(), rows[own].copy(), scores.slices, classes)
            leave_exits(doc, self.name, exits)
        if scores.states is not None:
            plan = plan_of(self.model, scores, docs)
            for doc, data in zip(docs, plan.split(torch2xp(scores.states)), strict=True):
                doc._.trf_data = data

    # --- training --------------------------------------------------------------------------

    def update(
        self,
        examples: Iterable[Example],
        *,
        drop: float = 0.0,
        sgd: Optimizer | None = None,
        losses: dict[str, float] | None = None,
    ) -> dict[str, float]:
        """Learn from a batch: the joint loss over all layers and tasks, at full depth in stage 1,
        with self-sampled exits in stage 2. The components that listen get the rows as they are at
        exit. Their gradient and the loss's are taken together when finish_update is called, or at
        the next update when gradients are accumulated.

        examples (Iterable[Example]): The batch.
        drop (float): Dropout on the words' vectors before the off-ramps. The encoder's own dropout
            is in its config (`transformer_config` changes it).
        sgd (Optional[Optimizer]): If given, finish_update is called with it.
        losses (Optional[Dict[str, float]]): Updated under the component's name.
        RETURNS (Dict[str, float]): The losses.
        """
        losses = {} if losses is None else losses
        losses.setdefault(self.name, 0.0)
        examples = list(examples)
        validate_examples(examples, "EarlyExitTransformer.update")
        if not examples:
            return losses
        self._settle()
        self._take_gradients(keep=False)
        if self.points and not self._trained:
            warnings.warn(Warnings.W003.format(name=self.name), stacklevel=2)
        self.changed = self._trained = True
        set_dropout_rate(self.model, drop)
        docs = [eg.predicted for eg in examples]
        listening = self._listening()
        request = Request(docs, sampler=self.self_sampling, states=bool(listening))
        if self.self_sampling is not None and self.self_sampling.frozen:
            if self._frozen is None:
                self._frozen = copy.deepcopy(module_of(self.model))
            request.teacher = self._frozen
        if not self.tasks:
            request.criterion = self.criterion
        output, backprop = self.model.begin_update(request)
        gold = self.gold(examples, output.pieces)
        loss = None
        if output.layer_scores and any((ids != IGNORE).any() for ids in gold.values()):
            loss = self.loss(
                output.layer_scores,
                gold,
                output.slices,
                self.n_layers,
                teacher=output.teacher_scores,
            )
            losses[self.name] += float(loss.detach())
        pending = PendingGradient(backprop, loss)
        if listening:
            plan = plan_of(self.model, output, docs)
            pending.send(listening, docs, plan.split(torch2xp(output.states.detach())), plan)
        self._pending.append(pending)
        if sgd not in (None, False):
            self.finish_update(sgd)
        return losses

    def finish_update(self, sgd: Optimizer) -> None:
        """Take the pending gradient and let the optimiser step.

        Where a listener has not sent its part yet (a bare nlp.update calls this before it updates
        the components behind this one; a frozen one never will), the step waits until the weights
        are needed next: in the next update, in prediction, or when they are saved.

        sgd (Optimizer): thinc's optimiser; its grad_clip is one norm over all parameters.
        """
        self._settle()
        if any(pending.waiting for pending in self._pending):
            self._deferred = (sgd, sgd.learn_rate)
        else:
            self._take_gradients(keep=False)
            self.model.finish_update(sgd)

    def _settle(self) -> None:
        """Make the step that waited. What a listener sends later still goes into the next one."""
        if self._deferred is None:
            return
        (sgd, learn_rate), self._deferred = self._deferred, None
        self._take_gradients(keep=True)
        current, sgd.learn_rate = sgd.learn_rate, learn_rate
        try:
            self.model.finish_update(sgd)
        finally:
            sgd.learn_rate = current

    def _forget_training(self) -> None:
        """New weights: nothing of an earlier training goes on."""
        self.changed = self._trained = False
        if self.self_sampling is not None:
            self.self_sampling.reset()
        self._frozen = None
        self._pending = []
        self._deferred = None

    def _take_gradients(self, *, keep: bool) -> None:
        self._pending = [pending for pending in self._pending if pending.take(keep=keep)]

    def use_params(self, params: dict[Any, Any]) -> Iterator[None]:
        """Use other values (the optimiser's averages) for a while. A bare generator, which is what
        nlp.use_params takes. See TrainablePipe.use_params.
        """
        self._settle()
        with self.model.use_params(params):
            yield

    def rehearse(self, examples: Iterable[Example], **kwargs: Any) -> None:
        """RAISES (ValueError): If components listen; else there is nothing to do."""
        if self._listening():
            raise ValueError(Errors.E024.format(name=self.name))

    def get_loss(self, examples: Any, scores: Any) -> None:
        """The loss is part of `update`; here for the API."""

    def gold(self, examples: Sequence[Example], pieces: Pieces) -> dict[str, torch.Tensor]:
        """What the off-ramps should say.

        examples (Sequence[Example]): Predicted and gold Docs.
        pieces (Pieces): The pieces of the predicted Docs.
        RETURNS (Dict[str, Tensor]): Per task the gold class of every word, shape (n_words,), on the
            model's device; IGNORE where there is none, or another unit speaks for the word.
        """
        device = next(module_of(self.model).parameters()).device
        ids = gold_ids({task: self.label_data[task] for task in self.tasks}, examples, pieces)
        return {task: torch.from_numpy(own).to(device) for task, own in ids.items()}

    def initialize(
        self,
        get_examples: Callable[[], Iterable[Example]],
        *,
        nlp: Language | None = None,
        labels: dict[str, list[str]] | None = None,
        init_from: str | Path | None = None,
    ) -> None:
        """Collect the tasks' labels and load the encoder.

        get_examples (Callable): Returns a sample of gold examples.
        nlp (Optional[Language]): The pipeline.
        labels (Optional[Dict[str, List[str]]]): Labels by task, such as `spacy init labels` makes;
            those of other tasks are collected.
        init_from (Optional[Union[str, Path]]): A trained pipeline whose component of the same name
            gives weights, tokenizer, labels and off-ramps (stage 2 starts from stage 1).
        RAISES (ValueError): If no example has gold for a task, or init_from does not fit.
        """
        validate_get_examples(get_examples, "EarlyExitTransformer.initialize")
        if nlp is not None:
            self._move(nlp)
        self._scrub_config()
        self._forget_training()
        self.forget_points()
        examples = list(get_examples())
        self._task_names = self.find_tasks(examples)
        # Frozen and sourced components are disabled while spacy train initialises.
        behind = self.components_behind(disabled=True)
        own = {task for _, pipe in behind for task in self.tasks_of(pipe)}
        self.cfg["auxiliary"] = [task for task in self._task_names if task not in own]
        if init_from is not None:
            self.cfg["labels"] = take_over(self, Path(init_from), labels, examples)
        else:
            self.cfg["labels"] = collect_labels(self._task_names, examples, labels or {}, self.name)
            self.model.attrs["classes"] = {
                task: get_task(task).classes(own) for task, own in self.label_data.items()
            }
            self.model.initialize()
        self.model.shims[0].warn_if_slow(self.name)  # type: ignore[attr-defined]
        if nlp is not None:
            _warn_of_rate(nlp.config.get("training", {}))
        self.resolve(self._exit)
        self._check_consumers()
        self._set_widths()

    def _check_consumers(self) -> None:
        for consumer in self.consumers:
            consumer.check(self)

    # --- scoring ---------------------------------------------------------------------------

    def score(self, examples: Iterable[Example], **kwargs: Any) -> dict[str, Any]:
        """Scores of the registered scorer. It is handed this component once after every change of
        its weights, so that it can search thresholds for choosing a checkpoint.

        examples (Iterable[Example]): Examples with predictions.
        RETURNS (Dict[str, Any]): exit_layer_mean, exit_speedup and, in training, exit_score.
        """
        if self.scorer is None:
            return {}
        transformer = self if self.changed else None
        scores = self.scorer(examples, transformer=transformer, **kwargs)
        self.changed = False
        return scores

    # --- serialisation ---------------------------------------------------------------------

    def to_bytes(self, *, exclude: Iterable[str] = ()) -> bytes:
        """Serialize the component. See spaCy's TrainablePipe.to_bytes."""
        self._settle()
        self._store_exit()
        return super().to_bytes(exclude=exclude)

    def from_bytes(self, bytes_data: bytes, *, exclude: Iterable[str] = ()) -> Any:
        """Load the component. See spaCy's TrainablePipe.from_bytes."""
        super().from_bytes(bytes_data, exclude=exclude)
        return self._loaded()

    def to_disk(self, path: Any, *, exclude: Iterable[str] = ()) -> None:
        """Serialize the component. See spaCy's TrainablePipe.to_disk."""
        self._settle()
        self._store_exit()
        super().to_disk(path, exclude=exclude)

    def from_disk(self, path: Any, *, exclude: Iterable[str] = ()) -> Any:
        """Load the component. See spaCy's TrainablePipe.from_disk."""
        super().from_disk(path, exclude=exclude)
        return self._loaded()

    def _loaded(self) -> "EarlyExitTransformer":
        """Settle the exit setting: given at load, then stored, then full depth."""
        self._forget_training()
        self._task_names = list(self.label_data) or self._task_names
        self._set_widths()
        if self._exit_given is None:
            stored = self.cfg["exit"]
            self._exit = make_criterion(stored) if isinstance(stored, dict) else stored
        if self.model.has_dim("nO"):
            self.resolve(self._exit)  # a wrong setting fails here, not at the first text
        self._scrub_config()
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # spaCy's compiled base class brings its own, whose state ends with __dict__.
        rebuild, args, state = super().__reduce__()
        # Under spawn the workers get no nlp: settle now what depends on it and on the context.
        self._settle()
        own = self.__dict__.copy()
        own["_nlp"] = _no_nlp
        own["_links"], own["_others"] = self._all_links(), []
        own["_pending"] = []
        own["_frozen"] = None
        own["_exit"] = self._exit_here()
        return rebuild, args, (*state[:-1], own)


def _warn_of_rate(training: dict[str, Any]) -> None:
    """Warn where the learning rate is 0 before training ends.

    training (Dict): The block of the config; what it refers to is no number, and follows.
    """
    optimizer, steps = training.get("optimizer"), training.get("max_steps")
    rate = optimizer.get("learn_rate") if isinstance(optimizer, dict) else None
    total = rate.get("total_steps") if isinstance(rate, dict) else None
    if isinstance(total, int) and isinstance(steps, int) and steps > total:
        warnings.warn(Warnings.W005.format(total=total, steps=steps), stacklevel=3)


def _no_nlp() -> None:
    """Stands for the weak reference to a pipeline that is not there."""


def _confidence(scores: np.ndarray, slices: list[slice]) -> np.ndarray:
    """Probability of the best class, of the least confident task, shape (n_words,)."""
    worst = np.ones(len(scores), dtype=np.float32)
    for part in slices:
        own = scores[:, part] - scores[:, part].max(axis=1, keepdims=True)
        worst = np.minimum(worst, 1.0 / np.exp(own).sum(axis=1))
    return worst
