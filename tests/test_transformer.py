"""The earlyexit_transformer component: what it is built from, keeps, refuses and learns."""

import configparser
import contextlib
import gc
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import spacy
import srsly
import torch
from conftest import ROOT, TEXTS, make_encoder, make_examples, make_nlp
from spacy.lang.en import English
from spacy.tokens import Doc
from spacy.training import Example
from thinc.api import Optimizer
from transformers import BertTokenizer, MPNetConfig

from spacy_earlyexit.architectures import module_of
from spacy_earlyexit.criteria import FixedExit, SentenceExit, TokenExit
from spacy_earlyexit.pipeline.exits import EXITS
from spacy_earlyexit.tasks import NerTask, Task, tasks

N_LAYERS = 4
TEXT = "Anna Smith lives in New York ."
NO_DROPOUT = {
    "transformer_config": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}
TOKEN_BLOCK = {"@misc": "spacy-earlyexit.TokenExit.v1", "threshold": 0.9, "window": 1}
FIXED_BLOCK = {"@misc": "spacy-earlyexit.FixedExit.v1", "layer": 1}


@tasks("test_other_ner")
class OtherNer(NerTask):
    """A second task that an earlyexit_ner can serve."""


@tasks("test_title")
class Title(Task):
    """Two classes, known for every token."""

    annotation = "token.is_title"

    def gold(self, example):
        return ["T" if token.is_title else "t" for token in example.predicted]


def transformer_of(nlp):
    return nlp.get_pipe("transformer")


def weights(nlp):
    own = module_of(transformer_of(nlp).model).named_parameters()
    return {name: tensor.detach().clone() for name, tensor in own}


def gradients(nlp):
    named = module_of(transformer_of(nlp).model).named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def same(a, b):
    assert a and list(a) == list(b)
    return all(torch.equal(a[name], b[name]) for name in a)


def assert_close(a, b):
    assert a and list(a) == list(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6, msg=name)


def predictions(nlp):
    """Everything that a pipeline says about a few texts."""
    found = []
    for text, _ in TEXTS:
        doc = nlp(text)
        entities = [(e.start, e.end, e.label_) for e in doc.ents]
        found.append([entities, doc._.exit_layers, EXITS[doc].scores.tolist()])
    return found


def halfway(nlp):
    """Token exit under which half the words leave at layer 1, and others later."""
    transformer = transformer_of(nlp)
    with transformer.use(FixedExit(1)):
        doubt = transformer.predict([nlp.make_doc(text) for text, _ in TEXTS]).uncertainty
    return TokenExit(float(np.median(doubt)), 0)


def sgd_optimizer(rate=1.0, **settings):
    """Plain gradient descent: the change of a weight is the gradient."""
    return Optimizer(rate, beta1=0.0, beta2=0.0, **{"L2": 0.0, "grad_clip": 0.0, **settings})


def untrained(encoder, components=("ner",), **config):
    """A pipeline that is not initialised."""
    nlp = spacy.blank("en")
    model = {"@architectures": "spacy-earlyexit.MultiExitTransformer.v1", "name": str(encoder)}
    model.update(config.pop("model", {}))
    nlp.add_pipe("earlyexit_transformer", name="transformer", config={"model": model, **config})
    for name in components:
        task = "test_other_ner" if name == "other" else "ner"
        nlp.add_pipe("earlyexit_ner", name=name, config={"task": task})
    return nlp


def initialized(encoder, components=("ner",), **config):
    spacy.util.fix_random_seed(0)
    nlp = untrained(encoder, components, **config)
    nlp.initialize(lambda: make_examples(nlp))
    return nlp


@pytest.fixture(scope="module")
def stable(encoder):
    """Without dropout, so that losses and gradients can be compared. Do not update its weights."""
    return make_nlp(encoder, model=NO_DROPOUT)


# --- the registry --------------------------------------------------------------------------


def test_every_name_is_found_by_spacy_alone():
    """As `spacy train` finds them: through entry points, with nothing imported but spacy."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg", encoding="utf8")
    names = [
        (group, line.split("=")[0].strip(), line.split("=")[1].strip())
        for group, lines in parser["options.entry_points"].items()
        for line in lines.strip().splitlines()
    ]
    assert ("spacy_factories", "earlyexit_transformer") in [n[:2] for n in names]
    script = """
    import json, sys
    import spacy

    assert "spacy_earlyexit" not in sys.modules
    nlp = spacy.blank("en")
    found = []
    for group, name, _ in json.loads(sys.argv[1]):
        if group == "spacy_factories":
            func = type(nlp.add_pipe(name))
        elif group == "spacy_earlyexit_tasks":
            from spacy_earlyexit.tasks import tasks
            func = tasks.get(name)
        else:
            func = spacy.registry.get(group[len("spacy_"):], name)
        module = getattr(func, "__module__", "") or type(func).__module__
        found.append([group, name, module])
    print(json.dumps(found))
    """
    done = subprocess.run(
        [sys.executable, "-c", dedent(script), json.dumps(names)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [f[:2] for f in found] == [list(n[:2]) for n in names]
    assert {module.split(".")[0] for *_, module in found} <= {"spacy_earlyexit", "typer"}


def test_analyze_pipes_tells_the_truth(nlp):
    analysis = nlp.analyze_pipes()
    assert "doc._.exit_layers" in analysis["summary"]["transformer"]["assigns"]
    assert "doc.ents" in analysis["summary"]["ner"]["assigns"]
    assert analysis["problems"] == {"transformer": [], "ner": []}
    alone = spacy.blank("en")
    alone.add_pipe("earlyexit_ner")
    assert alone.analyze_pipes()["problems"]["earlyexit_ner"] == ["doc._.exit_layers"]


# --- config and storage --------------------------------------------------------------------


def test_config_round_trip(nlp):
    again = English.from_config(nlp.config)
    assert again.config.to_str() == nlp.config.to_str()
    block = again.config["components"]["transformer"]
    assert block["factory"] == "earlyexit_transformer"
    assert block["scorer"]["@scorers"] == "spacy-earlyexit.exit_scorer.v1"


def test_default_config_is_complete():
    """Nothing is filled in behind a user's back when the pipeline is built anew."""
    nlp = spacy.blank("en")
    nlp.add_pipe("earlyexit_transformer")
    filled = English.from_config(nlp.config, auto_fill=False)
    assert filled.config.to_str() == nlp.config.to_str()


def test_bytes_round_trip(nlp):
    again = English.from_config(nlp.config).from_bytes(nlp.to_bytes())
    assert predictions(again) == predictions(nlp)
    assert transformer_of(again).label_data == {"ner": ["LOC", "PER"]}
    assert again.get_pipe("ner").labels == ("LOC", "PER")


def test_disk_round_trip(nlp, tmp_path):
    nlp.to_disk(tmp_path / "pipeline")
    again = spacy.load(tmp_path / "pipeline")
    assert predictions(again) == predictions(nlp)
    assert same(weights(again), weights(nlp))
    assert again.config.to_str() == nlp.config.to_str()


def test_a_loaded_pipeline_can_be_trained_on(trained, tmp_path):
    trained.to_disk(tmp_path / "pipeline")
    nlp = spacy.load(tmp_path / "pipeline")
    assert predictions(nlp) == predictions(trained)
    before = weights(nlp)
    optimizer = nlp.resume_training()
    nlp.update(make_examples(nlp), sgd=optimizer)
    assert not same(before, weights(nlp))


@pytest.mark.parametrize("way", ["bytes", "disk"])
def test_round_trip_before_initialize(encoder, tmp_path, way):
    nlp = untrained(encoder)
    if way == "bytes":
        again = English.from_config(nlp.config).from_bytes(nlp.to_bytes())
    else:
        nlp.to_disk(tmp_path / "pipeline")
        again = spacy.load(tmp_path / "pipeline")
    with pytest.raises(ValueError, match=r"no weights yet.*nlp\.initialize"):
        again(TEXT)
    again.initialize(lambda: make_examples(again))
    assert again(TEXT)._.exit_layers == [N_LAYERS] * 7


def test_component_bytes_can_leave_the_model_out(nlp):
    data = transformer_of(nlp).to_bytes(exclude=["model"])
    again = English.from_config(nlp.config)
    transformer_of(again).from_bytes(data, exclude=["model"])
    assert transformer_of(again).label_data == {"ner": ["LOC", "PER"]}
    assert len(data) < len(transformer_of(nlp).to_bytes()) / 2


OFFLINE = """
import io, json, pickle, sys
import spacy, torch, spacy_earlyexit.pipeline.transformer, spacy_earlyexit.pipeline.ner

def refuse(*args, **kwargs):
    raise AssertionError("no pickle, no network")

pickle.load = pickle.loads = pickle.Unpickler = pickle._Unpickler = torch.load = refuse
import socket
socket.socket.connect = socket.getaddrinfo = refuse
from spacy_earlyexit.pipeline.exits import EXITS

nlp = spacy.load(sys.argv[1])
found = []
for text in json.loads(sys.argv[2]):
    doc = nlp(text)
    entities = [(e.start, e.end, e.label_) for e in doc.ents]
    found.append([entities, doc._.exit_layers, EXITS[doc].scores.tolist()])
print(json.dumps(found))
"""


def test_loads_offline_without_encoder_and_pickle(tmp_path, monkeypatch):
    """The pipeline carries all it needs, and nothing in it runs code."""
    encoder = make_encoder(tmp_path / "encoder")
    nlp = make_nlp(str(encoder))
    examples = make_examples(nlp)
    optimizer = nlp.resume_training()
    optimizer.learn_rate = 5e-3
    for _ in range(20):
        nlp.update(examples, sgd=optimizer)
    transformer_of(nlp).exit = halfway(nlp)
    nlp.to_disk(tmp_path / "pipeline")
    shutil.rmtree(encoder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    texts = json.dumps([text for text, _ in TEXTS])
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(tmp_path / "pipeline"), texts],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    expected = json.loads(json.dumps(predictions(nlp)))
    assert any(entities for entities, _, _ in expected)
    assert len({layer for _, layers, _ in expected for layer in layers}) > 1
    for (entities, layers, scores), theirs in zip(found, expected, strict=True):
        assert [entities, layers] == theirs[:2]
        np.testing.assert_allclose(scores, theirs[2], rtol=1e-4, atol=1e-5)


# --- messages ------------------------------------------------------------------------------


def empty_folder(tmp_path):
    return tmp_path


def no_folder(tmp_path):
    return tmp_path / "missing"


def no_tokenizer(tmp_path):
    for file in make_encoder(tmp_path).iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            file.unlink()
    return tmp_path


def no_weights(tmp_path):
    (make_encoder(tmp_path) / "model.safetensors").unlink()
    return tmp_path


@pytest.mark.parametrize("folder", [empty_folder, no_folder, no_tokenizer, no_weights])
def test_missing_encoder(tmp_path, folder):
    path = folder(tmp_path)
    with pytest.raises(OSError, match=r"`name` in \[components\.transformer\.model\]") as caught:
        initialized(path)
    assert str(path) in str(caught.value)


def test_unsupported_family(tmp_path):
    make_encoder(tmp_path)
    shutil.move(tmp_path / "tokenizer_config.json", tmp_path / "kept.json")
    config = MPNetConfig(vocab_size=200, hidden_size=32, num_attention_heads=4, num_hidden_layers=2)
    config.save_pretrained(tmp_path)
    shutil.move(tmp_path / "kept.json", tmp_path / "tokenizer_config.json")
    with pytest.raises(ValueError, match=r"'mpnet'.*not supported.*albert, bert, camembert"):
        initialized(tmp_path)


def test_tokenizer_without_fast_version(tmp_path):
    make_encoder(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]))
    slow = BertTokenizer(str(tmp_path / "vocab.txt"))
    slow.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no fast.*tokenizer\.json"):
        initialized(tmp_path, model={"tokenizer_config": {"use_fast": False}})


def test_unknown_task(encoder):
    with pytest.raises(ValueError, match=r"Unknown task 'nerr'.*ner.*\[components\.transformer\]"):
        untrained(encoder, tasks=["nerr"])


def test_no_task_at_all(encoder):
    """Without components behind it the tasks are those that the data annotates."""
    nlp = untrained(encoder, components=())
    docs = [Doc(nlp.vocab, words=text.split()) for text, _ in TEXTS]
    with pytest.raises(ValueError, match=r"`tasks` is null.*\[components\.transformer\]"):
        nlp.initialize(lambda: [Example(doc, doc.copy()) for doc in docs])
    nlp.initialize(lambda: make_examples(nlp))
    assert nlp.get_pipe("transformer").tasks == ["ner"]


def test_no_gold_for_a_task(encoder):
    nlp = untrained(encoder)
    docs = [Doc(nlp.vocab, words=text.split()) for text, _ in TEXTS]
    with pytest.raises(ValueError, match=r"None of the 6 .*'ner'.*doc\.ents"):
        nlp.initialize(lambda: [Example(doc, doc.copy()) for doc in docs])


def test_component_with_a_task_that_was_not_trained(encoder):
    nlp = untrained(encoder, ["ner", "other"], tasks=["ner"])
    with pytest.raises(ValueError, match=r"'other' needs the task 'test_other_ner'.*`tasks`"):
        nlp.initialize(lambda: make_examples(nlp))


def test_component_with_a_task_that_was_not_trained_at_prediction(nlp):
    nlp.add_pipe("earlyexit_ner", name="other", config={"task": "test_other_ner"})
    with pytest.raises(ValueError, match="'other' found no exit scores for .*'test_other_ner'"):
        nlp(TEXT)


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"record": ["depth"]}, r"`record`.*uncertainty, confidence.*depth"),
        ({"max_batch_items": 0}, r"`max_batch_items`.*>= 1.*0"),
        ({"model": {"encoder_lr_scale": -1.0}}, r"`encoder_lr_scale`.*-1\.0"),
        ({"model": {"offramp_lr_scale": -1.0}}, r"`offramp_lr_scale`.*-1\.0"),
        ({"model": {"special_share": 1.5}}, r"`special_share`.*\[0, 1\].*1\.5"),
        ({"model": {"reach": -1}}, r"`reach`.*>= 0.*-1"),
        ({"model": {"offramp_context": -1}}, r"`offramp_context`.*>= 0.*-1"),
        ({"exit": {"@span_getters": "spacy-transformers.doc_spans.v1"}}, r"`exit` has to be null"),
        ({"exit": {**TOKEN_BLOCK, "threshold": 1.5}}, r"`threshold`.*\[0, 1\].*1\.5"),
        ({"exit": {**TOKEN_BLOCK, "threshold": [0.5, -0.1]}}, r"`threshold`.*\[0, 1\].*-0\.1"),
        ({"exit": {**TOKEN_BLOCK, "window": -1}}, r"`window`.*>= 0.*-1"),
        ({"exit": {**FIXED_BLOCK, "layer": 0}}, r"`layer`.*1 or more.*0"),
    ],
)
def test_impossible_settings_fail_when_built(encoder, settings, message):
    with pytest.raises(ValueError, match=message):
        untrained(encoder, **settings)


def test_rules_are_kept_and_the_config_given_at_load_wins(encoder, tmp_path):
    rules = {"special_share": 0.5, "reach": 1, "renorm": True, "mean_pieces": True}
    nlp = make_nlp(encoder, model=rules)
    nlp.to_disk(tmp_path)
    loaded = spacy.load(tmp_path)
    assert vars(loaded.get_pipe("transformer").model.attrs["rules"]) == rules
    copied = make_nlp(encoder, seed=1, model=rules).from_bytes(nlp.to_bytes())
    assert vars(copied.get_pipe("transformer").model.attrs["rules"]) == rules
    changed = {"components": {"transformer": {"model": {"reach": 3, "renorm": False}}}}
    other = spacy.load(tmp_path, config=changed).get_pipe("transformer").model.attrs["rules"]
    assert vars(other) == {**rules, "reach": 3, "renorm": False}


def test_offramps_with_context_are_kept(encoder, tmp_path):
    """The shape of the weights tells; those of before there was context have none."""
    nlp = make_nlp(encoder, model={"offramp_context": 2})
    offramps = module_of(nlp.get_pipe("transformer").model).offramps
    assert offramps.weight.shape[2] == 5 * 32
    nlp.to_disk(tmp_path / "p")
    loaded = spacy.load(tmp_path / "p")
    text = "Anna met Bob in New York"
    scores = [p.get_pipe("transformer").predict([p.make_doc(text)]).scores for p in (nlp, loaded)]
    np.testing.assert_array_equal(*scores)
    changed = nlp.get_pipe("transformer").predict([nlp.make_doc("Anna met Bob in New Berlin")])
    differ = (scores[0] != changed.scores).any(axis=1)
    assert differ.all(), "all words attend to the changed one"


def test_predict_before_initialize(encoder):
    nlp = untrained(encoder)
    with pytest.raises(ValueError, match=r"no weights yet.*nlp\.initialize.*spacy\.load"):
        nlp(TEXT)


# --- gold ----------------------------------------------------------------------------------


def loss_of(nlp, examples):
    """The loss of a batch; no step is made."""
    transformer = transformer_of(nlp)
    loss = transformer.update(examples)["transformer"]
    transformer._pending = []
    return loss


def test_documents_without_gold_are_left_out_of_the_loss(stable):
    examples = make_examples(stable)
    bare = Doc(stable.vocab, words="Bob and Anna met here".split())
    assert not bare.has_annotation("ENT_IOB")
    expected = loss_of(stable, examples)
    assert expected > 0
    mixed = [Example(bare, bare.copy()), *examples]
    assert loss_of(stable, mixed) == pytest.approx(expected, rel=1e-5)


def test_misaligned_tokens_are_left_out_of_the_loss(stable):
    """NewYork has no label if only York is an entity."""
    words = ["in", "NewYork", "now"]
    gold = Doc(stable.vocab, words=["in", "New", "York", "now"], ents=["O", "O", "B-LOC", "O"])
    misaligned = Example(Doc(stable.vocab, words=words), gold)
    partly = {"entities": ["O", "-", "O"]}
    expected = loss_of(stable, [Example.from_dict(Doc(stable.vocab, words=words), partly)])
    whole = loss_of(
        stable,
        [Example.from_dict(Doc(stable.vocab, words=words), {"entities": ["O", "O", "O"]})],
    )
    assert loss_of(stable, [misaligned]) == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(whole, rel=1e-3)


def test_labels_that_training_never_saw_are_left_out_of_the_loss(stable):
    words = "Anna likes Sony".split()

    def example(entities):
        return Example.from_dict(Doc(stable.vocab, words=words), {"entities": entities})

    new = loss_of(stable, [example(["U-PER", "O", "U-ORG"])])
    assert new == pytest.approx(loss_of(stable, [example(["U-PER", "O", "-"])]), rel=1e-5)


def test_no_gold_in_a_batch_means_no_update(nlp):
    before = weights(nlp)
    doc = Doc(nlp.vocab, words="Bob and Anna met here".split())
    optimizer = nlp.resume_training()
    losses = nlp.update([Example(doc, doc.copy())], sgd=optimizer)
    assert losses["transformer"] == 0.0
    assert same(before, weights(nlp))


@pytest.mark.parametrize("words", [[], [""], ["\n"]])
def test_batches_without_words_do_no_harm(nlp, words):
    before = weights(nlp)
    words = [w for w in words if w]
    doc = Doc(nlp.vocab, words=words, ents=["O"] * len(words))
    optimizer = nlp.resume_training()
    assert transformer_of(nlp).update([], sgd=optimizer) == {"transformer": 0.0}
    assert nlp.update([Example(doc, doc.copy())], sgd=optimizer)["transformer"] == 0.0
    assert same(before, weights(nlp))
    with_words = make_examples(nlp)[:1]
    alone = loss_of(nlp, with_words)
    assert alone > 0


# --- the exit setting ----------------------------------------------------------------------


def load(path, exit=None):
    config = {} if exit is None else {"components": {"transformer": {"exit": exit}}}
    return spacy.load(path, config=config)


@pytest.fixture(scope="module")
def saved(encoder, tmp_path_factory):
    """A pipeline on disk with two operating points, at full depth."""
    path = tmp_path_factory.mktemp("pipeline")
    nlp = make_nlp(encoder)
    points = transformer_of(nlp).points
    points["fast"] = {"exit": FIXED_BLOCK}
    points["slow"] = {"exit": {**FIXED_BLOCK, "layer": 3}}
    nlp.to_disk(path)
    return path


def depth(nlp):
    (layer,) = set(nlp(TEXT)._.exit_layers)
    return layer


def saved_again(nlp, path):
    nlp.to_disk(path)
    config = spacy.util.load_config(path / "config.cfg")
    assert not isinstance(config["components"]["transformer"]["exit"], dict), "never a block"
    return path


def test_full_depth_unless_something_is_said(saved):
    nlp = load(saved)
    assert depth(nlp) == N_LAYERS
    assert transformer_of(nlp).exit is None and transformer_of(nlp).criterion is None


@pytest.mark.parametrize(
    "given,layer",
    [
        (FIXED_BLOCK, 1),
        ("fast", 1),
        ("slow", 3),
        ("full", N_LAYERS),
        ({**TOKEN_BLOCK, "threshold": 1.0, "window": 0}, 1),
        ({**TOKEN_BLOCK, "threshold": [0.0, 1.0, 0.0, 0.0], "window": 0}, 2),
        ({"@misc": "spacy-earlyexit.SentenceExit.v1", "threshold": 1.0}, 1),
    ],
)
def test_given_at_load_and_kept(saved, tmp_path, given, layer):
    nlp = load(saved, given)
    assert depth(nlp) == layer
    again = saved_again(nlp, tmp_path / "again")
    assert depth(load(again)) == layer, "stored"


STORED = ["block at load", "name at load", "set criterion", "set name", "full at load"]


def store(saved, path, how):
    """Save a pipeline whose exit was set in some way; also returns the depth."""
    if how == "block at load":
        return saved_again(load(saved, {**FIXED_BLOCK, "layer": 2}), path), 2
    if how == "name at load":
        return saved_again(load(saved, "slow"), path), 3
    if how == "full at load":
        return saved_again(load(saved, "full"), path), N_LAYERS
    nlp = load(saved)
    transformer_of(nlp).exit = FixedExit(2) if how == "set criterion" else "slow"
    return saved_again(nlp, path), 2 if how == "set criterion" else 3


@pytest.mark.parametrize("how", STORED)
def test_stored_beats_full_depth(saved, tmp_path, how):
    path, layer = store(saved, tmp_path / "one", how)
    nlp = load(path)
    assert depth(nlp) == layer
    path = saved_again(nlp, tmp_path / "two")
    assert depth(load(path)) == layer, "and goes on doing so"


@pytest.mark.parametrize("how", STORED)
@pytest.mark.parametrize("given,layer", [(FIXED_BLOCK, 1), ("fast", 1), ("full", N_LAYERS)])
def test_given_at_load_beats_stored(saved, tmp_path, how, given, layer):
    path, _ = store(saved, tmp_path / "one", how)
    nlp = load(path, given)
    assert depth(nlp) == layer
    path = saved_again(nlp, tmp_path / "two")
    assert depth(load(path)) == layer, "now this one is stored"


def test_a_name_given_at_load_beats_what_was_set_since(saved, tmp_path):
    """The same name was given before; then another one was set, and stored."""
    nlp = load(saved, "slow")
    transformer_of(nlp).exit = "fast"
    path = saved_again(nlp, tmp_path / "one")
    assert depth(load(path)) == 1
    assert depth(load(path, "slow")) == 3


def test_run_time_beats_given_at_load(saved, tmp_path):
    nlp = load(saved, FIXED_BLOCK)
    transformer_of(nlp).exit = None
    assert depth(nlp) == N_LAYERS
    assert depth(load(saved_again(nlp, tmp_path))) == N_LAYERS


@pytest.mark.parametrize("criterion", [TokenExit(0.5, 3), SentenceExit([0.1, 0.2, 0.3, 0.4])])
def test_stored_criterion_is_the_same(saved, tmp_path, criterion):
    nlp = load(saved)
    transformer_of(nlp).exit = criterion
    again = transformer_of(load(saved_again(nlp, tmp_path))).criterion
    assert type(again) is type(criterion)
    block, stored = criterion.to_config(), again.to_config()
    assert stored.pop("threshold") == pytest.approx(block.pop("threshold"), rel=1e-12)
    assert stored == block


def test_stored_in_bytes(saved):
    nlp = load(saved)
    transformer_of(nlp).exit = "fast"
    again = English.from_config(nlp.config).from_bytes(nlp.to_bytes())
    assert transformer_of(again).exit == "fast" and depth(again) == 1


def test_config_before_training_is_kept(encoder, tmp_path):
    """A criterion in the training config rules the trained pipeline."""
    nlp = initialized(encoder, exit=FIXED_BLOCK)
    assert depth(nlp) == 1
    assert depth(load(saved_again(nlp, tmp_path))) == 1
    assert depth(load(tmp_path, {**FIXED_BLOCK, "layer": 2})) == 2


def test_sourced_component_keeps_its_setting(saved, tmp_path):
    source = load(saved, "slow")
    nlp = spacy.blank("en")
    nlp.add_pipe("transformer", source=source)
    nlp.add_pipe("ner", source=source)
    assert depth(nlp) == 3
    transformer_of(nlp).exit = "fast"
    assert depth(load(saved_again(nlp, tmp_path))) == 1


@pytest.mark.parametrize(
    "value,message",
    [
        ("5x", r"Unknown operating point '5x'.*full, fast, slow"),
        (FixedExit(9), r"`layer` has to be in 1\.\.4.*9"),
        (TokenExit([0.1, 0.2], 0), r"names 2 layers, but the encoder has 4"),
        (0.5, r"`exit` has to be null.*TokenExit.*0\.5"),
        (FIXED_BLOCK, r"`exit` has to be null"),
    ],
)
def test_wrong_settings_at_run_time(saved, value, message):
    nlp = load(saved)
    transformer = transformer_of(nlp)
    with pytest.raises(ValueError, match=message):
        transformer.exit = value
    with pytest.raises(ValueError, match=message), transformer.use(value):
        pytest.fail("must not get here")
    assert depth(nlp) == N_LAYERS, "nothing has changed"


@pytest.mark.parametrize(
    "value,message",
    [
        ("5x", r"Unknown operating point '5x'.*full, fast, slow"),
        ({**FIXED_BLOCK, "layer": 9}, r"`layer` has to be in 1\.\.4.*9"),
        ({**TOKEN_BLOCK, "threshold": [0.1, 0.2]}, r"names 2 layers, but the encoder has 4"),
        ({**TOKEN_BLOCK, "threshold": -1}, r"`threshold`.*-1"),
    ],
)
def test_wrong_settings_at_load(saved, value, message):
    with pytest.raises(ValueError, match=message):
        load(saved, value)


def test_use_nests_and_ends(saved):
    nlp = load(saved, "slow")
    transformer = transformer_of(nlp)
    with transformer.use("fast"):
        assert depth(nlp) == 1
        with transformer.use(FixedExit(2)):
            assert depth(nlp) == 2
            with transformer.use(None):
                assert depth(nlp) == N_LAYERS
            assert depth(nlp) == 2
        assert depth(nlp) == 1
        assert transformer.exit == "slow", "the setting itself is left alone"
    assert depth(nlp) == 3


def test_use_ends_with_an_exception(saved):
    nlp = load(saved)
    with contextlib.suppress(KeyError), transformer_of(nlp).use("fast"):
        assert depth(nlp) == 1
        raise KeyError
    assert depth(nlp) == N_LAYERS


def test_use_is_not_saved(saved, tmp_path):
    nlp = load(saved)
    with transformer_of(nlp).use("fast"):
        nlp.to_disk(tmp_path)
    assert depth(load(tmp_path)) == N_LAYERS


def test_use_stays_in_its_thread_and_pipeline(saved):
    nlp, other = load(saved), load(saved)
    seen = {}

    def work():
        seen["before"] = depth(nlp)
        with transformer_of(nlp).use("slow"):
            entered.set()
            leave.wait(30)
            seen["inside"] = depth(nlp)

    entered, leave = threading.Event(), threading.Event()
    thread = threading.Thread(target=work)
    with transformer_of(nlp).use("fast"):
        thread.start()
        assert entered.wait(30)
        assert depth(nlp) == 1, "the thread's setting does not come here"
        assert depth(other) == N_LAYERS, "nor does ours reach another pipeline"
        leave.set()
        thread.join(30)
    assert seen == {"before": N_LAYERS, "inside": 3}


# --- gradients and steps -------------------------------------------------------------------


def test_update_waits_for_finish_update(nlp):
    before = weights(nlp)
    transformer = transformer_of(nlp)
    losses = transformer.update(make_examples(nlp))
    assert losses["transformer"] > 0
    assert same(before, weights(nlp))
    transformer.finish_update(sgd_optimizer())
    after = weights(nlp)
    assert not same(before, after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"offramps.weight", "encoder.words.weight", "encoder.layers.0.query.weight"} <= changed
    transformer.finish_update(sgd_optimizer())
    assert same(after, weights(nlp)), "the gradient is spent"


def test_update_with_sgd_steps_at_once(nlp):
    before = weights(nlp)
    transformer = transformer_of(nlp)
    transformer.update(make_examples(nlp), sgd=sgd_optimizer())
    after = weights(nlp)
    assert not same(before, after)
    transformer.finish_update(sgd_optimizer())
    assert same(after, weights(nlp)), "nothing is left over"


def test_every_layer_and_offramp_gets_a_gradient(nlp):
    transformer = transformer_of(nlp)
    transformer.update(make_examples(nlp))
    transformer._take_gradients(keep=False)
    found = gradients(nlp)
    for layer in range(N_LAYERS):
        assert found["offramps.weight"][layer].abs().sum() > 0
        assert found[f"encoder.layers.{layer}.outer.weight"].abs().sum() > 0


def test_accumulated_updates_equal_one(encoder):
    """Two batches of as many words each: their gradients add up, so half the rate does it."""
    result = []
    for parts, rate in ((1, 0.2), (2, 0.1)):
        nlp = make_nlp(encoder, model=NO_DROPOUT)
        examples = make_examples(nlp)
        batch = [examples[1], examples[4]]
        assert len({len(eg.predicted) for eg in batch}) == 1
        transformer = transformer_of(nlp)
        for i in range(parts):
            transformer.update(batch if parts == 1 else [batch[i]])
        transformer.finish_update(sgd_optimizer(rate))
        result.append(weights(nlp))
    assert_close(*result)
    assert not same(result[0], weights(make_nlp(encoder, model=NO_DROPOUT)))


def test_losses_add_up(stable):
    examples = make_examples(stable)
    first, second = loss_of(stable, examples[:2]), loss_of(stable, examples[2:])
    losses = {"transformer": 1.0}
    transformer = transformer_of(stable)
    transformer.update(examples[:2], losses=losses)
    transformer._pending = []
    transformer.update(examples[2:], losses=losses)
    transformer._pending = []
    module_of(transformer.model).zero_grad()
    assert losses["transformer"] == pytest.approx(1.0 + first + second)


def test_training_learns(trained):
    """Over-fitted on six sentences: all entities, at the last layer and with early exit."""
    scores = trained.evaluate(make_examples(trained))
    assert scores["ents_f"] == 1.0
    assert (scores["exit_layer_mean"], scores["exit_speedup"]) == (N_LAYERS, 1.0)
    with transformer_of(trained).use(TokenExit(0.3, 1)):
        early = trained.evaluate(make_examples(trained))
    assert early["ents_f"] > 0.9
    assert early["exit_layer_mean"] < N_LAYERS and early["exit_speedup"] > 1


def shim_step(nlp, optimizer, set_gradient=None):
    """One step of the shim. Returns the weights before, the gradients, and the weights after."""
    transformer = transformer_of(nlp)
    transformer.update(make_examples(nlp))
    transformer._take_gradients(keep=False)
    if set_gradient is not None:
        for parameter in module_of(transformer.model).parameters():
            parameter.grad.fill_(set_gradient)
    before, grads = weights(nlp), gradients(nlp)
    transformer.finish_update(optimizer)
    return before, grads, weights(nlp)


@pytest.mark.parametrize("clip", [0.01, 1e6])
def test_one_global_norm_clips_the_gradient(encoder, clip):
    nlp = make_nlp(encoder, model={**NO_DROPOUT, "offramp_lr_scale": 1.0})
    rate = 0.5
    before, grads, after = shim_step(nlp, sgd_optimizer(rate, grad_clip=clip))
    theirs = [torch.nn.Parameter(torch.zeros_like(g)) for g in grads.values()]
    for parameter, gradient in zip(theirs, grads.values(), strict=True):
        parameter.grad = gradient.clone()
    norm = torch.nn.utils.clip_grad_norm_(theirs, clip)
    assert (norm > clip) == (clip < 1)
    expected = {name: before[name] - rate * p.grad for name, p in zip(grads, theirs, strict=True)}
    assert_close(expected, {name: after[name] for name in expected})


def test_no_weight_decay_on_norms_and_biases(encoder):
    nlp = make_nlp(encoder, model={"offramp_lr_scale": 1.0})
    optimizer = sgd_optimizer(0.5, L2=0.1, L2_is_weight_decay=True)
    before, _, after = shim_step(nlp, optimizer, set_gradient=0.0)
    decayed = {n for n in before if not torch.equal(before[n], after[n])}
    assert decayed and not any("norm" in n or n.endswith("bias") for n in decayed)
    kept = {n for n in before if torch.any(before[n] != 0)} - decayed
    assert kept and all("norm" in n or n.endswith("bias") for n in kept)
    assert_close(
        {n: before[n] * (1 - 0.5 * 0.1) for n in before if n in decayed},
        {n: after[n] for n in before if n in decayed},
    )
    assert (optimizer.L2, optimizer.grad_clip) == (0.1, 0.0), "the optimiser is left as it was"


@pytest.mark.parametrize("group,other", [("encoder", "offramps"), ("offramps", "encoder")])
def test_learning_rate_scales(encoder, group, other):
    """Scale 0 leaves a group as it is, weight decay included; 3 triples its step."""
    scales = {"encoder_lr_scale": 3.0, "offramp_lr_scale": 3.0}
    scales["encoder_lr_scale" if group == "encoder" else "offramp_lr_scale"] = 0.0
    nlp = make_nlp(encoder, model={**NO_DROPOUT, **scales})
    before, grads, after = shim_step(nlp, sgd_optimizer(0.1, L2=0.1, L2_is_weight_decay=True))
    frozen = {n: before[n] for n in grads if n.startswith(group)}
    assert same(frozen, {n: after[n] for n in frozen})
    bias = {n: before[n] - 0.3 * grads[n] for n in grads if n.startswith(other) and "bias" in n}
    assert_close(bias, {n: after[n] for n in bias})


def test_averages_are_used_for_a_while(encoder):
    nlp = make_nlp(encoder)
    optimizer = Optimizer(0.01, use_averages=True)
    for _ in range(3):
        transformer_of(nlp).update(make_examples(nlp), sgd=optimizer)
    own = weights(nlp)
    with nlp.use_params(optimizer.averages):
        averaged = weights(nlp)
        assert not same(own, averaged)
    assert same(own, weights(nlp))
    model = transformer_of(nlp).model
    with pytest.raises(KeyError), model.use_params(optimizer.averages):
        assert same(averaged, weights(nlp))
        raise KeyError
    assert same(own, weights(nlp)), "also after an exception"


def test_updates_leave_no_tensors_behind(nlp):
    """A step that keeps hold of the weights before it fills the memory in a few hundred steps."""
    optimizer = nlp.resume_training()

    def alive(n_steps):
        for _ in range(n_steps):
            nlp.update(make_examples(nlp), sgd=False)
            transformer_of(nlp).finish_update(optimizer)
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    assert alive(5) == alive(1)


def test_the_same_seed_gives_the_same_weights(encoder):
    def run(seed):
        nlp = make_nlp(encoder, seed=seed)
        optimizer = nlp.resume_training()
        for _ in range(3):
            nlp.update(make_examples(nlp), sgd=optimizer)
        return weights(nlp)

    first = run(1)
    assert same(first, run(1))
    assert not same(first, run(2))


# --- tasks ---------------------------------------------------------------------------------


def test_tasks_of_the_components_behind_it(encoder):
    nlp = initialized(encoder, ["ner", "other"])
    transformer = transformer_of(nlp)
    assert transformer.tasks == transformer.active_tasks == ["ner", "test_other_ner"]
    assert transformer.label_data == {"ner": ["LOC", "PER"], "test_other_ner": ["LOC", "PER"]}
    assert nlp.get_pipe("other").labels == ("LOC", "PER")


def test_disabled_components_neither_rule_nor_cost(encoder):
    nlp = initialized(encoder, ["ner", "other"])
    transformer = transformer_of(nlp)
    both = nlp(TEXT)
    with nlp.select_pipes(disable="ner"):
        assert transformer.active_tasks == ["test_other_ner"]
        doc = nlp(TEXT)
        assert list(EXITS[doc].slices) == ["test_other_ner"]
        assert doc._.exit_stats["macs"] < both._.exit_stats["macs"]
    assert transformer.active_tasks == ["ner", "test_other_ner"]
    assert list(EXITS[nlp(TEXT)].slices) == ["ner", "test_other_ner"]
    mine, all_scores = EXITS[doc].scores, EXITS[both].scores
    own = EXITS[both].slices["test_other_ner"]
    np.testing.assert_allclose(mine, all_scores[:, own], rtol=1e-5, atol=1e-6)


def test_excluded_components_neither_rule_nor_cost(encoder, tmp_path):
    initialized(encoder, ["ner", "other"]).to_disk(tmp_path)
    for kind in ("exclude", "disable"):
        nlp = spacy.load(tmp_path, **{kind: ["ner"]})
        assert transformer_of(nlp).active_tasks == ["test_other_ner"], kind
        assert list(EXITS[nlp(TEXT)].slices) == ["test_other_ner"]
    nlp = spacy.load(tmp_path, disable=["ner"])
    nlp.enable_pipe("ner")
    assert set(EXITS[nlp(TEXT)].slices) == {"ner", "test_other_ner"}


def test_the_most_uncertain_task_rules(encoder):
    """Off-ramps of one task made certain: words leave only if the other one is not asked."""
    nlp = initialized(encoder, ["ner", "other"])
    transformer = transformer_of(nlp)
    offramps = module_of(transformer.model).offramps
    with torch.no_grad():
        offramps.bias[:, offramps.slices["test_other_ner"].start] = 50.0
    with transformer.use(TokenExit(0.5, 0)):
        assert depth(nlp) == N_LAYERS
        with nlp.select_pipes(disable="ner"):
            assert depth(nlp) == 1
        with nlp.select_pipes(disable="other"):
            assert depth(nlp) == N_LAYERS


def test_task_without_a_component(encoder):
    nlp = initialized(encoder, (), tasks=["test_title"])
    transformer = transformer_of(nlp)
    assert transformer.active_tasks == ["test_title"]
    assert transformer.label_data == {"test_title": ["T", "t"]}
    doc = nlp(TEXT)
    assert EXITS[doc].scores.shape == (7, 2)


def test_labels_given_to_initialize(encoder, tmp_path):
    """More labels than the data has, in the given order; as `spacy init labels` stores them."""
    labels = {"ner": ["PER", "ORG", "LOC"]}
    srsly.write_json(tmp_path / "transformer.json", labels)
    nlp = untrained(encoder)
    reader = {"@readers": "spacy.read_labels.v1", "path": str(tmp_path / "transformer.json")}
    nlp.config["initialize"]["components"]["transformer"] = {"labels": reader}
    nlp.initialize(lambda: make_examples(nlp))
    assert transformer_of(nlp).label_data == labels
    assert nlp.get_pipe("ner").labels == ("PER", "ORG", "LOC")
    assert EXITS[nlp(TEXT)].scores.shape == (7, 7)
    assert transformer_of(nlp).labels == ("PER", "ORG", "LOC")


# --- init_from -----------------------------------------------------------------------------


def from_stage1(encoder, path, model=None, **settings):
    nlp = untrained(encoder, model=model or {})
    nlp.config["initialize"]["components"]["transformer"] = {"init_from": str(path), **settings}
    nlp.initialize(lambda: make_examples(nlp))
    return nlp


@pytest.fixture(scope="module")
def stage1(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("stage1")
    trained.to_disk(path)
    return path


def test_init_from_takes_weights_labels_and_offramps(trained, stage1):
    nlp = from_stage1("/no/such/encoder", stage1)
    assert same(weights(nlp), weights(trained))
    assert transformer_of(nlp).label_data == {"ner": ["LOC", "PER"]}
    assert predictions(nlp) == predictions(trained)
    optimizer = nlp.resume_training()
    nlp.update(make_examples(nlp), sgd=optimizer)
    assert not same(weights(nlp), weights(trained))


def test_init_from_with_labels_in_the_same_order(trained, stage1):
    nlp = from_stage1("unused", stage1, labels={"ner": ["LOC", "PER"]})
    assert same(weights(nlp), weights(trained))


def test_init_from_a_folder_that_is_missing(encoder, tmp_path):
    with pytest.raises(ValueError, match=r"no pipeline in this folder.*`init_from`"):
        from_stage1(encoder, tmp_path / "missing")


def test_init_from_a_pipeline_without_such_a_component(encoder, tmp_path):
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer", name="transformer")
    nlp.to_disk(tmp_path)
    with pytest.raises(ValueError, match=r"no earlyexit_transformer named 'transformer'"):
        from_stage1(encoder, tmp_path)


@pytest.mark.parametrize("setting,value", [("offramp_context", 1), ("align_exits", True)])
def test_init_from_weights_of_another_shape(encoder, stage1, setting, value):
    expected = rf"it has {setting} = (0|False), .*transformer.model.* {value}"
    with pytest.raises(ValueError, match=expected):
        from_stage1(encoder, stage1, model={setting: value})


@pytest.mark.parametrize("labels", [["PER", "LOC"], ["LOC"], ["LOC", "ORG", "PER"]])
def test_init_from_other_labels(encoder, stage1, labels):
    with pytest.raises(ValueError, match=r"Both stages need the same tasks and labels"):
        from_stage1(encoder, stage1, labels={"ner": labels})


def test_init_from_other_tasks(encoder, stage1):
    nlp = untrained(encoder, ["ner", "other"])
    nlp.config["initialize"]["components"]["transformer"] = {"init_from": str(stage1)}
    with pytest.raises(ValueError, match=r"Both stages need the same tasks and labels"):
        nlp.initialize(lambda: make_examples(nlp))


# --- scores --------------------------------------------------------------------------------


def test_scores_of_a_loaded_pipeline(encoder, tmp_path):
    """The search for exit_score runs in training only."""
    scorer = {"@scorers": "spacy-earlyexit.exit_scorer.v1", "speedups": [1.5], "window": 1}
    nlp = make_nlp(encoder, scorer=scorer)
    examples = make_examples(nlp)
    assert "exit_score" not in nlp.evaluate(make_examples(nlp))
    nlp.update(examples, sgd=nlp.resume_training())
    in_training = nlp.evaluate(make_examples(nlp))
    assert 0 <= in_training["exit_score"] <= 1
    assert in_training["exit_score"] == in_training["exit_score_1.5x"]
    nlp.to_disk(tmp_path)
    loaded = spacy.load(tmp_path).evaluate(make_examples(nlp))
    assert "exit_score" not in loaded
    assert (loaded["exit_layer_mean"], loaded["exit_speedup"]) == (N_LAYERS, 1.0)


def test_evaluation_follows_the_exit_setting(saved):
    nlp = load(saved, "fast")
    scores = nlp.evaluate(make_examples(nlp))
    assert scores["exit_layer_mean"] == 1.0
    assert 3.5 < scores["exit_speedup"] <= N_LAYERS


def test_no_scorer(encoder):
    nlp = make_nlp(encoder, scorer=None)
    assert "exit_layer_mean" not in nlp.evaluate(make_examples(nlp))


def test_results_do_not_depend_on_batches(saved):
    """Also with a row budget so small that every document is its own batch."""
    texts = [text for text, _ in TEXTS]
    together, alone = (
        load(saved),
        spacy.load(saved, config={"components": {"transformer": {"max_batch_items": 1}}}),
    )
    for nlp in (together, alone):
        transformer_of(nlp).exit = halfway(nlp)
    docs = list(together.pipe(texts))
    assert len({layer for doc in docs for layer in doc._.exit_layers}) > 1
    for doc, other in zip(docs, alone.pipe(texts), strict=True):
        assert doc._.exit_layers == other._.exit_layers
        np.testing.assert_allclose(EXITS[doc].scores, EXITS[other].scores, rtol=1e-4, atol=1e-5)


def test_path_objects_and_files(saved):
    """Nothing of the encoder's origin has to be there: files of ours only."""
    names = {p.name for p in (Path(saved) / "transformer").iterdir()}
    assert names == {"cfg", "model"}
