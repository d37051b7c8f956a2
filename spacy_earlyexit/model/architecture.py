"""The registered architectures: documents -> pieces -> packed multi-exit forward pass; and the same
inside of a single component.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from spacy.tokens import Doc
from spacy_transformers.data_classes import TransformerData
from spacy_transformers.layers import TransformerModel, trfs2arrays
from thinc.api import Model, chain, torch2xp, xp2torch
from thinc.types import Floats2d, Ragged
from torch import Tensor
from transformers import AutoTokenizer

from ..errors import Errors
from .criteria import ExitCriterion, read_criterion
from .encoders import load_encoder
from .engine import EngineOutput, MultiExitModule, Rules, full_depth_macs, run
from .kernels.memory import keep_freed_memory
from .offramps import OffRamps, uncertainty
from .pieces import Pieces, PieceTokenizer, piece_encoder
from .self_sampling import SampledExit, SelfSampling
from .shim import MultiExitShim
from .trf_data import TrfDataPlan
from .units import SpanGetter

if TYPE_CHECKING:
    from ..pipeline.transformer import EarlyExitTransformer


@dataclass
class Request:
    """What to run: the documents, and how far.

    criterion (Optional[ExitCriterion]): Who leaves when; None for full depth.
    sampler (Optional[SelfSampling]): In training, instead of a criterion: draws one (stage 2).
    teacher (Optional[MultiExitModule]): In training: a frozen module to ask at full depth.
    tasks (Optional[Sequence[str]]): The tasks that are scored and rule the exit; None for all.
    precision (str): In prediction, what the encoder multiplies in: "float32" or "int8".
    max_rows (int): The budget of rows of one batch in prediction.
    states (bool): Return the rows at exit, for listeners.
    every_layer (bool): In prediction, return the scores of every layer.
    pieces (Optional[Pieces]): The pieces of the documents, if they are known already.
    """

    docs: list[Doc]
    criterion: ExitCriterion | None = None
    sampler: SelfSampling | None = None
    teacher: MultiExitModule | None = None
    tasks: Sequence[str] | None = None
    precision: str = "float32"
    max_rows: int = 24576
    states: bool = False
    every_layer: bool = False
    pieces: Pieces | None = None


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
    teacher_scores (Optional[Tensor]): In training: the teacher's last scores, if there is one,
        shape (n_words, n_classes).
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
    teacher_scores: Tensor | None = None
    every_layer: np.ndarray | None = None


Backprop = Callable[..., list]

_NAME = "multi_exit_transformer"


def MultiExitTransformer(
    name: str,
    get_spans: SpanGetter,
    tokenizer_config: dict[str, Any],
    transformer_config: dict[str, Any],
    encoder_lr_scale: float = 1.0,
    offramp_lr_scale: float = 100.0,
    special_share: float = 0.5,
    reach: int | None = 2,
    renorm: bool = False,
    mean_pieces: bool = True,
    offramp_context: int = 1,
    align_exits: bool = False,
    catch_up: int = 0,
    mixed_precision: bool = False,
) -> Model[list[Doc] | Request, MultiExitOutput]:
    """A pretrained encoder with an off-ramp per layer
    (registered as spacy-earlyexit.MultiExitTransformer.v1).

    name (str): Hub name or folder of the encoder; read at initialisation only.
    get_spans (SpanGetter): Proposes the units that are encoded and finished.
    tokenizer_config, transformer_config (Dict[str, Any]): Passed on to AutoTokenizer and AutoConfig
        when the encoder is loaded, for example {"hidden_dropout_prob": 0.2}.
    encoder_lr_scale, offramp_lr_scale (float): Factors on the optimiser's learning rate. The
        classifiers have to be ahead of the encoder.
    special_share, reach, renorm, mean_pieces: What follows from a word's exit, see engine.Rules.
        The defaults did best on dev (docs/experiments.md); docs/paper.md has the paper's.
    offramp_context (int): Words on each side that an off-ramp sees beside its own.
    align_exits (bool): A linear map per layer brings rows that leave behind it to where those of
        the last layer are. Only what listeners get goes through it, and learns it.
    catch_up (int): Rank of a linear map per layer that moves halted rows to about where the layer
        would have brought them (encoders.layers.CatchUp). Stage 2 fits the maps when it begins, and
        trains them. 0: halted rows are copied as they are, as in the paper.
    mixed_precision (bool): Train with bfloat16 products, which saves time on a processor that has
        them. Prediction is in float32 either way.
    RETURNS (Model): The model. Its shapes are known after `initialize` or `from_bytes`.
    RAISES (ValueError): If a setting is impossible.
    """
    for setting, value in (
        ("encoder_lr_scale", encoder_lr_scale),
        ("offramp_lr_scale", offramp_lr_scale),
    ):
        if value < 0:
            raise ValueError(Errors.E019.format(setting=setting, expected=">= 0", value=value))
    if not 0 <= special_share <= 1:
        expected = "in [0, 1] (a share of a unit's words)"
        raise ValueError(
            Errors.E019.format(setting="special_share", expected=expected, value=special_share)
        )
    if reach is not None and reach < 0:
        expected = "a number of words >= 0, or null"
        raise ValueError(Errors.E019.format(setting="reach", expected=expected, value=reach))
    if offramp_context < 0:
        expected = "a number of words >= 0"
        raise ValueError(
            Errors.E019.format(setting="offramp_context", expected=expected, value=offramp_context)
        )
    if catch_up < 0 or (catch_up and renorm):
        expected = "a rank >= 0, and 0 with renorm = true"
        raise ValueError(Errors.E019.format(setting="catch_up", expected=expected, value=catch_up))
    return Model(
        _NAME,
        _forward,
        init=_init,
        layers=[piece_encoder(get_spans)],
        shims=[MultiExitShim(encoder_lr_scale, offramp_lr_scale, mixed_precision)],
        dims={"nO": None},
        attrs={
            "name": name,
            "tokenizer_config": tokenizer_config,
            "transformer_config": transformer_config,
            "dropout_rate": 0.0,  # set by thinc's set_dropout_rate
            "classes": {},
            # Not among what thinc saves: the config has the say.
            "rules": Rules(special_share, reach, renorm, mean_pieces),
            "offramp_context": offramp_context,
            "align_exits": align_exits,
            "catch_up": catch_up,
            "replace_listener": replace_listener,
            "replace_listener_cfg": replace_listener_cfg,
        },
    )


def as_multi_exit(model: Model, component: str) -> Model:
    """A MultiExitTransformer with the settings of a spacy-transformers.TransformerModel, or the
    model as it is.

    RAISES (ValueError): If it is neither.
    """
    if model.name == _NAME:
        return model
    if not isinstance(model, TransformerModel):
        raise ValueError(Errors.E025.format(name=component, found=model.name))
    return MultiExitTransformer(
        model.attrs["name"],
        model.attrs["get_spans"],
        model._init_tokenizer_config,
        model._init_transformer_config,
    )


def module_of(model: Model) -> MultiExitModule:
    """The torch module inside the thinc model.

    RAISES (ValueError): If it has no weights yet.
    """
    module = cast(MultiExitShim, model.shims[0]).module
    if module is None:
        raise ValueError(Errors.E004.format(name=model.attrs["name"]))
    return module


def _init(model: Model, X: Any = None, Y: Any = None) -> None:
    """Load the encoder's weights and build off-ramps for model.attrs["classes"]."""
    name = model.attrs["name"]
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **model.attrs["tokenizer_config"])
    # No folder, no config, no tokenizer (a TypeError of some versions), no library for it.
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise _not_found(name, error) from error
    try:
        encoder = load_encoder(
            name,
            model.attrs["transformer_config"],
            model.attrs["align_exits"],
            model.attrs["catch_up"],
        )
    except OSError as error:
        raise _not_found(name, error) from error
    offramps = OffRamps(
        model.attrs["classes"],
        encoder.config.n_layers,
        encoder.config.hidden,
        model.attrs["offramp_context"],
    )
    cast(MultiExitShim, model.shims[0]).module = MultiExitModule(encoder, offramps)
    pieces = model.layers[0]
    pieces.shims[0]._model = PieceTokenizer.from_transformers(tokenizer, name)
    pieces.attrs["max_positions"] = encoder.config.n_positions
    model.set_dim("nO", encoder.config.hidden, force=True)


def _not_found(name: str, error: Exception) -> OSError:
    reason = str(error).strip().split("\n")[0]
    return OSError(Errors.E001.format(name=name, error=reason, component="transformer"))


def _forward(
    model: Model, X: list[Doc] | Request, is_train: bool
) -> tuple[MultiExitOutput, Backprop]:
    """A list of documents runs at full depth with all tasks; a Request says otherwise.

    The second value takes a loss or None, the gradient of the states or None, and whether to keep
    the graph for another call.
    """
    request = X if isinstance(X, Request) else Request(X)
    module = module_of(model)
    pieces = request.pieces or model.layers[0].predict(request.docs)
    tasks = list(module.offramps.classes) if request.tasks is None else list(request.tasks)
    if is_train:
        module.offramps.dropout.p = model.attrs["dropout_rate"]
        return _train(module, pieces, request, tasks, model)
    module = cast(MultiExitShim, model.shims[0]).for_prediction(request.precision)
    with torch.inference_mode():
        return _predict(module, pieces, request, tasks, model.attrs["rules"]), _no_backprop


def _predict(
    module: MultiExitModule, pieces: Pieces, request: Request, tasks: list[str], rules: Rules
) -> MultiExitOutput:
    if next(module.parameters()).device.type == "cpu":
        keep_freed_memory()
    output = _empty_output(module, pieces, request, tasks)
    if request.every_layer:
        shape = (module.encoder.config.n_layers, *output.scores.shape)
        output.every_layer = np.zeros(shape, dtype=np.float32)
    for units in pieces.batches(request.max_rows):
        batch, out = run(
            module,
            pieces,
            units,
            request.criterion,
            tasks,
            rules=rules,
            every_offramp=request.every_layer,
            states=request.states,
        )
        if output.every_layer is not None:
            for layer, at, scores in out.layer_scores:
                own = batch.pieces_word[at.cpu().numpy()]
                output.every_layer[layer - 1, own] = scores.cpu().numpy()
        if output.states is not None and out.states is not None:
            output.states[batch.upload(batch.pieces_row)] = out.states
        words = batch.pieces_word
        output.scores[words] = out.scores.cpu().numpy()
        output.exit_layer[words] = out.exit_layer
        output.uncertainty[words] = out.uncertainty.cpu().numpy()
        output.macs[units] = out.macs
    return output


def _train(
    module: MultiExitModule, pieces: Pieces, request: Request, tasks: list[str], model: Model
) -> tuple[MultiExitOutput, Backprop]:
    output = _empty_output(module, pieces, request, tasks)
    ask = functools.partial(
        run,
        pieces=pieces,
        tasks=tasks,
        rules=model.attrs["rules"],
        every_offramp=True,
        mixed_precision=cast(MultiExitShim, model.shims[0]).mixed_precision,
    )
    if pieces.n_units:
        units = np.argsort(np.diff(pieces.unit_starts), kind="stable")
        taught = None
        if request.teacher is not None:
            with torch.no_grad():
                _, taught = ask(request.teacher, units=units, criterion=None)
        criterion = request.criterion
        if request.sampler is not None:
            n_layers = module.encoder.config.n_layers
            criterion = request.sampler(len(units), n_layers, _doubts(taught, output.slices))
        module.train()
        try:
            batch, out = ask(module, units=units, criterion=criterion, states=request.states)
        finally:  # also when interrupted, or dropout would go on at prediction
            module.eval()
        if request.sampler is not None:
            sampled = cast(SampledExit, criterion)
            request.sampler.follow(sampled, out.macs, output.macs_full[units])
        words = batch.pieces_word
        index = batch.upload(words)
        output.layer_scores = [(layer, index[w], s) for layer, w, s in out.layer_scores]
        output.exit_layer[words] = out.exit_layer
        output.macs[units] = out.macs
        if out.states is not None:
            output.states = out.states[batch.upload(np.argsort(batch.pieces_row))]
        if taught is not None:
            output.teacher_scores = taught.scores[batch.upload(np.argsort(words))]

    def backprop(
        loss: Tensor | None, d_states: Tensor | None = None, keep_graph: bool = False
    ) -> list:
        tensors, gradients = [], []
        if loss is not None:
            tensors.append(loss)
            gradients.append(torch.ones_like(loss))
        if d_states is not None and output.states is not None:
            tensors.append(output.states)
            gradients.append(d_states)
        if tensors:
            torch.autograd.backward(tensors, gradients, retain_graph=keep_graph)
        return []

    return output, backprop


def _doubts(taught: EngineOutput | None, slices: Mapping[str, slice]) -> list[Tensor] | None:
    """The teacher's uncertainties, per layer, shape (n_words,)."""
    if taught is None:
        return None
    return [uncertainty(scores, slices) for _, _, scores in taught.layer_scores]


def _no_backprop(*_: Any, **__: Any) -> list:
    return []


def _empty_output(
    module: MultiExitModule, pieces: Pieces, request: Request, tasks: list[str]
) -> MultiExitOutput:
    states = None
    if request.states:
        width = module.encoder.config.hidden
        states = next(module.parameters()).new_zeros(len(pieces.ids), width)
    slices, _ = module.offramps.select(tasks)
    n_classes = sum(part.stop - part.start for part in slices.values())
    n_words = len(pieces.word_row)
    return MultiExitOutput(
        pieces=pieces,
        slices=slices,
        scores=np.zeros((n_words, n_classes), dtype=np.float32),
        exit_layer=np.zeros(n_words, dtype=np.int64),
        uncertainty=np.zeros(n_words, dtype=np.float32),
        macs=np.zeros(pieces.n_units),
        macs_full=full_depth_macs(
            module.encoder.config,
            np.diff(pieces.unit_starts),
            np.diff(pieces.word_starts),
            module.offramps.width * n_classes,
        ),
        layer_scores=[],
        states=states,
    )


def plan_of(model: Model, output: MultiExitOutput, docs: list[Doc]) -> TrfDataPlan:
    """Where the rows of a model's output go in doc._.trf_data.

    model (Model): The MultiExitTransformer that made the output for these Docs.
    """
    return TrfDataPlan(output.pieces, docs, model.layers[0].shims[0]._model.vocab)


def Tok2VecMultiExit(
    name: str,
    get_spans: SpanGetter,
    tokenizer_config: dict[str, Any],
    transformer_config: dict[str, Any],
    pooling: Model[Ragged, Floats2d],
    grad_factor: float = 1.0,
    encoder_lr_scale: float = 1.0,
    offramp_lr_scale: float = 100.0,
    special_share: float = 0.5,
    reach: int | None = 2,
    renorm: bool = False,
    mean_pieces: bool = True,
    offramp_context: int = 1,
    align_exits: bool = False,
    catch_up: int = 0,
) -> Model[list[Doc], list[Floats2d]]:
    """A multi-exit transformer as the tok2vec layer of one component
    (registered as spacy-earlyexit.Tok2VecMultiExit.v1; follows
    spacy-transformers.Tok2VecTransformer.v3).

    Its off-ramps decide with the exit setting that the transformer had when it was put in; they are
    not trained any more.

    name, get_spans, tokenizer_config, transformer_config: As for MultiExitTransformer.
    pooling (Model): Makes one vector of a token's pieces.
    grad_factor (float): Factor on the gradient from the component.
    encoder_lr_scale, offramp_lr_scale, special_share, reach, renorm, mean_pieces, offramp_context,
        align_exits, catch_up: As for MultiExitTransformer.
    """
    transformer = MultiExitTransformer(
        name,
        get_spans,
        tokenizer_config,
        transformer_config,
        encoder_lr_scale,
        offramp_lr_scale,
        special_share,
        reach,
        renorm,
        mean_pieces,
        offramp_context,
        align_exits,
        catch_up,
    )
    return chain(states_at_exit(transformer, None), trfs2arrays(pooling, grad_factor))


def states_at_exit(
    transformer: Model, exit: dict[str, Any] | None
) -> Model[list[Doc], list[TransformerData]]:
    """Rows at exit, as a listener gives them.

    transformer (Model): A MultiExitTransformer.
    exit (Optional[Dict[str, Any]]): A criterion's block, None for full depth. Saved with the model.
    """
    return Model(
        "states_at_exit",
        _states_forward,
        init=_states_init,
        layers=[transformer],
        attrs={"exit": exit},
    )


def _states_init(model: Model, X: Any = None, Y: Any = None) -> None:
    model.layers[0].initialize()


def _states_forward(
    model: Model, docs: list[Doc], is_train: bool
) -> tuple[list[TransformerData], Callable[[list[TransformerData]], list]]:
    transformer = model.layers[0]
    request = Request(docs, criterion=read_criterion(model.attrs["exit"]), states=True)
    output, backprop = transformer(request, is_train)
    plan = plan_of(transformer, output, docs)

    def finish(gradients: list[TransformerData]) -> list:
        backprop(None, xp2torch(plan.join(gradients)) if gradients else None)
        return []

    return plan.split(torch2xp(output.states.detach())), finish


def replace_listener(
    model: Model, listener: Model, component: "EarlyExitTransformer"
) -> Model[list[Doc], list[TransformerData]]:
    """What nlp.replace_listeners puts where a listener was; keeps the exit setting of now."""
    criterion = component.criterion
    return states_at_exit(model, criterion.to_config() if criterion else None)


def replace_listener_cfg(
    transformer_cfg: dict[str, Any], listener_cfg: dict[str, Any]
) -> dict[str, Any]:
    """The config that nlp.replace_listeners stores instead of the listener's."""
    kept: dict[str, Any] = {
        key: listener_cfg[key] for key in ("pooling", "grad_factor") if key in listener_cfg
    }
    settings: dict[str, Any] = {**transformer_cfg, **kept}
    for key in ("mixed_precision", "grad_scaler_config"):  # of a spacy-transformers model
        settings.pop(key, None)
    return {**settings, "@architectures": "spacy-earlyexit.Tok2VecMultiExit.v1"}
