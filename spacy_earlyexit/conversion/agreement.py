"""Two pipelines on the same texts: what they say otherwise, and how fast they are."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from spacy.attrs import DEP, ENT_IOB, ENT_TYPE, HEAD, LEMMA, MORPH, POS, SENT_START, TAG
from spacy.language import Language
from spacy.tokens import Doc
from tqdm import tqdm

from ..evaluation.scores import speeds

# What components say of a token.
LABELS = [TAG, POS, MORPH, LEMMA, HEAD, DEP, ENT_IOB, ENT_TYPE, SENT_START]

# Read where nobody names texts.
TEXTS = (
    "Last spring Maria Keller left Siemens in Munich and opened a small bakery near the Charles "
    "Bridge in Prague. She didn't know a word of Czech. \"I'd do it again,\" she says.",
    "The ferry to Helsinki leaves at 6:45 p.m. from Pier 7. It cannot take cars longer than 5.5 "
    "metres, and dogs aren't allowed on deck.",
    "Researchers at the University of Oslo have counted 1,204 puffins on Hornøya, 12% fewer than "
    "in 2019. They're not sure why: the herring haven't moved, and it hasn't been a cold year.",
    "Call Dr. Okafor's office (ext. 4410) before Friday!!! He wants the X-rays & the blood test.",
    "In the second half Kenya's defence, so solid until then, let Senegal's Diallo through twice.",
    "omg did u see the new trailer?? its out on the 3rd, cant wait :)",
    "The Bank of Korea kept its rate at 3.5 percent on Thursday, as economists in a poll by a "
    "newspaper had expected. Governor Rhee said inflation wouldn't fall below 2% before summer.",
    "To build the shelf, you'll need eight screws, a spirit level and somebody to hold the board.",
    "Mount Elgon, on the border of Uganda and Kenya, is older than Kilimanjaro; its caves, which "
    "elephants visit for salt, are described in a paper by Lundberg and McFarlane (2006).",
    '"Why don\'t we walk?" Tom asked. It was only two miles to St. Ives, and the rain had stopped.',
)


def differing(one: Sequence[Doc], other: Sequence[Doc]) -> int:
    """Compare what two pipelines said of the same texts.

    one, other (Sequence[Doc]): Docs of the same texts.
    RETURNS (int): How many tokens of the first differ in a label; all of a Doc whose tokens,
        categories or spans differ.
    """
    differ = 0
    for a, b in zip(one, other, strict=True):
        if len(a) != len(b) or _best(a.cats) != _best(b.cats) or _spans(a) != _spans(b):
            differ += len(a)
        elif len(a):
            differ += int((a.to_array(LABELS) != b.to_array(LABELS)).any(axis=1).sum())
    return differ


def _best(cats: Mapping[str, float]) -> str | None:
    return max(cats, key=lambda label: cats[label]) if cats else None


def _spans(doc: Doc) -> dict[str, set[tuple[int, int, str]]]:
    return {
        key: {(span.start, span.end, span.label_) for span in group}
        for key, group in doc.spans.items()
    }


def compare(
    systems: Mapping[str, Language],
    texts: Sequence[str],
    *,
    repeats: int = 3,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Run pipelines on raw texts in turns.

    systems (Mapping[str, Language]): By name; labels and speeds are compared with the first.
    texts (Sequence[str]): What they read.
    repeats (int): Timed rounds, after one that warms up and gives the labels.
    progress (bool): Draw a progress bar.
    RETURNS (List[Dict[str, Any]]): A row each: system, words, differ (tokens with another label
        than the first's), and if timed words_per_second (median), spread, wall_speedup.
    """
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    docs: dict[str, list[Doc]] = {}
    hidden = None if progress else True
    with tqdm(total=(repeats + 1) * len(systems), unit="run", disable=hidden, leave=False) as bar:
        for repeat in range(repeats + 1):
            for name, nlp in systems.items():
                start = time.perf_counter()
                found = list(nlp.pipe(texts))
                if repeat:
                    seconds[name].append(time.perf_counter() - start)
                else:
                    docs[name] = found
                bar.update()
    first = next(iter(systems))
    words = sum(map(len, docs[first]))
    timed = speeds(seconds, words) if repeats else {}
    return [
        {
            "system": name,
            "words": words,
            "differ": differing(docs[first], found),
            **timed.get(name, {}),
        }
        for name, found in docs.items()
    ]
