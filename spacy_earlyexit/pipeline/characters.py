"""A tokenizer for text without spaces between words: the tokens that a segmenter joins."""

import re
from collections.abc import Callable, Iterable
from typing import Any

from spacy.lang.char_classes import LATIN
from spacy.language import Language
from spacy.scorer import Scorer
from spacy.tokens import Doc
from spacy.training import Example
from spacy.util import DummyTokenizer, get_words_and_spaces
from spacy.vocab import Vocab

_TOKEN = re.compile(rf"[{LATIN}]+|\d+|\S")


def make_character_tokenizer() -> Callable[[Language], "CharacterTokenizer"]:
    """Registered as spacy-earlyexit.CharacterTokenizer.v1."""
    return _make


def _make(nlp: Language) -> "CharacterTokenizer":
    return CharacterTokenizer(nlp.vocab)


class CharacterTokenizer(DummyTokenizer):
    """Makes every character a token, but a run of Latin letters or of digits one token: words do
    not begin or end inside of these, and as wholes they are what the encoder knows.

    spaCy's Chinese tokenizer with segmenter = "char" takes such runs apart, too. As there, a single
    space belongs to the token before it; other whitespace is a token.
    """

    def __init__(self, vocab: Vocab):
        self.vocab = vocab

    def __call__(self, text: str) -> Doc:
        """text (str): The text. RETURNS (Doc): Its characters."""
        words, spaces = get_words_and_spaces(_TOKEN.findall(text), text)
        return Doc(self.vocab, words=words, spaces=spaces)

    def score(self, examples: Iterable[Example], **kwargs: Any) -> dict[str, Any]:
        """RETURNS (Dict[str, Any]): token_acc, token_p, token_r, token_f, as of spaCy's own."""
        return Scorer.score_tokenization(examples, **kwargs)
