"""Fixtures: a tiny random encoder on disk, small gold data, and the shared real data."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import spacy
import torch
from hypothesis import settings
from spacy.tokens import Doc, DocBin
from spacy.training import Example
from spacy.util import registry
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

from spacy_earlyexit.calibration.search import Search
from spacy_earlyexit.cli import app
from spacy_earlyexit.cli.calibrate import calibrate_pipeline

# How long an example takes is no test: the machine may be busy.
settings.register_profile("default", deadline=None)
settings.load_profile("default")

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"

TEXTS = [
    ("Anna Smith lives in New York .", [(0, 2, "PER"), (4, 6, "LOC")]),
    ("Berlin is nice", [(0, 1, "LOC")]),
    ("nothing to see here , move along please", []),
    (
        "Bob met Anna in Paris and Berlin",
        [(0, 1, "PER"), (2, 3, "PER"), (4, 5, "LOC"), (6, 7, "LOC")],
    ),
    ("she said hello", []),
    ("New York", [(0, 2, "LOC")]),
]


# Few candidates and speed-ups that four layers can have.
SEARCH = Search(speedups=(1.5, 2.0), windows=(0, 1), schedules=("constant", "doubled"), finalists=1)


def run_cli(*args) -> tuple[int, str]:
    """Exit code of `spacy earlyexit …`, and the output without its line breaks."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(result.output.split())


def load_script(name: str) -> ModuleType:
    """A module of the folder scripts, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # As when it is run: it finds the other scripts beside it.
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,!?'-@#0123456789"
BERT_NAMES = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
ROBERTA_NAMES = {
    "cls_token": "<s>",
    "pad_token": "<pad>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}


def ends(tokenizer, names):
    """Names and ids of the last and the first piece of a unit."""
    return [(names[k], tokenizer.token_to_id(names[k])) for k in ("sep_token", "cls_token")]


def make_wordpiece(tokenizer_class=PreTrainedTokenizerFast, characters=""):
    """Single characters and a few words, as BERT's.

    characters (str): More that it knows, Chinese ones for example.
    """
    vocab = [*BERT_NAMES.values(), "the", "New", "York", "in", "Anna"]
    vocab += [*LETTERS, *characters] + [f"##{c}" for c in LETTERS]
    tokenizer = Tokenizer(models.WordPiece({v: i for i, v in enumerate(vocab)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(*ends(tokenizer, BERT_NAMES))
    return tokenizer_class(tokenizer_object=tokenizer, do_lower_case=False, **BERT_NAMES)


def make_byte_bpe(tokenizer_class=PreTrainedTokenizerFast, names=ROBERTA_NAMES, prefix=False):
    """As RoBERTa's: a word's leading space is part of its first piece.

    prefix (bool): The start of a text counts as a space.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(names.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = ["she lives in New York", "he lives in Berlin", "they said hello to Anna"] * 5
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(
        *ends(tokenizer, names), add_prefix_space=prefix
    )
    return tokenizer_class(tokenizer_object=tokenizer, add_prefix_space=prefix, **names)


def make_unigram(tokenizer_class, names=ROBERTA_NAMES):
    """As SentencePiece's: U+2581 in front of words."""
    special = list(names.values())
    pieces = ["\u2581", "\u2581in", "\u2581New", "\u2581York", *LETTERS]
    scores = [(piece, 0.0) for piece in special] + [(piece, -float(len(piece))) for piece in pieces]
    unk_id = special.index(names["unk_token"])
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=unk_id))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.BertProcessing(*ends(tokenizer, names))
    return tokenizer_class(tokenizer_object=tokenizer, **names)


def make_encoder(
    path: Path, n_layers: int = 4, n_positions: int = 64, characters: str = "", **settings
) -> Path:
    """A BERT with random weights and a character-level WordPiece vocabulary."""
    tokenizer = make_wordpiece(characters=characters)
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    settings = {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        # large enough that random layers and units differ clearly
        "initializer_range": 0.2,
        **settings,
    }
    config = BertConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=n_layers,
        max_position_embeddings=n_positions,
        **settings,
    )
    BertModel(config).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> str:
    return str(make_encoder(tmp_path_factory.mktemp("encoder")))


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"the folder with real data and encoder is missing: {SHARED}")
    return SHARED


def make_examples(nlp) -> list[Example]:
    examples = []
    for text, ents in TEXTS:
        words = text.split()
        tags = ["O"] * len(words)
        for start, end, label in ents:
            tags[start:end] = [f"B-{label}"] + [f"I-{label}"] * (end - start - 1)
        gold = Doc(nlp.vocab, words=words, ents=tags)
        examples.append(Example(Doc(nlp.vocab, words=words), gold))
    return examples


def make_nlp(encoder: str, seed: int = 0, **config):
    """A small untrained pipeline with an earlyexit_transformer and an earlyexit_ner."""
    spacy.util.fix_random_seed(seed)
    # Stage 2 would want a stage 1 to start from.
    sampling = config.pop("self_sampling", None)
    nlp = spacy.blank("en")
    model = {"@architectures": "spacy-earlyexit.MultiExitTransformer.v1", "name": encoder}
    # Tests learn six sentences at rates that are high for an encoder.
    model.update({"offramp_lr_scale": 10.0, **config.pop("model", {})})
    nlp.add_pipe(
        "earlyexit_transformer",
        name="transformer",
        config={"tasks": ["ner"], "model": model, **config},
    )
    nlp.add_pipe("earlyexit_ner", name="ner")
    nlp.initialize(lambda: make_examples(nlp))
    if sampling is not None:
        nlp.get_pipe("transformer").self_sampling = registry.resolve({"s": sampling})["s"]
    return nlp


@pytest.fixture
def nlp(encoder):
    return make_nlp(encoder)


@pytest.fixture(scope="session")
def trained(encoder):
    """Over-fitted on the six sentences; do not change it."""
    nlp = make_nlp(encoder)
    examples = make_examples(nlp)
    optimizer = nlp.resume_training()
    optimizer.learn_rate = 2e-3
    for _ in range(60):
        nlp.update(examples, sgd=optimizer)
    return nlp


@pytest.fixture(scope="session")
def stored(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("pipelines") / "trained"
    trained.to_disk(path)
    return path


@pytest.fixture(scope="session")
def dev(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "dev.spacy"
    nlp = spacy.blank("en")
    DocBin(docs=[eg.reference for eg in make_examples(nlp)]).to_disk(path)
    return path


@pytest.fixture(scope="session")
def calibrated(stored, dev, tmp_path_factory):
    """What the function found, and the folder that it wrote."""
    output = tmp_path_factory.mktemp("calibrated") / "fast"
    found, _ = calibrate_pipeline(stored, dev, output, SEARCH, gold_preproc=True)
    return found, output


@pytest.fixture(scope="session")
def stock(tmp_path_factory):
    """The folder of the over-fitted pipeline. Its encoder is gone, as it is after a download."""
    from test_convert import make_stock

    folder = tmp_path_factory.mktemp("stock")
    encoder = make_encoder(folder / "encoder")
    make_stock(str(encoder)).to_disk(folder / "pipeline")
    encoder.rename(folder / "gone")
    return folder / "pipeline"
