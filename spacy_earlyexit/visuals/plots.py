"""Score against speed-up as a picture, with matplotlib (`pip install 'spacy-earlyexit[plots]'`)."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from ..errors import Errors
from ..files import check_writable, write_bytes

# Without a suffix, a picture is written as both.
SUFFIXES = (".svg", ".png")

Points = Sequence[tuple[str, float, float]]


def check_plots(path: Path) -> None:
    """Before long work: whether a picture could be written.

    RAISES (ValueError, OSError): If matplotlib is missing, the suffix is of no kind of picture, or
        its folder can't be written in.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError:
        raise ValueError(Errors.E041) from None
    known = sorted(f".{kind}" for kind in FigureCanvasAgg.get_supported_filetypes())
    if path.suffix and path.suffix not in known:
        expected = f"a file name with one of {', '.join(known)}, or without (svg and png)"
        raise ValueError(Errors.E018.format(setting="plot", expected=expected, value=str(path)))
    check_writable(path)


def plot_scores(
    path: Path,
    points: Points,
    *,
    title: str,
    runs: Sequence[tuple[float, float]] = (),
    full: float | None = None,
) -> list[Path]:
    """Draw scores against MAC speed-ups.

    path (Path): The file; without a suffix, .svg and .png are written.
    points (Sequence[Tuple[str, float, float]]): Name, speed-up and score of what is named.
    title (str): Of the picture.
    runs (Sequence[Tuple[float, float]]): Speed-up and score of all that was run.
    full (Optional[float]): Score at full depth.
    RETURNS (List[Path]): The files.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    if full is not None:
        axes.axhline(100 * full, color="0.6", linewidth=0.8, linestyle=":", zorder=0)
    if runs:
        axes.plot(*_columns(runs), ".", color="0.55", markersize=5, label="run")
    axes.plot(*_columns([point[1:] for point in points]), "o", color="#d95f0e", label="point")
    for name, speedup, score in points:
        axes.annotate(
            name,
            (speedup, 100 * score),
            xytext=(5, 6),
            textcoords="offset points",
            fontsize=9,
        )
    axes.set(xlabel="MAC speed-up", ylabel="score (%)", title=title)
    axes.xaxis.set_major_formatter("{x:g}×")
    axes.margins(x=0.08, y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
    files = [path] if path.suffix else [path.with_name(path.name + end) for end in SUFFIXES]
    for file in files:
        content = BytesIO()
        settings: dict[str, Any] = {"metadata": {"Date": None}} if file.suffix == ".svg" else {}
        figure.savefig(content, format=file.suffix[1:], dpi=150, **settings)
        write_bytes(file, content.getvalue())
    return files


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [speedup for speedup, _ in pairs], [100 * score for _, score in pairs]
