"""The registered architectures: documents -> pieces -> packed multi-exit forward pass; and the same
inside of a single component.
"""

from collections.abc import Callable
from typing import Any, Protocol

from spacy.tokens import Doc
from spacy_transformers.data_classes import TransformerData
from spacy_transformers.layers import TransformerModel, trfs2arrays
from thinc.api import Model, chain, torch2xp, xp2torch
from thinc.types import Floats2d, Ragged

from ..errors import Errors
from .criteria import ExitCriterion, read_criterion
from .encoder_layer import multi_exit_encoder, shim_of
from .engine import MultiExitModule
from .output import MultiExitOutput, OutputGradient, Request, Run
from .piece_encoder import encode, piece_encoder
from .pieces import Pieces
from .settings import Settings
from .trf_data import TrfDataPlan
from .units import SpanGetter


class HasExitSetting(Protocol):
    """What `replace_listener` needs of a component."""

    @property
    def criterion(self) -> ExitCriterion | None: ...


def MultiExitTransformer(
    name: str | None,
    get_spans: SpanGetter,
    tokenizer_config: dict[str, Any],
    transformer_config: dict[str, Any],
    encoder_lr_scale: float = 1.0,
    offramp_lr_scale: float = 100.0,
    special_share: float = 0.5,
    reach: int | None = 2,
    mean_pieces: bool = True,
    offramp_context: int = 1,
    align_exits: bool = False,
    catch_up: int = 0,
    mixed_precision: bool = False,
    pieces: str = "tokens",
) -> Model[Request, MultiExitOutput]:
    """A pretrained encoder with an off-ramp per layer
    (registered as spacy-earlyexit.MultiExitTransformer.v1).

    name (Optional[str]): Hub name or folder of the encoder; read at initialisation only. None in
        stage 2: that of stage 1.
    get_spans (SpanGetter): Proposes the units that are encoded and finished.
    tokenizer_config, transformer_config (Dict[str, Any]): Passed on to AutoTokenizer and AutoConfig
        when the encoder is loaded, for example {"hidden_dropout_prob": 0.2}.
    encoder_lr_scale, offramp_lr_scale (float): Factors on the optimiser's learning rate. The
        classifiers have to be ahead of the encoder.
    special_share, reach, mean_pieces: What follows from a word's exit, see batch.Rules. The
        defaults did best on dev (docs/experiments.md); docs/paper.md has the paper's.
    offramp_context (int): Words on each side that an off-ramp sees beside its own.
    align_exits (bool): A linear map per layer brings rows that leave behind it to where those of
        the last layer are. Only what listeners get goes through it, and learns it.
    catch_up (int): Rank of a linear map per layer that moves halted rows to about where the layer
        would have brought them (encoders.layers.CatchUp). Stage 2 fits the maps when it begins, and
        trains them. 0: halted rows are copied as they are, as in the paper.
    mixed_precision (bool): Train with bfloat16 products, which saves time on a processor that has
        them. Prediction is in float32 either way.
    pieces (str): "tokens": every token is cut into sub-word pieces on its own. "spans": the text of
        each span is cut as a whole, as spacy-transformers does; then there are no tasks.
    RETURNS (Model): The model. Its shapes are known after `initialize` or `from_bytes`. Calls
        differ by what output.Run says, and its backprop takes an output.OutputGradient.
    RAISES (ValueError): If a setting is impossible.
    """
    settings = Settings(
        name,
        tokenizer_config,
        transformer_config,
        special_share,
        reach,
        mean_pieces,
        offramp_context,
        align_exits,
        catch_up,
        pieces,
    )
    model: Model[Request, MultiExitOutput] = chain(
        piece_encoder(get_spans, settings),
        multi_exit_encoder(settings, encoder_lr_scale, offramp_lr_scale, mixed_precision),
    )
    model.init = _init
    model.attrs["settings"] = settings
    model.attrs["replace_listener"] = replace_listener
    model.attrs["replace_listener_cfg"] = replace_listener_cfg
    return model


def _init(model: Model, X: Any = None, Y: Any = None) -> None:
    """Load tokenizer and weights, once: thinc's `chain` initialises its layers twice."""
    for layer in model.layers:
        layer.initialize()


def as_multi_exit(model: Model, component: str) -> Model:
    """A MultiExitTransformer with the settings of a spacy-transformers.TransformerModel, or the
    model as it is.

    RAISES (ValueError): If it is neither.
    """
    if isinstance(model, TransformerModel):
        model = MultiExitTransformer(
            model.attrs["name"],
            model.attrs["get_spans"],
            model._init_tokenizer_config,
            model._init_transformer_config,
        )
    if not isinstance(model.attrs.get("settings"), Settings):
        raise ValueError(Errors.E024.format(name=component, found=model.name))
    model.attrs["settings"].component = component
    return model


def settings_of(model: Model) -> Settings:
    """RETURNS (Settings): Of a MultiExitTransformer."""
    return model.attrs["settings"]


def module_of(model: Model) -> MultiExitModule:
    """The torch module inside a MultiExitTransformer.

    RAISES (ValueError): If it has no weights yet.
    """
    module = shim_of(model.layers[1]).module
    if module is None:
        settings = settings_of(model)
        raise ValueError(Errors.E004.format(name=settings.name, component=settings.component))
    return module


def pieces_of(model: Model, docs: list[Doc]) -> Pieces:
    """RETURNS (Pieces): The packed pieces that a MultiExitTransformer makes of documents."""
    return encode(model.layers[0], docs)


def plan_of(model: Model, output: MultiExitOutput, docs: list[Doc]) -> TrfDataPlan:
    """Where the rows of a model's output go in doc._.trf_data.

    model (Model): The MultiExitTransformer that made the output for these Docs.
    """
    return TrfDataPlan(output.pieces, docs, model.layers[0].shims[0]._model.vocab)


def set_classes(model: Model, classes: dict[str, list[str]]) -> None:
    """Say what the off-ramps of a MultiExitTransformer tell apart; before it is initialised.

    classes (Dict[str, List[str]]): The classes of each task.
    """
    model.layers[1].attrs["classes"] = classes


def take_weights(model: Model, other: Model) -> None:
    """Give a MultiExitTransformer weights and tokenizer of another one, which loses them."""
    pieces, theirs = model.layers[0], other.layers[0]
    pieces.shims[0]._model = theirs.shims[0]._model
    pieces.attrs["max_positions"] = theirs.attrs["max_positions"]
    model.layers[1].attrs["classes"] = other.layers[1].attrs["classes"]
    shim_of(model.layers[1]).module = module_of(other)
    set_width(model)


def set_width(model: Model) -> None:
    """Tell thinc how wide the rows are, which it takes from the weights."""
    width = module_of(model).encoder.config.hidden
    for node in (model.layers[1], model):
        node.set_dim("nO", width, force=True)


def Tok2VecMultiExit(
    name: str | None,
    get_spans: SpanGetter,
    tokenizer_config: dict[str, Any],
    transformer_config: dict[str, Any],
    pooling: Model[Ragged, Floats2d],
    grad_factor: float = 1.0,
    encoder_lr_scale: float = 1.0,
    offramp_lr_scale: float = 100.0,
    special_share: float = 0.5,
    reach: int | None = 2,
    mean_pieces: bool = True,
    offramp_context: int = 1,
    align_exits: bool = False,
    catch_up: int = 0,
    pieces: str = "tokens",
) -> Model[list[Doc], list[Floats2d]]:
    """A multi-exit transformer as the tok2vec layer of one component
    (registered as spacy-earlyexit.Tok2VecMultiExit.v1; follows
    spacy-transformers.Tok2VecTransformer.v3).

    Its off-ramps decide with the exit setting that the transformer had when it was put in; they are
    not trained any more.

    name, get_spans, tokenizer_config, transformer_config: As for MultiExitTransformer.
    pooling (Model): Makes one vector of a token's pieces.
    grad_factor (float): Factor on the gradient from the component.
    encoder_lr_scale, offramp_lr_scale, special_share, reach, mean_pieces, offramp_context,
        align_exits, catch_up, pieces: As for MultiExitTransformer.
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
        mean_pieces,
        offramp_context,
        align_exits,
        catch_up,
        pieces=pieces,
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
    run = Run(criterion=read_criterion(model.attrs["exit"]), states=True)
    output, backprop = transformer(Request(docs, run), is_train)
    plan = plan_of(transformer, output, docs)

    def finish(gradients: list[TransformerData]) -> list:
        d_states = xp2torch(plan.join(gradients)) if gradients else None
        return backprop(OutputGradient(states=d_states))

    return plan.split(torch2xp(output.states.detach())), finish


def replace_listener(
    model: Model, listener: Model, component: HasExitSetting
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
