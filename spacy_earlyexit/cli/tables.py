"""Tables and lists that several commands share."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from wasabi import msg

from ..errors import Errors
from ..visuals.printable import printable

if TYPE_CHECKING:
    from rich.table import Table

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
    """Print a table that fits the terminal (80 columns in a file).

    A left-aligned last column that does not fit goes into a second table below.

    rows (Sequence[Tuple[Any, ...]]): The cells; what steers a terminal is replaced.
    header (Optional[Sequence[str]]): The names of the columns.
    aligns (str): One of l, r, c per column.
    """
    from rich.cells import cell_len
    from rich.console import Console

    if not rows and not header:
        return
    console = Console(highlight=False)
    cells = [[printable(cell) for cell in row] for row in rows]
    every = [[printable(name) for name in header], *cells] if header else cells
    widths = [max(map(cell_len, column)) for column in zip(*every, strict=True)]
    fits = sum(widths) + 2 * (len(widths) - 1) <= console.width
    if not fits and header and len(widths) > 3 and aligns.endswith("l"):
        tables = [range(len(widths) - 1), (0, len(widths) - 1)]
    else:
        tables = [range(len(widths))]
    for number, shown in enumerate(tables):
        if number:
            console.print()
        console.print(
            _table(
                [[row[i] for i in shown] for row in cells],
                [every[0][i] for i in shown] if header else None,
                "".join(aligns[i] if i < len(aligns) else "l" for i in shown),
            )
        )


def _table(rows: list[list[str]], header: list[str] | None, aligns: str) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD if header else None,
        show_header=header is not None,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0) if header else (0, 2, 0, 0),  # two columns between cells
    )
    kinds: dict[str, Any] = {"l": "left", "r": "right", "c": "center"}
    for i, align in enumerate(aligns):
        name = Text(header[i]) if header else ""
        short = i == 0 and max((len(row[0]) for row in rows), default=0) <= 20
        least = max(len(row[0]) for row in rows) if short and rows else None
        table.add_column(name, min_width=least, justify=kinds[align], overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


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
    msg.divider(printable(title))
    print_table(table, header, "l" + "r" * (len(header) - 1))
