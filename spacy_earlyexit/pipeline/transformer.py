"""The multi-exit transformer as a spaCy component."""

import copy
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spacy.language import Language
from spacy.pipeline.trainable_pipe import TrainablePipe
from spacy.tokens import Doc
from spacy.training import Example, validate_examples, validate_get_examples
from spacy.util import from_bytes, from_disk, minibatch, to_bytes, to_disk
from spacy.vocab import Vocab
from spacy_transformers.layers import TransformerListener
from spacy_transformers.pipeline_component import install_extensions as install_trf_data
from thinc.api import Model, Optimizer, set_dropout_rate, torch2xp

from ..about import __version__
from ..errors import Errors, Warnings
from ..model.architecture import (
    module_of,
    plan_of,
    set_classes,
    set_width,
    settings_of,
)
from ..model.criteria import ExitCriterion
from ..model.encoder_layer import shim_of
from ..model.offramps import IGNORE, joint_loss
from ..model.output import MultiExitOutput, Request, Run
from ..model.pieces import Pieces
from ..model.self_sampling import SelfSampling
from ..model.shim import MultiExitShim
from .consumer import ExitConsumer
from .exit_setting import ExitSetting, Use, find_override, with_override
from .exits import DocExits, leave_exits
from .extensions import RECORDED, confidence, install_extensions, record
from .forks import one_thread_in_forks
from .gradients import PendingGradient, Steps
from .links import STOCK_TASKS, Links
from .meta import write_meta
from .regime import Sample
from .stage1 import load_stage1, take_over
from .stored import (
    check_pipeline,
    check_stored,
    exit_in_file,
    model_block,
    read_cfg,
    read_model,
    remember_block,
    store_id,
    write_cfg,
)
from .tasks import GoldLabels, get_task, gold_ids

RECORDABLE = (*RECORDED, "trf_data")


class EarlyExitTransformer(TrainablePipe):
    """Encodes Docs with an encoder whose words leave as soon as they are certain.

    Follows spaCy's TrainablePipe API. What the words' exits say lies beside the Doc for the
    components behind it; doc._.exit_layers says how deep each token went.

    setting (ExitSetting): How words leave.
    links (Links): The components behind it.
    steps (Steps): Batches that wait for gradient.
    trained (bool): Whether `update` was called since it was made or loaded.
    """

    trained: bool

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
        """See factory.make_transformer.

        RAISES (ValueError): If a setting is impossible.
        """
        for task in tasks or []:
            get_task(task, name)
        self.name = name
        self.vocab: Vocab = nlp.vocab
        self.model = model
        self.scorer = scorer
        self.steps = Steps(model)
        self.cfg: dict[str, Any] = {
            "labels": {},
            "auxiliary": [],
            "points": {},
            "exit": None,
            "regime": None,
            "id": uuid.uuid4().hex,
        }
        self._saved = False
        self._configured_tasks = tasks
        self.self_sampling = self_sampling
        self.loss = loss
        self.record = record
        self.max_batch_items = max_batch_items
        self.precision = precision
        self._forget_training()
        self.setting = ExitSetting(self, exit)
        self.links = Links(self, nlp)
        install_extensions()
        install_trf_data()
        one_thread_in_forks()

    # --- settings --------------------------------------------------------------------------

    @property
    def self_sampling(self) -> SelfSampling | None:
        """RETURNS (Optional[SelfSampling]): Given, `update` is stage 2."""
        return self._self_sampling

    @self_sampling.setter
    def self_sampling(self, value: SelfSampling | None) -> None:
        fits = value is None or isinstance(value, SelfSampling)
        self._check("self_sampling", fits, "null or a spacy-earlyexit.SelfSampling.v1", value)
        self._self_sampling = value

    @property
    def loss(self) -> Callable[..., torch.Tensor]:
        """RETURNS (Callable): The joint loss."""
        return self._loss

    @loss.setter
    def loss(self, value: Callable[..., torch.Tensor] | None) -> None:
        expected = "null or a spacy-earlyexit.JointLoss.v1"
        self._check("loss", value is None or callable(value), expected, value)
        self._loss = value or joint_loss

    @property
    def record(self) -> list[str]:
        """RETURNS (List[str]): What is kept on the Doc."""
        return self._record

    @record.setter
    def record(self, value: Iterable[str]) -> None:
        names = [value] if isinstance(value, str) else list(value)
        expected = f"a list out of {', '.join(RECORDABLE)}"
        fits = not isinstance(value, str) and set(names) <= set(RECORDABLE)
        self._check("record", fits, expected, value)
        self._record = names

    @property
    def max_batch_items(self) -> int:
        """RETURNS (int): The most sub-word pieces that are encoded at once in prediction."""
        return self._max_batch_items

    @max_batch_items.setter
    def max_batch_items(self, value: int) -> None:
        fits = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        self._check("max_batch_items", fits, "a whole number >= 1", value)
        self._max_batch_items = value

    @property
    def precision(self) -> str:
        """What the encoder multiplies in at prediction. Can be changed at any time; what is set
        here is not saved, the config is.

        RAISES (ValueError): If it is set to something else than "float32" or "int8".
        """
        return self._precision

    @precision.setter
    def precision(self, value: str) -> None:
        self._shim.check_precision(value)
        self._precision = value

    @staticmethod
    def _check(setting: str, fits: bool, expected: str, value: Any) -> None:
        if not fits:
            raise ValueError(Errors.E018.format(setting=setting, expected=expected, value=value))

    @property
    def _shim(self) -> MultiExitShim:
        return shim_of(self.model.layers[1])

    # --- what it learned -------------------------------------------------------------------

    @property
    def tasks(self) -> list[str]:
        """RETURNS (List[str]): The tasks it was trained with, else those that are configured."""
        return list(self.cfg["labels"]) or list(self._configured_tasks or [])

    @property
    def label_data(self) -> dict[str, list[str]]:
        """RETURNS (Dict[str, List[str]]): The labels of each task, as `initialize` takes them."""
        return self.cfg["labels"]

    @property
    def labels(self) -> tuple[str, ...]:
        """RETURNS (Tuple[str]): All tasks' labels."""
        return tuple(label for labels in self.label_data.values() for label in labels)

    @property
    def n_layers(self) -> int:
        """RETURNS (int): Layers of the encoder."""
        return module_of(self.model).encoder.config.n_layers

    @property
    def temperatures(self) -> dict[str, list[float]]:
        """RETURNS (Dict[str, List[float]]): What divides the scores of each task before their
        uncertainty is taken, per layer. 1 until `spacy earlyexit calibrate` fits them.
        """
        if self._shim.module is None:
            return {}
        offramps = self._shim.module.offramps
        return dict(zip(offramps.classes, offramps.temperature.T.tolist(), strict=True))

    # --- exits -----------------------------------------------------------------------------

    @property
    def points(self) -> dict[str, dict[str, Any]]:
        """RETURNS (Dict[str, Dict]): The operating points: name to {"exit": a criterion's block,
        and what was measured for it on dev}.
        """
        return self.cfg["points"]

    def set_points(self, points: dict[str, dict[str, Any]]) -> None:
        """Replace the operating points.

        points (Dict[str, Dict]): As `points` gives them.
        RAISES (ValueError): If one has no exit setting that fits.
        """
        before, self.cfg["points"] = self.cfg["points"], points
        try:
            for name in points:
                self.resolve(name)
        except ValueError:
            self.cfg["points"] = before
            raise
        self._changed()

    def forget_points(self) -> None:
        """Without the weights that they were found for, points mean nothing."""
        if isinstance(self.setting.value, str) and self.setting.value in self.points:
            self.setting.value = None
        self.points.clear()
        self._changed()

    @property
    def exit(self) -> None | str | ExitCriterion:
        """How words leave: None or "full" for full depth, the name of an operating point, or a
        criterion, also as a config's block. What is set here is saved with the pipeline, and its
        config says so ("custom" for a criterion).

        RAISES (ValueError): If it is no setting, does not fit this transformer, or could not be
            loaded again.
        """
        return self.setting.value

    @exit.setter
    def exit(self, value: None | str | ExitCriterion | dict[str, Any]) -> None:
        self.setting.set(value)
        self._changed()

    def use(self, value: None | str | ExitCriterion | dict[str, Any]) -> Use:
        """Another exit setting for a while, in this thread (context) only: `with` it. What nlp.pipe
        and `pipe` return inside of the block keeps the setting, wherever it is read.

        value (Union[None, str, ExitCriterion, Dict]): As for `exit`.
        """
        return Use(self.setting, value, self.links.pipelines())

    @property
    def criterion(self) -> ExitCriterion | None:
        """RETURNS (Optional[ExitCriterion]): What rules in this context; None is full depth."""
        return self.setting.criterion

    def resolve(self, value: None | str | ExitCriterion | dict[str, Any]) -> ExitCriterion | None:
        """What an exit setting comes to; None is full depth.

        value (Union[None, str, ExitCriterion, Dict]): As for `exit`.
        RAISES (ValueError): If it is no setting, or does not fit this transformer.
        """
        return self.setting.resolve(value)

    # --- the pipeline ----------------------------------------------------------------------

    @property
    def nlp(self) -> Language:
        """RETURNS (Language): The pipeline it is in; of several (it was sourced), the one that was
        put together last, which is the one that training and scores are about.

        RAISES (ValueError): If no pipeline is known, see links.
        """
        nlp = self.links.nlp
        if nlp is None:
            raise ValueError(Errors.E026.format(name=self.name))
        return nlp

    @property
    def active_tasks(self) -> list[str]:
        """The tasks that rule the exit and are scored: those whose component is enabled, in any
        pipeline that has this transformer, and those that were learned without any (auxiliary
        ones). If that leaves none, all of them.
        """
        enabled = {task for nlp, p in self.links.enabled() for task in self.links.tasks_of(p, nlp)}
        active = [t for t in self.tasks if t in enabled or t in self.cfg["auxiliary"]]
        return active or self.tasks

    def components_behind(self, *, disabled: bool = False) -> list[tuple[str, Any]]:
        """RETURNS (List[Tuple[str, Any]]): Names and components behind this one, in order.

        disabled (bool): Also those that are disabled.
        """
        return self.links.here(disabled=disabled)

    def tasks_of(self, component: Any) -> list[str]:
        """RETURNS (List[str]): The tasks that a component needs, if it reads from this one."""
        return self.links.tasks_of(component, self.links.nlp)

    @property
    def consumers(self) -> list[ExitConsumer]:
        """RETURNS (List[ExitConsumer]): The components that read its exits, disabled ones too, in
        order.
        """
        nlp = self.links.nlp
        return [p for _, p in self.components_behind(disabled=True) if self.links.feeds(p, nlp)]

    @property
    def listener_map(self) -> dict[str, list[TransformerListener]]:
        """RETURNS (Dict[str, List[TransformerListener]]): Listening layers by component."""
        return self.links.listener_map

    @listener_map.setter
    def listener_map(self, value: dict[str, list[TransformerListener]]) -> None:
        # spaCy assigns {} before it links a pipeline's components anew.
        self.links.reset()
        self._show_exit()  # the component may have another name now

    @property
    def listeners(self) -> list[TransformerListener]:
        """RETURNS (List[TransformerListener]): Listening layers of the components behind it."""
        return [layer for layers in self.listener_map.values() for layer in layers]

    @property
    def listening_components(self) -> list[str]:
        """RETURNS (List[str]): Names of the components that listen."""
        return list(self.listener_map)

    def add_listener(self, listener: TransformerListener, component_name: str) -> None:
        """Add a listening layer of a component behind it."""
        self.links.add(listener, component_name)

    def remove_listener(self, listener: TransformerListener, component_name: str) -> bool:
        """Remove a listening layer. RETURNS (bool): Whether it was there."""
        return self.links.remove(listener, component_name)

    def find_listeners(self, component: Any) -> None:
        """Link a component behind this one if it reads this transformer's exits, or has a layer
        that listens to it (spacy-transformers.TransformerListener.v1).
        """
        before = self.links.nlp
        self.links.link(component)
        if self.links.nlp is not before:
            self._show_exit()

    def _states_wanted(self) -> bool:
        """Whether anything reads the rows: an enabled component that listens, or who asked."""
        if "trf_data" in self.record:
            return True
        return any(self.links.layers_of(component) for _, component in self.links.enabled())

    # --- prediction ------------------------------------------------------------------------

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = 128) -> Iterator[Doc]:
        """Annotate a stream in batches. See spaCy's TrainablePipe.pipe. The exit setting of `use`
        is the one in which this was called, not that in which it is read.
        """
        override = {k: v for k, v in find_override().items() if k is self.setting}
        docs = self._pipe(stream, batch_size)
        return with_override(override, docs) if override else docs

    def _pipe(self, stream: Iterable[Doc], batch_size: int) -> Iterator[Doc]:
        error_handler = self.get_error_handler()
        for docs in minibatch(stream, size=batch_size):
            try:
                self.set_annotations(docs, self.predict(docs))
                yield from docs
            except Exception as error:
                error_handler(self.name, self, docs, error)

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
        docs = list(docs)
        if not self.steps.are_about(docs):
            self.steps.make()  # else nlp.update annotates the batch whose step still waits
        run = Run(
            criterion=self.criterion,
            tasks=self.active_tasks,
            precision=self.precision,
            max_rows=self.max_batch_items,
            states=self._states_wanted(),
            every_layer=every_layer,
            pieces=pieces,
        )
        return self.model.predict(Request(docs, run))

    def set_annotations(self, docs: Iterable[Doc], scores: MultiExitOutput) -> None:
        """Leave the scores beside each Doc, until the last enabled component behind has read them,
        and record the exit layers on it.

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
            doubt = scores.uncertainty[order]
            of_words["uncertainty"] = doubt if scores.slices else np.full_like(doubt, np.nan)
        if "confidence" in self.record:
            layers = scores.exit_layer[order]
            of_words["confidence"] = confidence(rows, scores.slices, self.temperatures, layers)
        first, last = pieces.word_starts[:-1], pieces.word_starts[1:] - 1
        unit_chars = np.stack([pieces.word_chars[first, 0], pieces.word_chars[last, 1]], axis=1)
        chars = pieces.word_chars[order]
        unit_macs = np.stack([scores.macs, scores.macs_full], axis=1)
        record(docs, word_doc, chars, of_words, pieces.unit_doc, unit_chars, unit_macs)
        classes = module_of(self.model).offramps.classes
        readers = self.links.readers()
        words_by_doc = np.searchsorted(word_doc, np.arange(len(docs) + 1)).tolist()
        for i, doc in enumerate(docs):
            own = slice(*words_by_doc[i : i + 2])
            # Copies: a Doc that is kept must not keep the arrays of its whole batch.
            exits = DocExits(len(doc), tokens[own].copy(), rows[own].copy(), scores.slices, classes)
            leave_exits(doc, self.name, exits, readers)
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
        self.steps.make()
        self.steps.take()
        self._learns()
        set_dropout_rate(self.model, drop)
        docs = [eg.predicted for eg in examples]
        listening = self.links.listeners()
        criterion = None if self.tasks else self.criterion
        run = Run(criterion=criterion, sampler=self.self_sampling, states=bool(listening))
        output, backprop = self.model.begin_update(Request(docs, run))
        self.seen.add(self.links.nlp, docs, output.pieces)
        loss, d_scores = self._loss_of(examples, output)
        losses[self.name] += loss
        pending = PendingGradient(self.name, docs, backprop, d_scores)
        if listening:
            plan = plan_of(self.model, output, docs)
            pending.send(listening, plan.split(torch2xp(output.states.detach())), plan)
        self.steps.pending.append(pending)
        if sgd not in (None, False):
            self.finish_update(sgd)
        return losses

    def _learns(self) -> None:
        """The weights change: say so where points were found for those of before."""
        if self.points and not self.trained:
            warnings.warn(Warnings.W003.format(name=self.name), stacklevel=3)
        self.trained = True
        if self._saved:
            self._changed()

    def _loss_of(
        self, examples: Sequence[Example], output: MultiExitOutput
    ) -> tuple[float, Sequence[torch.Tensor] | None]:
        """RETURNS (Tuple[float, Optional[Sequence[Tensor]]]): The loss, and its gradient of the
        layers' scores; None without gold.
        """
        gold = self.gold(examples, output.pieces)
        if not output.layer_scores or not any((ids != IGNORE).any() for ids in gold.values()):
            return 0.0, None
        loss = self.loss(output.layer_scores, gold, output.slices, self.n_layers)
        layer_scores = [scores for _, _, scores in output.layer_scores]
        return float(loss.detach()), torch.autograd.grad(loss, layer_scores)

    def finish_update(self, sgd: Optimizer) -> None:
        """Take the pending gradient and let the optimiser step.

        Where a listener has not sent its part yet (a bare nlp.update calls this before it updates
        the components behind this one; a frozen one never will), the step waits until the weights
        are needed next: in the next update, in prediction on other Docs, or when they are saved.

        sgd (Optimizer): thinc's optimiser; its grad_clip is one norm over all parameters.
        """
        self.steps.finish(sgd)

    def _forget_training(self) -> None:
        """New weights: nothing of an earlier training goes on."""
        self.trained = False
        self.seen = Sample()
        self.steps.forget()
        if self.self_sampling is not None:
            self.self_sampling.reset()

    def use_params(self, params: dict[Any, Any]) -> Iterator[None]:
        """Use other values (the optimiser's averages) for a while. A bare generator, which is what
        nlp.use_params takes. See TrainablePipe.use_params.
        """
        self.steps.make()
        with self.model.use_params(params):
            yield

    def rehearse(self, examples: Iterable[Example], **kwargs: Any) -> None:
        """RAISES (ValueError): If components listen; else there is nothing to do."""
        if self.links.listeners():
            raise ValueError(Errors.E023.format(name=self.name))

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
        return {task: torch.from_numpy(classes).to(device) for task, classes in ids.items()}

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
            self.links.move(nlp)
        if self.self_sampling is not None and init_from is None:
            raise ValueError(Errors.E057.format(name=self.name))
        settings_of(self.model).component = self.name
        self._forget_training()
        self.forget_points()
        gold = GoldLabels(get_examples, self.name)
        self._configured_tasks = self.find_tasks(gold)
        # Frozen and sourced components are disabled while spacy train initialises.
        behind = self.components_behind(disabled=True)
        read = {task for _, pipe in behind for task in self.tasks_of(pipe)}
        self.cfg["auxiliary"] = [task for task in self._configured_tasks if task not in read]
        if init_from is not None:
            self._start_from(Path(init_from), labels or {}, get_examples)
        else:
            self.cfg["labels"] = gold.collect(self._configured_tasks, labels or {})
            classes = {task: get_task(task).classes(own) for task, own in self.label_data.items()}
            set_classes(self.model, classes)
            self.model.initialize()
        remember_block(self._shim.module, model_block(self.links.nlp, self.name))
        self._shim.warn_if_slow(self.name)
        if nlp is not None:
            _warn_of_rate(nlp.config.get("training", {}))
        self.resolve(self.exit)
        self._check_consumers()
        self._set_widths()
        self._changed()

    def find_tasks(self, gold: GoldLabels) -> list[str]:
        """What `initialize` trains: the tasks that are configured; else those of the components
        behind this one; else what the data annotates.

        gold (GoldLabels): Of the training data.
        RETURNS (List[str]): The tasks' names.
        RAISES (ValueError): If none is configured and there is nothing to exit by.
        """
        if self._configured_tasks is not None:
            fits = not self._configured_tasks or settings_of(self.model).pieces == "tokens"
            self._check("tasks", fits, '[] where pieces = "spans"', self._configured_tasks)
            return self._configured_tasks
        components = [pipe for _, pipe in self.components_behind(disabled=True)]
        wanted = dict.fromkeys(task for pipe in components for task in self.tasks_of(pipe))
        needed = {task for consumer in self.consumers for task in consumer.tasks}
        found = [t for t in wanted or STOCK_TASKS.values() if t in needed or gold.of(t)]
        if not found:
            known = ", ".join(STOCK_TASKS.values())
            raise ValueError(Errors.E012.format(name=self.name, n_docs=gold.n_docs, tasks=known))
        return found

    def _start_from(
        self,
        path: Path,
        labels: dict[str, list[str]],
        get_examples: Callable[[], Iterable[Example]],
    ) -> None:
        """Begin stage 2 with what a pipeline of stage 1 has learned."""
        stage1 = load_stage1(path, self.name)
        stored = stage1.label_data
        wanted = {task: {**stored, **labels}.get(task, []) for task in self._configured_tasks or []}
        if wanted != stored:
            raise ValueError(Errors.E017.format(path=path, old=stored, new=wanted))
        inherited = take_over(self.model, stage1.model, self.name, path, get_examples)
        for nlp in self.links.pipelines():
            nlp.get_pipe_config(self.name)["model"].update(copy.deepcopy(inherited))
        self.cfg["labels"] = copy.deepcopy(stored)

    def _check_consumers(self) -> None:
        for consumer in self.consumers:
            consumer.check(self)

    def _set_widths(self) -> None:
        if self._shim.module is not None:
            set_width(self.model)
        self.links.set_widths()

    # --- scoring ---------------------------------------------------------------------------

    def score(self, examples: Iterable[Example], **kwargs: Any) -> dict[str, Any]:
        """Scores of the registered scorer; nothing is changed. In training it is handed this
        component, so that it can search thresholds for choosing a checkpoint.

        examples (Iterable[Example]): Examples with predictions.
        RETURNS (Dict[str, Any]): exit_layer_mean, exit_speedup and, in training, exit_score.
        """
        if self.scorer is None:
            return {}
        return self.scorer(examples, transformer=self if self.trained else None, **kwargs)

    # --- serialisation ---------------------------------------------------------------------

    def to_bytes(self, *, exclude: Iterable[str] = ()) -> bytes:
        """Serialize the component. See spaCy's TrainablePipe.to_bytes."""
        self._before_saving()
        serialize: dict[str, Callable[[], bytes]] = {
            "cfg": lambda: write_cfg(self.cfg),
            "model": self.model.to_bytes,
        }
        return to_bytes(serialize, exclude)

    def from_bytes(self, bytes_data: bytes, *, exclude: Iterable[str] = ()) -> Any:
        """Load the component. See spaCy's TrainablePipe.from_bytes."""
        settings_of(self.model).component = self.name
        deserialize: dict[str, Callable[[bytes], Any]] = {
            "cfg": lambda data: self.cfg.update(read_cfg(data, f"'{self.name}'")),
            "model": lambda data: read_model(self.model, data, f"'{self.name}'"),
        }
        from_bytes(bytes_data, deserialize, exclude)
        return self._loaded(f"'{self.name}'")

    def to_disk(self, path: Any, *, exclude: Iterable[str] = ()) -> None:
        """Serialize the component. See spaCy's TrainablePipe.to_disk."""
        self._before_saving()
        store_id(self.vocab, self.name, self.cfg["id"])
        serialize: dict[str, Callable[[Path], Any]] = {
            "cfg": lambda p: p.write_bytes(write_cfg(self.cfg)),
            "model": lambda p: p.write_bytes(self.model.to_bytes()),
        }
        to_disk(path, serialize, exclude)

    def from_disk(self, path: Any, *, exclude: Iterable[str] = ()) -> Any:
        """Load the component. See spaCy's TrainablePipe.from_disk."""
        settings_of(self.model).component = self.name
        path = Path(path)
        for file in ("cfg", "model"):
            if file not in exclude and not (path / file).is_file():
                raise ValueError(Errors.E069.format(path=path / file))
        deserialize: dict[str, Callable[[Path], Any]] = {
            "model": lambda p: read_model(self.model, p.read_bytes(), str(p)),
            "cfg": lambda p: self.cfg.update(read_cfg(p.read_bytes(), str(p))),
        }
        from_disk(path, deserialize, exclude)
        nlp = self.links.nlp
        lang = None if nlp is None else nlp.lang
        check_pipeline(path.parent, self.name, lang, self.cfg["id"])
        return self._loaded(str(path), exit_in_file(path.parent, self.name))

    def _before_saving(self) -> None:
        self.steps.make()
        self.cfg["regime"] = self.regime
        self.cfg["exit"] = self.setting.stored
        remember_block(self._shim.module, model_block(self.links.nlp, self.name))
        self._saved = True

    def _loaded(self, source: str, in_file: str | None = None) -> "EarlyExitTransformer":
        """Check what was loaded, and settle the exit setting.

        source (str): Where it comes from, for messages.
        in_file (Optional[str]): See ExitSetting.load.
        """
        self._forget_training()
        self._set_widths()
        self.cfg.setdefault("id", uuid.uuid4().hex)
        self.setting.load(self.cfg["exit"], in_file)
        if self._shim.module is not None:
            tasks, block = self._configured_tasks, model_block(self.links.nlp, self.name)
            check_stored(self.name, self.model, self.label_data, tasks, block, source)
            self.resolve(self.exit)  # a wrong setting fails here, not at the first text
            for point in self.points:
                self.resolve(point)
        self._configured_tasks = list(self.label_data) or self._configured_tasks
        self._saved = True
        self._show_exit()
        return self

    def _changed(self) -> None:
        """What would be saved is not what was saved last: it gets another id, and the pipelines'
        config and meta say what is in force.
        """
        self.cfg["id"] = uuid.uuid4().hex
        self._saved = False
        self._show_exit()

    def _show_exit(self) -> None:
        for nlp in self.links.pipelines():
            if self.name in nlp._pipe_configs:
                nlp.get_pipe_config(self.name)["exit"] = self.setting.in_config
            components: list[tuple[str, Any]] = nlp._components
            transformers = {n: p for n, p in components if isinstance(p, EarlyExitTransformer)}
            write_meta(nlp, {n: p.about for n, p in transformers.items() if p.label_data})

    @property
    def regime(self) -> dict[str, Any] | None:
        """RETURNS (Optional[Dict[str, Any]]): What it was trained on, see regime.Sample.describe;
        None if that is not known.
        """
        return self.seen.describe() if self.seen.docs else self.cfg["regime"]

    @property
    def about(self) -> dict[str, Any]:
        """RETURNS (Dict[str, Any]): What the pipeline's meta.json says of it."""
        return {
            "id": self.cfg["id"],
            "version": __version__,
            "exit": self.setting.stored,
            "points": self.points,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        # spaCy's compiled base class brings its own, whose state ends with __dict__.
        rebuild, args, state = super().__reduce__()
        self.steps.make()
        return rebuild, args, (*state[:-1], dict(self.__dict__))


def _warn_of_rate(training: dict[str, Any]) -> None:
    """Warn where the learning rate is 0 before training ends.

    training (Dict): The block of the config; what it refers to is no number, and follows.
    """
    optimizer, steps = training.get("optimizer"), training.get("max_steps")
    rate = optimizer.get("learn_rate") if isinstance(optimizer, dict) else None
    total = rate.get("total_steps") if isinstance(rate, dict) else None
    if isinstance(total, int) and isinstance(steps, int) and steps > total:
        warnings.warn(Warnings.W005.format(total=total, steps=steps), stacklevel=3)
