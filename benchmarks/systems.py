"""Systems that are no spaCy pipelines: from words to label lists, length-sorted, with padding."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spacy.tokens import Doc
from transformers import AutoModelForTokenClassification, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import train_plain  # noqa: E402
from plain_tasks import ANNOTATIONS  # noqa: E402

MAX_PIECES = 512


class HuggingFace:
    """A fine-tuned token classifier of `transformers`.

    path (str): Folder that scripts/train_plain.py saved.
    task (str): What it was trained for: ner, tag or pos.
    batch_words (int): Words of a batch, padding left out.
    """

    def __init__(self, path: str, task: str = "ner", batch_words: int = 400):
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.annotation = ANNOTATIONS[task]
        self.batch_words = batch_words
        self.labels = self._load(path)

    def _load(self, path: str) -> list[str]:
        self.model = AutoModelForTokenClassification.from_pretrained(path).eval()
        return list(self.model.config.id2label.values())

    def _logits(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            output = self.model(
                input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)
            )
        return output.logits.numpy()

    def prepare(self, docs: Sequence[Doc]) -> list[list[str]]:
        return [[token.text for token in doc] for doc in docs]

    def run(self, prepared: list[list[str]]) -> list[list[str]]:
        encoded = self.tokenizer(
            prepared, is_split_into_words=True, truncation=True, max_length=MAX_PIECES
        )
        lengths = [len(ids) for ids in encoded["input_ids"]]
        order = sorted(range(len(prepared)), key=lambda i: lengths[i])
        labels: list[list[str]] = [[] for _ in prepared]
        for batch in train_plain.by_words(order, prepared, self.batch_words):
            width = lengths[batch[-1]]
            ids = np.full((len(batch), width), self.tokenizer.pad_token_id, dtype=np.int64)
            mask = np.zeros((len(batch), width), dtype=np.int64)
            for row, i in enumerate(batch):
                ids[row, : lengths[i]] = encoded["input_ids"][i]
                mask[row, : lengths[i]] = 1
            best = self._logits(ids, mask).argmax(-1)
            for row, i in enumerate(batch):
                own = ["O"] * len(prepared[i])
                previous = None
                for place, word in enumerate(encoded.word_ids(i)):
                    if word is not None and word != previous:
                        own[word] = self.labels[best[row, place]]
                    previous = word
                labels[i] = own
        return labels

    def annotated(self, docs: Sequence[Doc], predictions: list[list[str]]) -> list[Doc]:
        write = self.annotation.write
        return [write(doc, labels) for doc, labels in zip(docs, predictions, strict=True)]


class Onnx(HuggingFace):
    """The same model, exported by benchmarks/train.py, in ONNX Runtime.

    path (str): Folder with model.onnx and model-int8.onnx.
    int8 (bool): The dynamically quantised one.
    threads (int): Of ONNX Runtime; 0 for all cores.
    """

    def __init__(self, path: str, int8: bool = False, threads: int = 0, **settings: Any):
        self.file = "model-int8.onnx" if int8 else "model.onnx"
        self.threads = threads
        super().__init__(path, **settings)

    def _load(self, path: str) -> list[str]:
        import onnxruntime
        from transformers import AutoConfig

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads or torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(
            str(Path(path) / self.file), options, providers=["CPUExecutionProvider"]
        )
        return list(AutoConfig.from_pretrained(path).id2label.values())

    def _logits(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return self.session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
