"""Options that several commands share."""

import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import Errors

GpuId = Annotated[int, typer.Option("--gpu-id", "-g", help="GPU ID or -1 for CPU")]
Force = Annotated[
    bool, typer.Option("--force", "-F", help="Replace the output folder if it exists")
]
CodePath = Annotated[
    Path | None,
    typer.Option("--code", "-c", help="Python file with registered functions to import first"),
]
GoldPreproc = Annotated[
    bool, typer.Option("--gold-preproc", "-G", help="Use gold tokens and sentences")
]
Limit = Annotated[int, typer.Option(help="First documents only, 0 for all", min=0)]
Plot = Annotated[
    Path | None,
    typer.Option(help="Picture of score against speed-up: .svg, .png; no suffix: both"),
]


@contextmanager
def warnings_as_messages() -> Iterator[None]:
    """Print warnings as the commands print all else, not as Python does."""
    from wasabi import msg

    def show(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        msg.warn(textwrap.fill(str(message), 78))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def setup_device(gpu_id: int) -> None:
    """Use a GPU, or the CPU; ends the command where there is no GPU.

    gpu_id (int): -1 for the CPU.
    """
    from spacy.cli._util import setup_gpu
    from thinc.compat import has_gpu
    from wasabi import msg

    if gpu_id >= 0 and not has_gpu:
        msg.fail(Errors.E089.format(gpu_id=gpu_id), exits=1)
    setup_gpu(gpu_id)
