"""The factory `earlyexit_transformer` and its defaults."""

from collections.abc import Callable
from typing import Any

from spacy.language import Language
from spacy_transformers.annotation_setters import null_annotation_setter
from thinc.api import Config, Model

from ..errors import Errors
from ..model.architecture import as_multi_exit
from .transformer import EarlyExitTransformer

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
pieces = "tokens"

[transformer.model.get_spans]
@span_getters = "spacy-earlyexit.text_units.v1"
length = 32
longest = 128

[transformer.scorer]
@scorers = "spacy-earlyexit.exit_scorer.v1"
speedups = []
window = 2
"""
)


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
) -> EarlyExitTransformer:
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
    loss (Optional[Callable]): The joint loss, a spacy-earlyexit.JointLoss.v1. None: that with its
        defaults.
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
        raise ValueError(Errors.E025.format(name=name))
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
