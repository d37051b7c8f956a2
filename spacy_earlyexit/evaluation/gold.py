"""Whether data say anything about a pipeline: gold for its components, with labels it knows; text
like that of training.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spacy.training import Example

from ..errors import Errors, Warnings
from ..model.architecture import pieces_of
from ..model.text_units import TextUnits
from ..pipeline.finding import fresh_docs
from ..pipeline.regime import MOST, Sample, warn_of_regime
from ..pipeline.tasks import find_task, is_bio

if TYPE_CHECKING:
    from ..pipeline.transformer import EarlyExitTransformer

LABELS_NAMED = 10


def check_gold(
    transformer: "EarlyExitTransformer", examples: Sequence[Example], source: str | Path
) -> bool:
    """Check the gold of the tasks that components behind a transformer read. A warning says which
    labels the pipeline does not know, where it knows others of them.

    transformer (EarlyExitTransformer): In its pipeline.
    examples (Sequence[Example]): With gold.
    source (Union[str, Path]): Where they come from, for messages.
    RETURNS (bool): Whether there is gold for any of the tasks.
    RAISES (ValueError): If the pipeline knows none of the labels of a task.
    """
    found = False
    for name, component in transformer.components_behind():
        for task in transformer.tasks_of(component):
            reader, known = find_task(task), transformer.label_data.get(task)
            if reader is None or known is None:
                continue
            classes = {c for eg in examples for c in reader.gold(eg) if c is not None}
            found = found or bool(classes)
            own = reader.classes(known)
            bio = is_bio(own)
            labels = {c[2:] if bio else c for c in classes if not (bio and c == "O")}
            if unknown := sorted(labels - {c[2:] if bio else c for c in own}):
                settings = {
                    "source": source,
                    "name": name,
                    "task": task,
                    "unknown": _named(unknown),
                    "known": _named(known),
                }
                if len(unknown) == len(labels):
                    raise ValueError(Errors.E080.format(**settings))
                warnings.warn(Warnings.W008.format(**settings), stacklevel=3)
    return found


def check_regime(
    transformer: "EarlyExitTransformer", examples: Sequence[Example], source: str | Path
) -> None:
    """Warn where tokens are not of the kind that a transformer was trained on, or units much longer
    or shorter.

    transformer (EarlyExitTransformer): In its pipeline.
    examples (Sequence[Example]): Their predicted Docs give the tokens.
    source (Union[str, Path]): Where they come from, for messages.
    """
    trained = transformer.regime
    if trained is not None:
        first = examples[:MOST]
        pieces = pieces_of(transformer.model, fresh_docs(transformer, first))
        sample = Sample()
        sample.add(transformer.nlp, [eg.predicted for eg in first], pieces)
        cuts = isinstance(transformer.model.layers[0].attrs["get_spans"], TextUnits)
        warn_of_regime(
            transformer.name,
            trained,
            sample.describe(),
            str(source),
            cuts=cuts,
            unknown_spaces=any(eg.reference.has_unknown_spaces for eg in first),
        )


def _named(labels: Sequence[str]) -> str:
    more = ", …" if len(labels) > LABELS_NAMED else ""
    return ", ".join(labels[:LABELS_NAMED]) + more
