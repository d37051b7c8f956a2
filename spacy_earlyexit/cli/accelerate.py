"""python -m spacy earlyexit accelerate"""

from pathlib import Path
from typing import Annotated, Any

import typer
from wasabi import msg

from .options import CodePath, Force, GpuId, setup_device
from .tables import print_table


def accelerate_cli(
    pipeline: Annotated[str, typer.Argument(help="Folder or package of a trained pipeline")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the new pipeline")],
    texts: Annotated[
        Path | None,
        typer.Option(
            help='Texts to compare on: .txt (a text per line), .jsonl (with "text") or .spacy; '
            "without it, a few paragraphs of English",
            exists=True,
        ),
    ] = None,
    precision: Annotated[str, typer.Option(help="float32, or int8: faster, nearly the same")] = (
        "float32"
    ),
    repeats: Annotated[int, typer.Option(help="Timed rounds (medians); 0: labels only", min=0)] = 3,
    gpu_id: GpuId = -1,
    force: Force = False,
    code_path: CodePath = None,
) -> None:
    """Make a finished pipeline that uses spacy-transformers faster, without data or training: the
    same weights on the packed engine. Shows words per second and labels that differ.
    """
    import spacy
    from spacy.cli._util import import_code

    from ..conversion.accelerate import accelerate
    from ..conversion.agreement import TEXTS, compare
    from ..files import check_output, replacing

    import_code(code_path)
    setup_device(gpu_id)
    try:
        check_output(output, force, pipeline)
        original = spacy.load(pipeline)
        nlp = accelerate(spacy.load(pipeline), precision)
        read = read_texts(texts, original) if texts is not None else 5 * list(TEXTS)
        systems = {"original": original, "accelerated": nlp}
        rows = compare(systems, read, repeats=repeats, progress=True)
        with replacing(output) as folder:
            nlp.to_disk(folder)
    except (OSError, ValueError) as error:
        msg.fail(f"Can't accelerate the pipeline '{pipeline}'", str(error), exits=1)
    source = texts.name if texts is not None else "built-in texts"
    msg.divider(f"{rows[0]['words']:,} words of {source}")
    print_rows(rows)
    msg.good(f"Saved the pipeline to {output}")


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print what compare returned as a table."""
    header = ["", "labels differ"]
    table = [[row["system"], f"{row['differ']:,}" if i else ""] for i, row in enumerate(rows)]
    if "words_per_second" in rows[0]:
        header += ["words/s", "from", "to", "speed-up"]
        for cells, row in zip(table, rows, strict=True):
            low, high = row["spread"]
            cells += [f"{row['words_per_second']:,.0f}", f"{low:,.0f}", f"{high:,.0f}"]
            cells += [f"{row['wall_speedup']:.2f}x"]
    print_table([tuple(cells) for cells in table], header, "l" + "r" * (len(header) - 1))


def read_texts(path: Path, nlp: Any) -> list[str]:
    """path (Path): .txt, .jsonl or .spacy.
    nlp (Language): A pipeline, for its vocab.
    RETURNS (List[str]): The texts that hold more than white space.
    RAISES (ValueError): If there is none, or a line is no JSON object with a text.
    """
    import srsly
    from spacy.tokens import DocBin

    from ..errors import Errors

    if path.suffix == ".spacy":
        texts = [doc.text for doc in DocBin().from_disk(path).get_docs(nlp.vocab)]
    elif path.suffix == ".jsonl":
        lines = list(srsly.read_jsonl(path))
        if not all(isinstance(line, dict) and isinstance(line.get("text"), str) for line in lines):
            raise ValueError(Errors.E091.format(path=path))
        texts = [line["text"] for line in lines]
    else:
        texts = path.read_text(encoding="utf8").splitlines()
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise ValueError(Errors.E039.format(path=path))
    return texts
