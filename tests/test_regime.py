"""What a pipeline was trained on is stored, and a command that is run otherwise says so."""

import json
import shutil
import warnings

import pytest
import spacy
from conftest import make_examples, make_nlp, run_cli
from spacy.tokens import Doc, DocBin
from spacy.training import Example

from spacy_earlyexit import evaluate

OWN = {"tokens": "the pipeline's own", "unit_length": 7.0}


def learn(nlp, examples, steps=1):
    optimizer = nlp.resume_training()
    for _ in range(steps):
        nlp.update(examples, sgd=optimizer)
    return nlp


def one_doc(nlp, words, ents, times=1):
    gold = Doc(nlp.vocab, words=words * times, ents=ents * times)
    return Example(Doc(nlp.vocab, words=words * times), gold)


def test_it_is_stored_with_the_weights(trained, tmp_path):
    assert trained.get_pipe("transformer").regime == OWN
    trained.to_disk(tmp_path / "nlp")
    loaded = spacy.load(tmp_path / "nlp").get_pipe("transformer")
    assert loaded.regime == OWN
    copy = make_nlp(trained.config["components"]["transformer"]["model"]["name"])
    assert copy.get_pipe("transformer").regime is None  # nothing learned yet
    copy.from_bytes(trained.to_bytes())
    assert copy.get_pipe("transformer").regime == OWN


def test_gold_tokens_are_told_from_the_tokenizers(nlp):
    words = ["Anna", "does-n't", "live", "in", "New", "York"]
    ents = ["B-PER", "O", "O", "O", "B-LOC", "I-LOC"]
    learn(nlp, [one_doc(nlp, words, ents)])
    assert nlp.get_pipe("transformer").regime == {"tokens": "gold", "unit_length": 6.0}
    with pytest.warns(UserWarning, match="read as raw text, .*trained on gold tokens"):
        evaluate(nlp, make_examples(nlp), repeats=0)


def test_gold_tokens_where_raw_text_was_learned(trained, tmp_path):
    words, ents = ["Anna", "does-n't", "live", "in", "Bonn"], ["B-PER", "O", "O", "O", "B-LOC"]
    gold = Doc(trained.vocab, words=words, ents=ents, spaces=[True] * 4 + [False])
    with pytest.warns(UserWarning, match="with gold tokens, .*Mend: leave out --gold-preproc"):
        evaluate(trained, [Example(gold.copy(), gold)], repeats=0, gold_preproc=True)
    # spaCy takes gold tokens where it does not know the text
    gold = Doc(trained.vocab, words=words, ents=ents)
    with pytest.warns(UserWarning, match="do not say where there are spaces, .*with `spaces`"):
        evaluate(trained, [Example(Doc(trained.vocab, words=words), gold)], repeats=0)


def test_stage_2_says_what_it_was_trained_on_itself(trained, tmp_path):
    trained.to_disk(tmp_path / "nlp")
    nlp = spacy.load(tmp_path / "nlp")
    learn(nlp, [one_doc(nlp, ["Anna", "lives", "here"], ["B-PER", "O", "O"])])
    assert nlp.get_pipe("transformer").regime["unit_length"] == 3.0


def test_units_of_another_length_are_told(trained, tmp_path):
    def told(times):
        words, ents = ["Anna", "lives", "in", "Bonn"], ["B-PER", "O", "O", "B-LOC"]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            evaluate(trained, [one_doc(trained, words, ents, times)], repeats=0)
        return [
            str(w.message)
            for w in caught
            if "W010" in str(w.message) or "units of" in str(w.message)
        ]

    assert told(2) == []
    (message,) = told(4)
    assert "in units of 16 words or more, in the training of 'transformer' it was 7" in message
    assert "calibrate on text like this." in message


def test_commands_say_it(stored, tmp_path):
    nlp = spacy.blank("en")
    words, ents = ["Anna", "lives", "in", "Bonn"], ["B-PER", "O", "O", "B-LOC"]
    doc = one_doc(nlp, words, ents, 4).reference
    DocBin(docs=[doc] * 3).to_disk(tmp_path / "long.spacy")
    for command in (["evaluate"], ["calibrate", "--output", tmp_path / "out"]):
        _, out = run_cli(command[0], stored, tmp_path / "long.spacy", *command[1:])
        assert "in units of 16 words or more" in " ".join(out.split())
        assert "UserWarning" not in out and "figures =" not in out
    _, out = run_cli("info", stored)
    assert "words of a unit 7" in out and "tokens the pipeline's own" in out


@pytest.mark.parametrize("value", [7, {}, {"tokens": "own", "unit_length": 1.0}, {**OWN, "x": 1}])
def test_a_file_that_says_something_else_is_an_error(stored, tmp_path, value):

    shutil.copytree(stored, tmp_path / "nlp")
    path = tmp_path / "nlp" / "transformer" / "cfg"
    path.write_text(json.dumps({**json.loads(path.read_text()), "regime": value}))
    with pytest.raises(ValueError, match="`regime` is not what training stores"):
        spacy.load(tmp_path / "nlp")


def test_pipelines_that_do_not_say_it_load(stored, tmp_path, recwarn):

    shutil.copytree(stored, tmp_path / "nlp")
    path = tmp_path / "nlp" / "transformer" / "cfg"
    cfg = json.loads(path.read_text())
    del cfg["regime"]
    path.write_text(json.dumps(cfg))
    nlp = spacy.load(tmp_path / "nlp")
    assert nlp.get_pipe("transformer").regime is None
    evaluate(nlp, make_examples(nlp), repeats=0)
    assert not [w for w in recwarn if "units of" in str(w.message)]
