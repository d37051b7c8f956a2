"""The earlyexit_transformer component: what it is built from, keeps, refuses and scores."""

import configparser
import json
import pickle
import shutil
import subprocess
import sys
import weakref
from textwrap import dedent

import numpy as np
import pytest
import spacy
import srsly
import torch
from conftest import ROOT, TEXTS, make_encoder, make_examples, make_nlp
from pipelines import (
    FIXED_BLOCK,
    N_LAYERS,
    TEXT,
    TOKEN_BLOCK,
    depth,
    exits_of,
    from_stage1,
    halfway,
    initialized,
    predictions,
    same,
    transformer_of,
    untrained,
    weights,
)
from spacy.lang.en import English
from spacy.tokens import Doc
from spacy.training import Example
from transformers import BertTokenizer, MPNetConfig

from spacy_earlyexit.model.architecture import module_of, settings_of
from spacy_earlyexit.model.criteria import TokenExit
from spacy_earlyexit.pipeline.exits import find_exits
from spacy_earlyexit.pipeline.finding import find_transformer

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
            from spacy_earlyexit.pipeline.tasks import tasks
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
from spacy_earlyexit.pipeline.exits import find_exits

nlp = spacy.load(sys.argv[1])
found = []
for text in json.loads(sys.argv[2]):
    doc = nlp(text)
    entities = [(e.start, e.end, e.label_) for e in doc.ents]
    encoded = nlp.get_pipe("transformer")(nlp.make_doc(text))
    found.append([entities, doc._.exit_layers, find_exits(encoded).scores.tolist()])
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
        (
            {"exit": {"@span_getters": "spacy-transformers.doc_spans.v1"}},
            r"`exit` has to be 'full'",
        ),
        ({"exit": {**TOKEN_BLOCK, "threshold": 1.5}}, r"`threshold`.*\[0, 1\].*1\.5"),
        ({"exit": {**TOKEN_BLOCK, "threshold": [0.5, -0.1]}}, r"`threshold`.*\[0, 1\].*-0\.1"),
        ({"exit": {**TOKEN_BLOCK, "window": -1}}, r"`window`.*>= 0.*-1"),
        ({"exit": {**FIXED_BLOCK, "layer": 0}}, r"`layer`.*1 or more.*0"),
    ],
)
def test_impossible_settings_fail_when_built(encoder, settings, message):
    with pytest.raises(ValueError, match=message):
        untrained(encoder, **settings)


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
    both = transformer(nlp.make_doc(TEXT))
    with nlp.select_pipes(disable="ner"):
        assert transformer.active_tasks == ["test_other_ner"]
        doc = transformer(nlp.make_doc(TEXT))
        assert list(find_exits(doc).slices) == ["test_other_ner"]
        assert doc._.exit_stats["macs"] < both._.exit_stats["macs"]
    assert transformer.active_tasks == ["ner", "test_other_ner"]
    assert list(exits_of(nlp, TEXT).slices) == ["ner", "test_other_ner"]
    mine, all_scores = find_exits(doc).scores, find_exits(both).scores
    own = find_exits(both).slices["test_other_ner"]
    np.testing.assert_allclose(mine, all_scores[:, own], rtol=1e-5, atol=1e-6)


def test_excluded_components_neither_rule_nor_cost(encoder, tmp_path):
    initialized(encoder, ["ner", "other"]).to_disk(tmp_path)
    for kind in ("exclude", "disable"):
        nlp = spacy.load(tmp_path, **{kind: ["ner"]})
        assert transformer_of(nlp).active_tasks == ["test_other_ner"], kind
        assert list(exits_of(nlp, TEXT).slices) == ["test_other_ner"]
    nlp = spacy.load(tmp_path, disable=["ner"])
    nlp.enable_pipe("ner")
    assert set(exits_of(nlp, TEXT).slices) == {"ner", "test_other_ner"}


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


def test_two_transformers_do_not_mix(encoder):
    """Each has components of its own; "*" is the nearest in front."""
    spacy.util.fix_random_seed(0)
    nlp = spacy.blank("en")
    for name, task in (("first", "ner"), ("second", "test_other_ner")):
        model = {"name": encoder}
        nlp.add_pipe("earlyexit_transformer", name=name, config={"model": model, "tasks": [task]})
    for name, task, upstream in (
        ("ner", "ner", "first"),
        ("other", "test_other_ner", "second"),
        ("nearest", "test_other_ner", "*"),
    ):
        nlp.add_pipe("earlyexit_ner", name=name, config={"task": task, "upstream": upstream})
    nlp.initialize(lambda: make_examples(nlp))
    doc = nlp.get_pipe("second")(nlp.get_pipe("first")(nlp.make_doc(TEXT)))
    for name, task in (("first", "ner"), ("second", "test_other_ner")):
        alone = nlp.get_pipe(name).predict([nlp.make_doc(TEXT)])
        assert list(find_exits(doc, name).slices) == [task]
        np.testing.assert_array_equal(find_exits(doc, name).scores, alone.scores)
    assert find_exits(doc) is find_exits(doc, "second")
    with pytest.warns(UserWarning, match=r"several .*\(first, second\). This is about 'first'"):
        assert find_transformer(nlp) is nlp.get_pipe("first")
    # What is enabled later is linked then, whoever is asked first.
    nlp.disable_pipe("nearest")
    nlp.rename_pipe("other", "mine")  # links anew
    nlp.enable_pipe("nearest")
    for name in ("second", "first"):
        assert nlp.get_pipe(name).active_tasks
    nearest = nlp.get_pipe("nearest")
    assert nearest in nlp.get_pipe("second").consumers
    assert nearest not in nlp.get_pipe("first").consumers
    with nlp.select_pipes(disable=["second", "mine"]):
        assert nearest in nlp.get_pipe("first").consumers
    nlp.rename_pipe("mine", "other")
    nlp.get_pipe("first")(doc)
    assert find_exits(doc) is find_exits(doc, "first")
    nlp.get_pipe("other").upstream = "third"
    with pytest.raises(ValueError, match="'other' found no .* is 'third', but .*'first'"):
        nlp(TEXT)


def test_a_reader_sourced_to_another_transformer(encoder):
    """Goes on reading the one that it read."""
    first, second = (initialized(encoder, ["ner", "other"][: 2 - i]) for i in range(2))
    expected = predictions(first)
    second.add_pipe("other", source=first)
    assert predictions(first) == expected
    assert first.get_pipe("other") in transformer_of(first).consumers
    assert first.get_pipe("other") in transformer_of(second).consumers


def test_a_transformer_on_its_own_beside_a_function(encoder):
    """Out of its pipeline, and as a copy."""
    nlp = initialized(encoder)
    nlp.add_pipe("merge_entities")
    expected = transformer_of(nlp).predict([nlp.make_doc(TEXT)]).scores
    _, transformer = nlp.remove_pipe("transformer")
    for alone in (transformer, pickle.loads(pickle.dumps(transformer))):
        np.testing.assert_array_equal(alone.predict([nlp.make_doc(TEXT)]).scores, expected)


def test_a_kept_doc_keeps_only_its_own_arrays(nlp):
    texts = [text for text, _ in TEXTS] * 10
    transformer_of(nlp).record = ["uncertainty", "confidence"]
    doc = next(transformer_of(nlp).pipe(map(nlp.make_doc, texts)))
    exits = find_exits(doc)
    (record,) = (data for key, data in doc.user_data.items() if key[1] == "earlyexit_record")
    for array in (exits.tokens, exits.scores, *record.values()):
        assert array.base is None


def test_task_without_a_component(encoder):
    nlp = initialized(encoder, (), tasks=["test_title"])
    transformer = transformer_of(nlp)
    assert transformer.active_tasks == ["test_title"]
    assert transformer.label_data == {"test_title": ["T", "t"]}
    doc = nlp(TEXT)
    assert find_exits(doc).scores.shape == (7, 2)


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
    assert exits_of(nlp, TEXT).scores.shape == (7, 7)
    assert transformer_of(nlp).labels == ("PER", "ORG", "LOC")


def test_labels_given_for_one_of_two_tasks(encoder):
    nlp = untrained(encoder, ["ner", "other"])
    given = {"ner": ["PER", "ORG", "LOC"], "unused": ["X"]}
    nlp.config["initialize"]["components"]["transformer"] = {"labels": given}
    nlp.initialize(lambda: make_examples(nlp))
    labels = {"ner": ["PER", "ORG", "LOC"], "test_other_ner": ["LOC", "PER"]}
    assert transformer_of(nlp).label_data == labels


# --- init_from -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stage1(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("stage1")
    trained.to_disk(path)
    return path


def test_init_from_takes_weights_labels_and_offramps(trained, stage1):
    nlp = from_stage1(None, stage1)
    assert same(weights(nlp), weights(trained))
    assert transformer_of(nlp).label_data == {"ner": ["LOC", "PER"]}
    assert predictions(nlp) == predictions(trained)
    optimizer = nlp.resume_training()
    nlp.update(make_examples(nlp), sgd=optimizer)
    assert not same(weights(nlp), weights(trained))


def test_init_from_with_labels_in_the_same_order(trained, stage1):
    nlp = from_stage1(None, stage1, labels={"ner": ["LOC", "PER"]})
    assert same(weights(nlp), weights(trained))


def test_init_from_without_text_to_fit_maps_on(encoder, stage1):
    nlp = untrained(encoder, model={"catch_up": 2})
    nlp.config["initialize"]["components"]["transformer"] = {"init_from": str(stage1)}
    space = Doc(nlp.vocab, words=["\n"], ents=["O"])
    with pytest.raises(ValueError, match="fitted on training text, and there is none"):
        nlp.initialize(lambda: [Example(space.copy(), space)])


def test_init_from_a_folder_that_is_missing(encoder, tmp_path):
    with pytest.raises(ValueError, match=r"no pipeline in this folder.*`init_from`"):
        from_stage1(encoder, tmp_path / "missing")


def test_init_from_a_pipeline_without_such_a_component(encoder, tmp_path):
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer", name="transformer")
    nlp.to_disk(tmp_path)
    with pytest.raises(ValueError, match=r"no earlyexit_transformer named 'transformer'"):
        from_stage1(encoder, tmp_path)


@pytest.mark.parametrize(
    "setting,value",
    [
        ("offramp_context", 2),
        ("align_exits", True),
        ("mean_pieces", False),
        ("transformer_config", {"hidden_dropout_prob": 0.3}),
        ("tokenizer_config", {"use_fast": True, "add_prefix_space": True}),
        ("name", "another"),
    ],
)
def test_init_from_with_other_settings(stage1, setting, value):
    model = {"name": None, setting: value}
    message = rf"`{setting}` in \[components.transformer.model\] is .*were trained with"
    with pytest.raises(ValueError, match=message):
        from_stage1(None, stage1, model=model)


def test_stage_2_wants_a_stage_1(encoder):
    """Else it would start from the raw encoder, and train for nothing."""
    nlp = untrained(encoder, self_sampling={"@misc": "spacy-earlyexit.SelfSampling.v1"})
    with pytest.raises(ValueError, match=r"nothing to start from.*--paths.stage1.*init_from"):
        nlp.initialize(lambda: make_examples(nlp))


def test_the_config_says_what_was_inherited(stage1):
    nlp = from_stage1(None, stage1)
    block = nlp.config["components"]["transformer"]["model"]
    stored = settings_of(nlp.get_pipe("transformer").model)
    assert block["name"] == stored.name is not None


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


def test_no_scorer(encoder):
    nlp = make_nlp(encoder, scorer=None)
    assert "exit_layer_mean" not in nlp.evaluate(make_examples(nlp))


def test_initialize_holds_few_examples(encoder, tmp_path):
    """A corpus that comes as a stream is never in memory as a whole."""
    alive, most = weakref.WeakSet(), [0]
    nlp = untrained(encoder)

    def stream():
        for _ in range(50):
            for example in make_examples(nlp):
                alive.add(example.reference)
                most[0] = max(most[0], len(alive))
                yield example

    nlp.get_pipe("transformer").initialize(stream, nlp=nlp)
    assert nlp.get_pipe("transformer").label_data == {"ner": ["LOC", "PER"]}
    assert most[0] <= 2 * len(TEXTS), "as many as one call of make_examples makes, and the last one"


def test_data_without_the_gold_of_one_task_get_one_message(encoder):
    """Entities only, and a tagger in the pipeline: what to do about it."""
    nlp = untrained(encoder)
    nlp.add_pipe("earlyexit_tagger", name="tagger", config={"tasks": ["tag"]})
    with pytest.raises(ValueError) as caught:
        nlp.initialize(lambda: make_examples(nlp))
    message = str(caught.value)
    assert "None of the 6 training examples has gold annotation for the task 'tag'" in message
    assert "out of `pipeline` in [nlp]" in message and '["ner"]' in message
