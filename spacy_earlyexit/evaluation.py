"""Scores of depth and cost, and speed-accuracy tables."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from tqdm import tqdm

from .extensions import exit_layers, exit_stats

if TYPE_CHECKING:
    from .criteria import ExitCriterion
    from .pipeline.consumer import ExitConsumer
    from .pipeline.transformer import EarlyExitTransformer


def find_transformer(nlp: Language) -> "EarlyExitTransformer":
    """The pipeline's (first) earlyexit_transformer, disabled or not.

    nlp (Language): The pipeline.
    RETURNS (EarlyExitTransformer): The component.
    RAISES (ValueError): If it has none; the message names what it has.
    """
    from .pipeline.transformer import EarlyExitTransformer

    for _, pipe in nlp.components:
        if isinstance(pipe, EarlyExitTransformer):
            return pipe
    found = ", ".join(f"{name} ({nlp.get_pipe_meta(name).factory})" for name in nlp.component_names)
    raise ValueError(
        f"There is no earlyexit_transformer in this pipeline, only: {found or 'nothing'}. "
        "Add one to `pipeline` in [nlp], with a block in [components]."
    )


def find_consumers(nlp: Language, transformer: "EarlyExitTransformer") -> dict[str, "ExitConsumer"]:
    """The components behind a transformer that read its exits, disabled ones too (which spaCy
    leaves out when it links a pipeline).

    nlp (Language): The pipeline.
    transformer (EarlyExitTransformer): Its transformer.
    RETURNS (Dict[str, ExitConsumer]): By name, in the pipeline's order.
    """
    from .pipeline.consumer import ExitConsumer

    behind = nlp.components[[pipe for _, pipe in nlp.components].index(transformer) + 1 :]
    return {
        name: pipe
        for name, pipe in behind
        if isinstance(pipe, ExitConsumer) and pipe.upstream in ("*", transformer.name)
    }


def depth_scores(examples: Sequence[Example]) -> dict[str, float]:
    """Mean exit layer over all encoded words and MAC speed-up over the corpus (a ratio of sums).

    RETURNS (Dict[str, float]): exit_layer_mean, exit_speedup.
    """
    layers: list[int] = []
    macs = macs_full = 0.0
    for example in examples:
        layers.extend(layer for layer in exit_layers(example.predicted) if layer)
        stats = exit_stats(example.predicted)
        macs += stats["macs"]
        macs_full += stats["macs_full"]
    return {
        "exit_layer_mean": float(np.mean(layers)) if layers else 0.0,
        "exit_speedup": macs_full / macs if macs else 1.0,
    }


def bare_doc(doc: Doc, *, sentences: bool = True) -> Doc:
    """The tokens of a Doc with nothing on them.

    sentences (bool): Keep sentence boundaries, if there are any.
    """
    starts: list[bool | int | None] = [token.is_sent_start for token in doc] if sentences else []
    return Doc(
        doc.vocab,
        words=[token.text for token in doc],
        spaces=[bool(token.whitespace_) for token in doc],
        sent_starts=starts if any(s is not None for s in starts) else None,
    )


def fresh_docs(transformer: "EarlyExitTransformer", examples: Sequence[Example]) -> list[Doc]:
    """Docs as they come to a transformer: tokens, and what the components in front of it say.

    Sentence boundaries are taken over only where no component of the pipeline finds them: those
    of a Doc that went through the pipeline are its answer, not part of the question.

    transformer (EarlyExitTransformer): In its pipeline.
    examples (Sequence[Example]): Their predicted Docs give the tokens.
    RETURNS (List[Doc]): New Docs.
    """
    nlp = transformer.nlp
    finders = {"token.is_sent_start", "doc.sents"}
    found = any(finders & set(nlp.get_pipe_meta(name).assigns) for name in nlp.pipe_names)
    docs = [bare_doc(eg.predicted, sentences=not found) for eg in examples]
    at = nlp.pipe_names.index(transformer.name)
    if at > 0:
        docs = list(nlp.pipe(docs, disable=nlp.pipe_names[at:]))
    return docs


def component_scores(
    components: Sequence[tuple[str, Any]], nlp: Language, examples: Sequence[Example]
) -> tuple[dict[str, float], float]:
    """The scores that count for each component, by the weights of its factory, as in the config
    that `spacy init config` makes.

    components (Sequence[Tuple[str, Any]]): Components of the pipeline by name.
    nlp (Language): The pipeline.
    examples (Sequence[Example]): Examples with predictions.
    RETURNS (Tuple[Dict[str, float], float]): The scores, such as {"ents_f": 0.9}, and the mean of
        the components' weighted means.
    """
    found: dict[str, float] = {}
    means: list[float] = []
    for name, pipe in components:
        weights = {
            k: w for k, w in (nlp.get_pipe_meta(name).default_score_weights or {}).items() if w
        }
        if not weights or not hasattr(pipe, "score"):
            continue
        scores = pipe.score(examples)
        own = {key: scores[key] for key in weights if scores.get(key) is not None}
        total = sum(weights[key] for key in own)
        means.append(sum(weights[key] * own[key] for key in own) / total if total else 0.0)
        found.update(own)
    return found, sum(means) / len(means) if means else 0.0


def compare_settings(
    nlp: Language,
    transformer: "EarlyExitTransformer",
    examples: Sequence[Example],
    settings: Mapping[str, "None | str | ExitCriterion"],
    *,
    repeats: int = 5,
) -> list[dict[str, Any]]:
    """Score and time exit settings of one pipeline, interleaved, on the same Docs.

    One round warms up and gives the scores; then every round times each setting once with
    nlp.pipe, from Docs with tokens to annotated Docs.

    nlp (Language): The pipeline.
    transformer (EarlyExitTransformer): Its transformer.
    examples (Sequence[Example]): Their predicted Docs give tokens, their references the gold.
    settings (Mapping[str, Union[None, str, ExitCriterion]]): Exit settings by name; the first is
        what wall-clock speed-ups compare with.
    repeats (int): Timed rounds; 0 for scores only.
    RETURNS (List[Dict[str, Any]]): A row per setting: setting, exit (its block), scores,
        exit_layer_mean, exit_speedup (MACs), words_per_second (median), spread (its least and
        greatest), wall_speedup.
    """
    n_words = sum(len(eg.predicted) for eg in examples)
    seconds: dict[str, list[float]] = {name: [] for name in settings}
    rows: dict[str, dict[str, Any]] = {}
    with tqdm(total=(repeats + 1) * len(settings), unit="run", disable=None, leave=False) as bar:
        for repeat in range(repeats + 1):
            for name, setting in settings.items():
                bar.set_description(name)
                docs = [bare_doc(eg.predicted) for eg in examples]
                with transformer.use(setting):
                    criterion = transformer.criterion
                    start = time.perf_counter()
                    done = list(nlp.pipe(docs))
                    elapsed = time.perf_counter() - start
                if repeat == 0:
                    scored = [
                        Example(doc, eg.reference) for doc, eg in zip(done, examples, strict=True)
                    ]
                    rows[name] = {
                        "setting": name,
                        "exit": criterion.to_config() if criterion else None,
                        **component_scores(transformer.components_behind(), nlp, scored)[0],
                        **depth_scores(scored),
                    }
                else:
                    seconds[name].append(elapsed)
                bar.update()
    if repeats:
        base = statistics.median(next(iter(seconds.values())))
        for name, times in seconds.items():
            rows[name]["words_per_second"] = n_words / statistics.median(times)
            rows[name]["spread"] = [n_words / max(times), n_words / min(times)]
            rows[name]["wall_speedup"] = base / statistics.median(times)
    return list(rows.values())
