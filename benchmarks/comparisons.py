"""What the rows of a benchmark say against each other: ours and the peers', as ratios."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

OURS, PEER = "ours", "spacy-transformers"
MOST_LOST = 0.01  # of each score at full depth, where "early exit" is named without a point
POINTS = ("2x", "3x", "4x")
LABELS = {"score": "score", "tag_acc": "tag accuracy"}

Row = Mapping[str, Any]


def comparisons(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """RETURNS (Tuple[List[str], List[List[str]]]): Header and rows of a table, as text: what is
    compared on which corpus, what is wanted of it, and what was found. Where a system is missing,
    the row is.
    """
    lines: list[list[str]] = []
    for corpus in dict.fromkeys(row["corpus"] for row in results["rows"]):
        own = [row for row in results["rows"] if row["corpus"] == corpus]
        lines += [[corpus, *line] for line in _of_corpus(own)]
    return ["corpus", "what", "wanted", "found", ""], lines


def brief(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """RETURNS (Tuple[List[str], List[List[str]]]): Header and rows of a short table, as text: the
    peers that run the whole encoder, and of ours full depth and the fastest early exit.
    """
    columns = ["corpus", "system", "score", "tags", "words/s", f"to {PEER}"]
    lines: list[list[str]] = []
    for corpus in dict.fromkeys(row["corpus"] for row in results["rows"]):
        own = [row for row in results["rows"] if row["corpus"] == corpus]
        found = {(row["system"], row["setting"]): row for row in own}
        peer = found.get((PEER, ""))
        full = found.get((OURS, "full float32"))
        if peer is None or full is None:
            continue
        whole = [key for key in found if key[0] in (PEER, "Hugging Face", "ONNX Runtime")]
        exits = [_best(own, full, precision, _words) for precision in ("float32", "int8")]
        for row in [*map(found.get, whole), full, *exits]:
            if row is not None:
                lines.append(
                    [
                        corpus,
                        ", ".join(filter(None, [row["system"], row["setting"]])),
                        _percent(row["score"] if row["score"] != row["tag_acc"] else None),
                        _percent(row["tag_acc"]),
                        f"{_words(row):,.0f}",
                        f"{_words(row) / _words(peer):.1f}×",
                    ]
                )
    return columns, lines


def _of_corpus(rows: Sequence[Row]) -> list[list[str]]:
    found = {(row["system"], row["setting"]): row for row in rows}
    lines: list[list[str]] = []

    def ratio(
        what: str, above: Row | None, below: Row | None, key: str, limit: float, least: bool = True
    ) -> None:
        if above is None or below is None or not above[key] or not below[key]:
            return
        value = above[key] / below[key]
        fine = value >= limit if least else value <= limit
        lines.append([what, f"{'≥' if least else '≤'} {limit:g}×", f"{value:.2f}×", _mark(fine)])

    full = found.get((OURS, "full float32"))
    if full is None:
        return []
    peer = found.get((PEER, ""))
    exits = {p: _best(rows, full, p, _words) for p in ("float32", "int8")}
    named = {p: f"early exit in {p} ({_setting(row)})" for p, row in exits.items()}
    onnx = {p: found.get(("ONNX Runtime", p)) for p in exits}
    ratio(f"words/s, full depth to {PEER}", full, peer, "words_per_second", 2.0)
    for precision, limit in (("float32", 6.0), ("int8", 10.0)):
        what = f"words/s, {named[precision]} to {PEER}"
        ratio(what, exits[precision], peer, "words_per_second", limit)
    for precision, limit in (("float32", 2.7), ("int8", 1.8)):
        what = f"words/s, {named[precision]} to ONNX Runtime in {precision}"
        ratio(what, exits[precision], onnx[precision], "words_per_second", limit)
    for point in POINTS:
        row = found.get((OURS, f"{point} float32"))
        if row is not None and row["wall_speedup"] and row["mac_speedup"]:
            value = row["wall_speedup"] / row["mac_speedup"]
            what = f"wall-clock to MAC speed-up at {point}"
            lines.append([what, "≥ 0.85", f"{value:.2f}", _mark(value >= 0.85)])
    quick = _best(rows, full, "", lambda row: -row["latency_ms"] if row["latency_ms"] else -np.inf)
    what = f"latency, early exit ({_setting(quick)}) to {PEER}"
    ratio(what, quick, peer, "latency_ms", 0.35, least=False)
    ratio(f"peak memory, full depth to {PEER}", full, peer, "peak_mb", 1.0, least=False)
    cut = [
        r for r in rows if r["system"].startswith("encoder cut") or r["system"] == "Hugging Face"
    ]
    cut.sort(key=_words)
    # Cut encoders learn one task; where they tag, it's their tags that compare with ours.
    kind = "tag_acc" if cut and all(r["tag_acc"] is not None for r in cut) else "score"
    for point in POINTS:
        row = found.get((OURS, f"{point} float32"))
        if row is None or len(cut) < 2:
            continue
        # The score that a cut encoder of the same speed would have, between those there are.
        rival = np.interp(_words(row), [_words(r) for r in cut], [r[kind] for r in cut])
        value = 100 * (row[kind] - rival)
        what = f"{LABELS[kind]} at {point} less that of a cut encoder of the same speed"
        lines.append([what, "> 0", f"{value:+.2f}", _mark(value > 0)])
    return lines


def _best(
    rows: Sequence[Row], full: Row, precision: str, worth: Callable[[Row], float]
) -> Row | None:
    """Our best row that loses no more than MOST_LOST of any score against full depth."""
    own = [r for r in rows if r["system"] == OURS and r["setting"].endswith(precision)]
    early = [r for r in own if not r["setting"].startswith("full")]
    kinds = [kind for kind in LABELS if full[kind] is not None]
    fine = [r for r in early if all(r[kind] >= full[kind] - MOST_LOST for kind in kinds)]
    return max(fine, key=worth, default=None)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def _words(row: Row) -> float:
    return float(row["words_per_second"])


def _setting(row: Row | None) -> str:
    return "none" if row is None else str(row["setting"])


def _mark(fine: bool) -> str:
    return "yes" if fine else "no"
