"""What a score is made of, document by document, and how sure a difference of two scores is."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial

import numpy as np
from spacy.attrs import ENT_IOB, IS_SPACE, POS, TAG
from spacy.scorer import PRFScore
from spacy.training import Example

# Resamples for the interval of a loss, and the share of them that lies inside.
RESAMPLES, CONFIDENCE = 1000, 0.95
# Numbers that are drawn at once, and the most that are kept for the next time (2 bytes each).
BLOCK, MOST_KEPT = 2**20, 2**24


def count_hits(examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """What F1 and accuracy are made of, document by document.

    examples (Sequence[Example]): Examples with predictions.
    RETURNS (Dict[str, ndarray]): For ents_f, tag_acc, pos_acc and token_f: hits, predicted and gold
        items of each document, shape (n_docs, 3); nothing where the gold has no annotation. Of them
        follow the scores of spaCy's Scorer, which says what is an item.
    """
    kinds: dict[str, tuple[str, Callable[[Example], PRFScore]]] = {
        "ents_f": ("ENT_IOB", _entities),
        "tag_acc": ("TAG", partial(_token_values, TAG)),
        "pos_acc": ("POS", partial(_token_values, POS)),
        "token_f": ("ORTH", _tokens),
    }
    found = {}
    for key, (attribute, score) in kinds.items():
        counts = np.zeros((len(examples), 3), dtype=np.int64)
        for row, eg in zip(counts, examples, strict=True):
            if eg.reference.has_annotation(attribute):
                own = score(eg)
                row[:] = own.tp, own.tp + own.fp, own.tp + own.fn
        found[key] = counts
    return found


def _tokens(eg: Example) -> PRFScore:
    """Tokens by their characters, as Scorer.score_tokenization compares them."""
    score = PRFScore()
    if not eg.reference.has_unknown_spaces:
        predicted, gold = (
            {(token.idx, len(token)) for token in doc if not token.is_space}
            for doc in (eg.predicted, eg.reference)
        )
        score.score_set(predicted, gold)
    return score


def _token_values(attribute: int, eg: Example) -> PRFScore:
    """Tokens with their values, as Scorer.score_token_attr compares them: only those that the gold
    has a value for, and of the predicted ones those that are one gold token.
    """
    gold = eg.reference.to_array([attribute]).ravel()
    values = eg.predicted.to_array([attribute]).ravel()
    to_gold = eg.alignment.x2y
    is_space = eg.predicted.to_array([IS_SPACE]).ravel()
    alone = np.flatnonzero((to_gold.lengths == 1) & (is_space == 0))
    at = to_gold.data[(np.cumsum(to_gold.lengths) - to_gold.lengths)[alone]]
    known = gold[at] != 0
    predicted = set(zip(at[known].tolist(), values[alone][known].tolist(), strict=True))
    score = PRFScore()
    score.score_set(predicted, {(i, value) for i, value in enumerate(gold.tolist()) if value})
    return score


def _entities(eg: Example) -> PRFScore:
    """Entities in gold tokens, as spaCy's get_ner_prf compares them: where words are cut
    differently, a predicted one is that of the gold tokens that it touches, so that several can be
    the same, of which one is right; one that touches a token without gold is none.
    """
    score = PRFScore()
    to_gold = eg.alignment.x2y
    iob = eg.reference.to_array([ENT_IOB]).ravel()
    missed = {(ent.label_, ent.start, ent.end) for ent in eg.reference.ents}
    for ent in eg.predicted.ents:
        at = to_gold[ent.start : ent.end]
        if len(at) and iob[at[0] : at[-1] + 1].all():
            found = (ent.label_, int(at[0]), int(at[-1]) + 1)
            if found in missed:
                missed.remove(found)
                score.tp += 1
            else:
                score.fp += 1
    score.fn = len(missed)
    return score


def paired_losses(
    base: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], scores: Iterable[str]
) -> dict[str, list[float]]:
    """What another setting loses on the same documents, with an interval by bootstrap: documents
    are drawn anew, the same ones for both (Efron and Tibshirani 1993, chapter 13).

    base, other (Mapping[str, ndarray]): Of count_hits.
    scores (Iterable[str]): Which scores; what count_hits does not know is left out.
    RETURNS (Dict[str, List[float]]): Per score the loss (below 0: a gain), and the ends of its
        interval.
    """
    losses: dict[str, list[float]] = {}
    for key, (loss, resampled) in _resampled_losses(base, other, scores).items():
        ends = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        losses[key] = [loss, *ends.tolist()]
    return losses


def standard_error(
    base: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], score: str
) -> float:
    """How far chance alone moves what another setting loses of a score: the standard deviation over
    the resamples of paired_losses (Efron and Tibshirani 1993, chapter 6).

    base, other (Mapping[str, ndarray]): Of count_hits.
    score (str): Which one.
    RETURNS (float): The standard error; 0 if count_hits does not know the score.
    """
    losses = _resampled_losses(base, other, [score])
    return float(np.std(losses[score][1])) if losses else 0.0


def _resampled_losses(
    base: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], scores: Iterable[str]
) -> dict[str, tuple[float, np.ndarray]]:
    """RETURNS (Dict[str, Tuple[float, ndarray]]): Per score that count_hits knows the loss, and
    that on each resample, shape (RESAMPLES,); a resample has the same documents for all scores.
    """
    keys = [key for key in scores if key in base]
    if not keys:
        return {}
    counts = np.concatenate([own[key] for key in keys for own in (base, other)], axis=1)
    hits, predicted, gold = (
        resampled_sums(counts).reshape(-1, len(keys), 2, 3).transpose(3, 1, 2, 0)
    )
    f_scores = 2 * hits / np.maximum(predicted + gold, 1)
    losses = f_scores[:, 0] - f_scores[:, 1]
    return {key: (float(own[0]), own[1:]) for key, own in zip(keys, losses, strict=True)}


def resampled_sums(counts: np.ndarray) -> np.ndarray:
    """Sums over documents that are drawn anew, with bounded memory for any number of them.

    counts (ndarray): Whole numbers of each document, shape (n_docs, n).
    RETURNS (ndarray): Their sums, over the documents as they are and over each resample, shape
        (1 + RESAMPLES, n). Documents are drawn by a fixed seed.
    """
    exact = counts.astype(np.float64)  # whole numbers, which products of floats keep
    sums = [exact.sum(axis=0, keepdims=True)]
    sums += [draws.astype(np.float64) @ exact for draws in _draws(len(counts), RESAMPLES)]
    return np.concatenate(sums)


def _draws(n_docs: int, n: int) -> Iterable[np.ndarray]:
    """How often each resample has each document, in blocks of shape (≤ n, n_docs)."""
    return _kept_draws(n_docs, n) if n * n_docs <= MOST_KEPT else _draw(n_docs, n)


@lru_cache(maxsize=1)  # calibrate compares many runs over the same documents
def _kept_draws(n_docs: int, n: int) -> list[np.ndarray]:
    return [draws.astype(np.uint16) for draws in _draw(n_docs, n)]


def _draw(n_docs: int, n: int) -> Iterator[np.ndarray]:
    random = np.random.default_rng(0)
    block = max(BLOCK // n_docs, 1)
    for first in range(0, n, block):
        yield random.multinomial(n_docs, [1 / n_docs] * n_docs, min(block, n - first))
