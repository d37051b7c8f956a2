"""A third party's task: what docs/custom-task.md shows works as it stands there."""

import configparser
import re
import shlex
import subprocess
import sys
from importlib.metadata import EntryPoint
from itertools import accumulate

import pytest
import spacy
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.tokens import Doc, Span, Token
from spacy.training import Corpus, Example
from spacy.vocab import Vocab

from spacy_earlyexit.calibration.measuring import Probe
from spacy_earlyexit.model.criteria import FixedExit
from spacy_earlyexit.pipeline.tasks import TokenExtensionTask, aligned, get_task

PAGE = ROOT / "docs" / "custom-task.md"
VOCAB = Vocab()

# --- the page ------------------------------------------------------------------------------


def blocks(language):
    """The page's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text("utf8"), re.M | re.S)


def python_files():
    """The Python blocks by the file name in their first line; blocks of one file are joined."""
    files = {}
    for block in blocks("python"):
        name = re.match(r"# (\w+\.py)\n", block)[1]
        files[name] = files.get(name, "") + block
    return files


def write_config(path, base=ROOT / "configs" / "joint.cfg"):
    """What the page says to do by hand: set, then delete what belongs to other components."""
    config = configparser.ConfigParser(interpolation=None, delimiters=["="])
    config.optionxform = str
    config.read_string(base.read_text("utf8"))
    (changes,) = blocks("ini")
    config.read_string(changes)
    for section in config.sections():
        if re.match(r"components\.(?!transformer\b|lang\b)", section):
            config.remove_section(section)
    for weight in config["training.score_weights"]:
        if not weight.startswith(("exit_", "lang_")):
            config.remove_option("training.score_weights", weight)
    with path.open("w", encoding="utf8") as file:
        config.write(file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's folder with the page's files, which can be imported."""
    folder = tmp_path_factory.mktemp("custom_task")
    for name, text in python_files().items():
        (folder / name).write_text(text, encoding="utf8")
    write_config(folder / "lang.cfg")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.chdir(folder)
        yield folder
    sys.modules.pop("my_task", None)
    if Token.has_extension("lang"):
        Token.remove_extension("lang")


def execute(name):
    variables = {}
    exec(python_files()[name], variables)
    return variables


@pytest.mark.slow
def test_page_trains_and_predicts(folder, encoder, capfd):
    corpus = execute("make_corpus.py")
    (command,) = blocks("bash")
    words = shlex.split(command.replace("\\\n", " ").replace("ENCODER", encoder))
    assert words[0] == "python"
    fast = {
        "training.optimizer.learn_rate.total_steps": 60,
        "training.eval_frequency": 60,
        "training.batcher.size": 40,
        "training.optimizer.learn_rate.warmup_steps": 2,
        "training.optimizer.learn_rate.initial_rate": 0.002,
    }
    overrides = [text for name, value in fast.items() for text in (f"--{name}", str(value))]
    subprocess.run([sys.executable, *words[1:], *overrides], check=True)
    assert "LANG_ACC" in capfd.readouterr().out

    used = execute("use.py")
    nlp = used["nlp"]
    langs = ["en", "en", "en", "en", "es", "es", "es", "en"]
    expected = list(zip("I do n't know pero vamos al beach".split(), langs, strict=True))
    assert capfd.readouterr().out == f"{expected}\n{[4] * len(expected)}\n"
    transformer, component = nlp.get_pipe("transformer"), nlp.get_pipe("lang")
    assert transformer.label_data == {"lang": ["en", "es"]}
    assert component.labels == ("en", "es")
    for text in corpus["TEXTS"]:
        words, langs = zip(*(pair.split("|") for pair in text.split()), strict=True)
        predicted = nlp(" ".join(words))
        gold = Doc(nlp.vocab, words=words, spaces=[True] * len(words))
        assert [token._.lang for token in predicted] == aligned(Example(predicted, gold), langs)

    # Early exits, and what the search for thresholds needs of the component.
    probe = Probe(transformer, list(Corpus("train.spacy")(nlp)))
    assert probe(FixedExit(1)).speedup > 3
    assert probe(None).score == 1.0


@pytest.mark.parametrize("base", ["joint", "self_sampling"])
def test_page_says_all_that_a_config_needs(tmp_path, base):
    """A config made as the page says has no trace of other components."""
    write_config(tmp_path / "lang.cfg", ROOT / "configs" / f"{base}.cfg")
    config = spacy.util.load_config(tmp_path / "lang.cfg", interpolate=False)
    assert set(config["components"]) == set(config["nlp"]["pipeline"]) == {"transformer", "lang"}
    weights = {name for name, value in config["training"]["score_weights"].items() if value}
    assert weights == {"lang_acc"} | ({"exit_score"} if base == "self_sampling" else set())


def test_pages_entry_points_are_what_it_defines(folder):
    (text,) = blocks("cfg")
    entries = configparser.ConfigParser()
    entries.read_string(text)
    found = {
        name: EntryPoint(*line.split(" = "), group=name).load()
        for name, line in entries["options.entry_points"].items()
        for line in line.strip().splitlines()
    }
    module = sys.modules["my_task"]
    assert found == {
        "spacy_factories": module.make_language_tagger,
        "spacy_earlyexit_tasks": module.LangTask,
    }
    assert isinstance(get_task("lang"), module.LangTask)


def test_pages_other_task(folder):
    execute("negated.py")
    task = get_task("negated")
    gold = Doc(VOCAB, words=["do", "not", "eat", "it"])
    example = Example(Doc(VOCAB, words=["do", "not", "eat", "i", "t"]), gold)
    assert task.gold(example) == [None] * 5
    gold.spans["negated"] = [Span(gold, 2, 4)]
    assert task.gold(example) == ["no", "no", "yes", "yes", "yes"]
    assert task.labels([example]) == ["no", "yes"]


# --- TokenExtensionTask --------------------------------------------------------------------


class LangTask(TokenExtensionTask):
    extension = "earlyexit_test_lang"


@pytest.fixture
def extension():
    Token.set_extension(LangTask.extension, default="")
    yield LangTask.extension
    Token.remove_extension(LangTask.extension)


def make_example(gold, predicted=None):
    words = "can't stop".split()
    doc = Doc(VOCAB, words=words)
    for token, value in zip(doc, gold, strict=True):
        if value is not None:
            token._.set(LangTask.extension, value)
    return Example(Doc(VOCAB, words=predicted or words), doc)


def test_extension_task_reads_gold(extension):
    task = LangTask()
    assert task.annotation == f"token._.{extension}"
    assert task.gold(make_example(["en", "es"])) == ["en", "es"]
    assert task.gold(make_example(["en", "es"], ["ca", "n't", "stop"])) == ["en", "en", "es"]
    assert task.gold(make_example([None, "es"])) == [None, "es"], "the default is not gold"
    assert task.gold(make_example([None, None], ["ca", "n't", "stop"])) == [None] * 3
    examples = [make_example(["en", None]), make_example(["es", None])]
    assert task.labels(examples) == task.classes(["en", "es"]) == ["en", "es"]


def test_extension_that_is_not_registered_is_named():
    example = Example(Doc(VOCAB, words=["a"]), Doc(VOCAB, words=["a"]))
    with pytest.raises(AttributeError, match=LangTask.extension):
        LangTask().gold(example)


def test_corpus_without_gold_names_the_attribute(folder, encoder):
    execute("make_corpus.py")
    nlp = spacy.blank("en")
    model = {"@architectures": "spacy-earlyexit.MultiExitTransformer.v1", "name": encoder}
    nlp.add_pipe("earlyexit_transformer", name="transformer", config={"model": model})
    nlp.add_pipe("language_tagger", name="lang")
    bare = [Example(nlp.make_doc("vamos al beach"), nlp.make_doc("vamos al beach"))]
    with pytest.raises(ValueError, match=r"'lang' \(token\._\.lang\)"):
        nlp.initialize(lambda: bare)


# --- aligned -------------------------------------------------------------------------------


def align(gold, values, predicted):
    return aligned(Example(Doc(VOCAB, words=predicted), Doc(VOCAB, words=gold)), values)


@pytest.mark.parametrize(
    "gold,values,predicted,expected",
    [
        ("New York", "a b", "New York", "a b"),
        ("New York", "a -", "New York", "a -"),
        ("New York", "- -", "New York", "- -"),
        ("can't go", "a b", "ca n't go", "a a b"),
        ("ca n't go", "a a b", "can't go", "a b"),
        ("ca n't go", "a c b", "can't go", "- b"),
        ("ca n't go", "a - b", "can't go", "- b"),
        ("ca n't go", "- - b", "can't go", "- b"),
        ("ab c", "a b", "a bc", "a -"),
        ("Ab", "a", "a b", "a a"),
    ],
)
def test_aligned(gold, values, predicted, expected):
    values = [None if value == "-" else value for value in values.split()]
    expected = [None if value == "-" else value for value in expected.split()]
    assert align(gold.split(), values, predicted.split()) == expected


def test_aligned_leaves_unaligned_whitespace_and_empty_docs_unknown():
    assert align(["a", "b"], ["x", "y"], ["a", "\n", "b"]) == ["x", None, "y"]
    assert align([], [], []) == []
    assert align([], [], ["\n"]) == [None]


@pytest.mark.parametrize("predicted", [["a", "b"], ["ab"]])
def test_aligned_wants_one_value_per_gold_token(predicted):
    with pytest.raises(ValueError, match=r"`len\(values\)` has to be 2, .* but is 1"):
        align(["a", "b"], ["x"], predicted)


@st.composite
def tokenisations(draw):
    """A text's tokens, twice, and a value for each of the first."""
    text = draw(st.text("abB \n", min_size=1, max_size=12))

    def cut():
        new = [False, *draw(st.lists(st.booleans(), min_size=len(text) - 1, max_size=len(text)))]
        words = {}
        for letter, i in zip(text, accumulate(new), strict=False):
            words[i] = words.get(i, "") + letter
        return list(words.values())

    gold, predicted = cut(), cut()
    values = st.lists(st.sampled_from(["", "A", "B"]), min_size=len(gold), max_size=len(gold))
    return gold, draw(values), predicted


@settings(max_examples=200)
@given(tokenisations())
def test_aligned_follows_spacys_rule(drawn):
    gold, values, predicted = drawn
    reference = Doc(VOCAB, words=gold, spaces=[False] * len(gold), tags=values)
    example = Example(Doc(VOCAB, words=predicted, spaces=[False] * len(predicted)), reference)
    theirs = [value or None for value in example.get_aligned("TAG", as_string=True)]
    assert aligned(example, [value or None for value in values]) == theirs
