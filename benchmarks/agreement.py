"""Labels at full depth against those of Hugging Face's own forward pass with the same weights."""

from pathlib import Path
from typing import Annotated

import numpy as np
import spacy
import torch
import typer
from spacy.training import Corpus
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModel, PreTrainedModel
from wasabi import msg

from spacy_earlyexit.cli.tables import print_table
from spacy_earlyexit.model.architecture import module_of, settings_of
from spacy_earlyexit.model.batch import Batch, Rows
from spacy_earlyexit.model.encoders.families import canonical_state
from spacy_earlyexit.model.encoders.layers import Encoder
from spacy_earlyexit.pipeline.finding import bare_doc, find_transformer

MAX_ROWS = 2048

app = typer.Typer(add_completion=False)


def hugging_face(name: str, encoder: Encoder) -> PreTrainedModel:
    """Our weights in the hands of `transformers`.

    name (str): Hub name or folder of an encoder of the same shape.
    encoder (Encoder): Has the weights.
    RETURNS (PreTrainedModel): The model, for prediction.
    """
    model = AutoModel.from_pretrained(name, torch_dtype=torch.float32)
    theirs = dict(model.named_parameters())
    ours = encoder.state_dict()
    # canonical_state moves numbers and changes none: the gradient of a sum moves ours back.
    moved = canonical_state(theirs, model.config, encoder)
    total = torch.stack([(weight * ours[at]).sum() for at, weight in moved.items()]).sum()
    back = torch.autograd.grad(total, list(theirs.values()), allow_unused=True)
    with torch.no_grad():
        for weight, own in zip(theirs.values(), back, strict=True):
            if own is not None:  # some have a pooler, which nothing here uses
                weight.copy_(own)
    return model.eval()


def padded_rows(model: PreTrainedModel, ids: Tensor, lengths: np.ndarray) -> Tensor:
    """What Hugging Face makes of a padded batch, without the padding again.

    ids (Tensor): The pieces of all units, one behind the other, shape (n_rows,).
    lengths (ndarray): Pieces of each unit, shape (n_units,).
    RETURNS (Tensor): last_hidden_state, shape (n_rows, H).
    """
    counts = torch.from_numpy(lengths)
    mask = torch.arange(int(counts.max())) < counts[:, None]
    padded = torch.full(mask.shape, model.config.pad_token_id)
    padded[mask] = ids
    return model(input_ids=padded, attention_mask=mask.long()).last_hidden_state[mask]


@app.command()
def agreement_cli(
    pipeline: Annotated[str, typer.Argument(help="Folder of a pipeline")],
    test: Annotated[Path, typer.Argument(help="Test data (.spacy)", exists=True)],
    encoder: Annotated[
        str, typer.Option(help="Hub name or folder of its encoder; as in its config")
    ] = "",
    limit: Annotated[int, typer.Option(help="First documents only, 0 for all")] = 0,
) -> None:
    """Print on how many words the labels of each task differ, and the greatest difference of a
    score.
    """
    nlp = spacy.load(pipeline)
    transformer = find_transformer(nlp)
    name = encoder or settings_of(transformer.model).source
    module = module_of(transformer.model)
    model = hugging_face(name, module.encoder)
    docs = [bare_doc(eg.predicted) for eg in Corpus(test, gold_preproc=True, limit=limit)(nlp)]
    with transformer.use(None):
        output = transformer.predict(docs)
    theirs = np.zeros_like(output.scores)
    n_words = len(theirs)
    with torch.inference_mode(), tqdm(total=n_words, unit="word", disable=None) as progress:
        for units in output.pieces.batches(MAX_ROWS):
            batch = Batch(
                output.pieces, units, torch.device("cpu"), settings_of(transformer.model).rules
            )
            words = Rows(padded_rows(model, batch.ids, batch.layout.lengths)).of_words(batch)
            near = batch.neighbours(module.offramps.context)
            scores = module.offramps(transformer.n_layers, words, None, near)
            theirs[batch.pieces_word] = scores.numpy()
            progress.update(len(words))
    rows = []
    for task, part in output.slices.items():
        ours, own = output.scores[:, part], theirs[:, part]
        differ = int((ours.argmax(1) != own.argmax(1)).sum())
        rows.append((task, f"{n_words:,}", str(differ), f"{np.abs(ours - own).max():.1e}"))
    msg.divider(f"{pipeline} on {test}, full depth, and Hugging Face's forward pass")
    print_table(rows, ["task", "words", "other labels", "scores differ by"], "lrrr")


if __name__ == "__main__":
    app()
