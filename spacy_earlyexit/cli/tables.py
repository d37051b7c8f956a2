"""Tables and lists that several commands share."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from wasabi import msg

from ..errors import Errors

T = TypeVar("T")


def parse_list(text: str, setting: str, kind: Callable[[str], T], expected: str) -> list[T]:
    """The values between the commas.

    text (str): What was given; nothing between commas is left out.
    setting, expected (str): For the message.
    kind (Callable): Makes a value, such as float.
    RETURNS (List): The values.
    RAISES (ValueError): If one is no such thing.
    """
    try:
        return [kind(part.strip()) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(
            Errors.E018.format(setting=setting, expected=expected, value=text)
        ) from None


def parse_speedups(text: str) -> list[float]:
    """RETURNS (List[float]): The numbers between the commas.

    RAISES (ValueError): If one is no number.
    """
    return parse_list(text, "speedups", float, "numbers with commas between them")


def print_table(
    rows: Sequence[tuple[Any, ...]], header: Sequence[str] | None = None, aligns: str = ""
) -> None:
    """Print a table; aligns has one of l, r, c per column."""
    columns: list[Any] = list(aligns)
    # What is wider than max_col would push the columns behind it out of line.
    msg.table(list(rows), header=header, divider=header is not None, aligns=columns, max_col=200)


def print_speeds(title: str, names: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Print scores and costs of several systems or settings.

    names (Sequence[str]): Of the rows.
    rows (Sequence[Dict[str, Any]]): scores, exit_layer_mean, exit_speedup; if the first was timed,
        words_per_second, wall_speedup.
    """
    scores = list(rows[0]["scores"])
    timed = "words_per_second" in rows[0]
    header = ["", *scores, "exit layer", "MAC speed-up"]
    header += ["words/s", "wall-clock speed-up"] if timed else []
    table = []
    for name, row in zip(names, rows, strict=True):
        cells = [name, *(f"{100 * row['scores'].get(key, 0.0):.2f}" for key in scores)]
        cells += [f"{row['exit_layer_mean']:.2f}", f"{row['exit_speedup']:.2f}x"]
        if timed:
            seconds = "words_per_second" in row
            cells += [f"{row['words_per_second']:,.0f}" if seconds else "-"]
            cells += [f"{row['wall_speedup']:.2f}x" if seconds else "-"]
        table.append(tuple(cells))
    msg.divider(title)
    print_table(table, header, "l" + "r" * (len(header) - 1))
