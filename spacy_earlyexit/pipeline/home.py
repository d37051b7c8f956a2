"""A weak reference to a pipeline that survives copies and pickles of the pipeline."""

import weakref
from typing import Any

from spacy.language import Language


class PipelineRef:
    """Refers to a pipeline without keeping it alive. In a copy of the pipeline it refers to the
    copy; in a copy of a component alone to none.
    """

    def __init__(self, nlp: Language | None = None):
        self._ref = None if nlp is None else weakref.ref(nlp)

    def __call__(self) -> Language | None:
        return None if self._ref is None else self._ref()

    def __deepcopy__(self, memo: dict[int, Any]) -> "PipelineRef":
        nlp = self()
        return PipelineRef(memo.get(id(nlp)) if nlp is not None else None)

    def __reduce__(self) -> tuple[Any, ...]:
        # The pipeline itself: spaCy pickles it for its workers anyway, and pickle stores it once.
        return PipelineRef, (None,), self()

    def __setstate__(self, nlp: Language | None) -> None:
        self._ref = None if nlp is None else weakref.ref(nlp)
