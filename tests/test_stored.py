"""What is stored with a pipeline, and what is refused when it is loaded."""

import copy
import json
import shutil
import time

import numpy as np
import pytest
import safetensors.torch
import spacy
import srsly
import torch
from conftest import make_examples, make_nlp
from pipelines import TOKEN_BLOCK, from_stage1, predictions, transformer_of, untrained
from spacy.lang.en import English

from spacy_earlyexit.model.architecture import module_of
from spacy_earlyexit.model.criteria import TokenExit


@pytest.fixture
def path(stored, tmp_path):
    """A copy of a trained pipeline."""
    return shutil.copytree(stored, tmp_path / "pipeline")


def weights_of(path):
    """The bytes of the weights inside of the thinc model, and a function that puts others there."""
    file = path / "transformer" / "model"
    message = srsly.msgpack_loads(file.read_bytes())
    index = next(
        i for i, node in enumerate(message["nodes"]) if node["name"] == "multi_exit_encoder"
    )

    def put(data):
        message["shims"][index] = [data]
        file.write_bytes(srsly.msgpack_dumps(message))

    return message["shims"][index][0], put


def described(data):
    """What the header of the weights says beside the tensors."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["multi_exit"])


def with_header(data, **changes):
    about = {**described(data), **changes}
    state = safetensors.torch.load(data)
    return safetensors.torch.save(state, {"multi_exit": json.dumps(about)})


# --- settings ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting,value",
    [
        ("special_share", 0.25),
        ("reach", 7),
        ("reach", None),
        ("mean_pieces", False),
        ("offramp_context", 0),
        ("align_exits", True),
        ("catch_up", 4),
        ("transformer_config", {"hidden_dropout_prob": 0.5}),
        ("tokenizer_config", {"use_fast": True, "strip_accents": True}),
        ("name", "another-encoder"),
    ],
)
def test_settings_that_the_weights_depend_on_cannot_be_overridden(path, setting, value):
    config = {"components": {"transformer": {"model": {setting: value}}}}
    message = rf"`{setting}` in \[components.transformer.model\] is .*were trained with"
    with pytest.raises(ValueError, match=message):
        spacy.load(path, config=config)


def test_nor_can_span_getter_and_tasks(path):
    getter = {"@span_getters": "spacy-transformers.sent_spans.v1"}
    with pytest.raises(ValueError, match=r"`model.get_spans` .*sent_spans.*text_units"):
        spacy.load(path, config={"components": {"transformer": {"model": {"get_spans": getter}}}})
    with pytest.raises(ValueError, match=r"`tasks` .*\[\"pos\"\].*\[\"ner\"\]"):
        spacy.load(path, config={"components": {"transformer": {"tasks": ["pos"]}}})


def test_what_the_weights_do_not_depend_on_can_be_overridden(path):
    settings = {
        "exit": TOKEN_BLOCK,
        "precision": "float32",
        "record": ["uncertainty"],
        "max_batch_items": 100,
        "model": {"encoder_lr_scale": 0.5, "mixed_precision": True},
    }
    nlp = spacy.load(path, config={"components": {"transformer": settings}})
    assert nlp.config["components"]["transformer"]["model"]["encoder_lr_scale"] == 0.5
    assert predictions(nlp)


def test_bytes_for_a_pipeline_with_other_settings_are_refused(trained, encoder):
    data = trained.to_bytes()
    same = make_nlp(encoder, seed=1).from_bytes(data)
    assert predictions(same) == predictions(trained)
    with pytest.raises(ValueError, match="`reach` in .* is 4.*trained with 2"):
        make_nlp(encoder, model={"reach": 4}).from_bytes(data)


def test_weights_inside_of_one_component_are_checked_too(trained, encoder, tmp_path):
    """What nlp.replace_listeners makes."""
    nlp = spacy.blank("en")
    nlp.add_pipe("earlyexit_transformer", name="transformer", config={"model": {"name": encoder}})
    listener = {
        "@architectures": "spacy-transformers.TransformerListener.v1",
        "grad_factor": 1.0,
        "pooling": {"@layers": "reduce_mean.v1"},
    }
    nlp.add_pipe("ner", config={"model": {"tok2vec": listener}})
    nlp.initialize(lambda: make_examples(nlp))
    nlp.replace_listeners("transformer", "ner", ["model.tok2vec"])
    nlp.to_disk(tmp_path)
    spacy.load(tmp_path)
    config = {"components": {"ner": {"model": {"tok2vec": {"reach": 9}}}}}
    with pytest.raises(ValueError, match="`reach` in .* is 9.*trained with 2"):
        spacy.load(tmp_path, config=config)


def test_stage_2_stores_its_own_settings(stored, tmp_path):
    nlp = from_stage1(None, stored, model={"special_share": 1.0, "catch_up": 2})
    nlp.to_disk(tmp_path)
    settings = module_of(transformer_of(spacy.load(tmp_path)).model).settings
    assert (settings["special_share"], settings["catch_up"], settings["reach"]) == (1.0, 2, 2)


# --- the exit setting ----------------------------------------------------------------------


def test_the_config_always_says_what_is_in_force(path, tmp_path):
    def shown(nlp):
        return nlp.config["components"]["transformer"]["exit"]

    nlp = spacy.load(path)
    assert shown(nlp) is None
    nlp = spacy.load(path, config={"components": {"transformer": {"exit": "full"}}})
    assert shown(nlp) == "full"
    nlp = spacy.load(path, config={"components": {"transformer": {"exit": TOKEN_BLOCK}}})
    assert shown(nlp) == "custom"
    transformer_of(nlp).set_points({"fast": {"exit": TOKEN_BLOCK}})
    transformer_of(nlp).exit = "fast"
    assert shown(nlp) == "fast"
    transformer_of(nlp).exit = TokenExit(0.25, 1)
    nlp.to_disk(tmp_path / "saved")
    again = spacy.load(tmp_path / "saved")
    assert shown(again) == "custom" and transformer_of(again).exit == TokenExit(0.25, 1)
    again = English.from_config(again.config).from_bytes(nlp.to_bytes())
    assert shown(again) == "custom" and transformer_of(again).exit == TokenExit(0.25, 1)


def test_custom_without_a_stored_criterion(path):
    with pytest.raises(ValueError, match=r'`exit` in \[components.transformer\] is "custom"'):
        spacy.load(path, config={"components": {"transformer": {"exit": "custom"}}})


@pytest.mark.parametrize("threshold", [1e-12, 0.1 + 0.2, [1e-300, 1 / 3, 0.5, 0.0]])
def test_numbers_are_stored_exactly(path, tmp_path, threshold):
    nlp = spacy.load(path)
    block = {**TOKEN_BLOCK, "threshold": threshold}
    transformer_of(nlp).set_points({"p": {"exit": block, "dev_speedup": 6.59 + 1e-13}})
    transformer_of(nlp).exit = TokenExit(threshold, 1)
    nlp.to_disk(tmp_path / "saved")
    for again in (
        spacy.load(tmp_path / "saved"),
        English.from_config(nlp.config).from_bytes(nlp.to_bytes()),
    ):
        transformer = transformer_of(again)
        assert transformer.points["p"] == {"exit": block, "dev_speedup": 6.59 + 1e-13}
        assert transformer.exit == TokenExit(threshold, 1)


# --- damaged files -------------------------------------------------------------------------


def change_cfg(path, change):
    file = path / "transformer" / "cfg"
    cfg = json.loads(file.read_text())
    change(cfg)
    file.write_text(json.dumps(cfg))


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda cfg: cfg["labels"]["ner"].pop(), "does not fit the weights.*classes of the task"),
        (lambda cfg: cfg["labels"]["ner"].append("ORG"), "does not fit the weights"),
        (lambda cfg: cfg["labels"]["ner"].reverse(), "does not fit the weights"),
        (lambda cfg: cfg["labels"].update(tag=["NN"]), "does not fit the weights.*tasks"),
        (lambda cfg: cfg["labels"].clear(), "does not fit the weights"),
        (lambda cfg: cfg.pop("labels"), "`labels` is missing"),
        (lambda cfg: cfg.update(points=[]), "`points` is no dict"),
        (lambda cfg: cfg.update(points={"2x": {}}), "operating point '2x' has to be"),
        (lambda cfg: cfg.update(points={"2x": {"exit": "2x"}}), "operating point '2x' has to be"),
    ],
)
def test_cfg_that_does_not_fit(path, change, message):
    change_cfg(path, change)
    with pytest.raises(ValueError, match=message):
        spacy.load(path)


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000])
def test_cfg_that_is_no_cfg(path, content):
    (path / "transformer" / "cfg").write_text(content)
    with pytest.raises(ValueError, match="transformer/cfg.* is damaged"):
        spacy.load(path)


@pytest.mark.parametrize("file", ["cfg", "model"])
def test_a_missing_file_is_named(path, file):
    (path / "transformer" / file).unlink()
    with pytest.raises(ValueError, match=f"transformer/{file}' is missing"):
        spacy.load(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: b"\x00" + data[1:],
        lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        lambda data: b"",
        lambda data: data + b"more",
    ],
)
def test_a_damaged_model_file_is_named(path, damage):
    file = path / "transformer" / "model"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"transformer/model.*(git lfs pull|checksum)"):
        spacy.load(path)


def test_flipped_bits(path):
    data, put = weights_of(path)
    rng = np.random.default_rng(0)
    for place in rng.integers(len(data) // 2, len(data), 5):
        flipped = bytearray(data)
        flipped[place] ^= 1
        put(bytes(flipped))
        with pytest.raises(ValueError, match="transformer/model: .*checksum"):
            spacy.load(path)
    put(data)
    assert predictions(spacy.load(path))


def test_weights_that_are_not_finite(trained, tmp_path):
    nlp = copy.deepcopy(trained)
    with torch.no_grad():
        module_of(transformer_of(nlp).model).offramps.bias[0, 0] = float("nan")
    nlp.to_disk(tmp_path)
    with pytest.raises(ValueError, match="not finite.*smaller learning rate"):
        spacy.load(tmp_path)


def of_encoder(**changes):
    return lambda data: with_header(data, encoder={**described(data)["encoder"], **changes})


@pytest.mark.parametrize(
    "change,message",
    [
        (of_encoder(n_layers=10**6), "1,000,000 layers"),
        (of_encoder(n_layers=10**6, blocks=[0] * 10**6), "1,000,000 layers"),
        (of_encoder(n_layers=5), "the tensor .* has the shape"),
        (of_encoder(hidden=64), "the tensor .* has the shape"),
        (of_encoder(hidden=10**9), "the tensor|describes no encoder"),
        (of_encoder(n_layers="four"), "describes no encoder"),
        (of_encoder(more=1), "describes no encoder"),
        (lambda data: with_header(data, classes={"ner": ["O"]}), "the tensor offramps"),
        (lambda data: with_header(data, classes=None), "describes no encoder"),
        (lambda data: with_header(data, format=99, version="9.0.0"), "spacy-earlyexit 9.0.0"),
        (lambda data: with_header(data, format=None), "early version"),
        (lambda data: safetensors.torch.save(safetensors.torch.load(data)), "header is not that"),
        (
            lambda data: safetensors.torch.save({}, {"multi_exit": "[" * 200_000}),
            "header is not that",
        ),
        (lambda data: (2**62).to_bytes(8, "little") + data[8:], "no header of safetensors"),
    ],
)
def test_headers_that_do_not_fit_are_refused_at_once(path, change, message):
    data, put = weights_of(path)
    put(change(data))
    start = time.perf_counter()
    with pytest.raises(ValueError, match=f"transformer/model.*({message})"):
        spacy.load(path)
    assert time.perf_counter() - start < 5  # not minutes


def test_a_tokenizer_that_panics(path):
    file = path / "transformer" / "model"
    message = srsly.msgpack_loads(file.read_bytes())
    index = next(i for i, node in enumerate(message["nodes"]) if node["name"] == "piece_encoder")
    state = srsly.msgpack_loads(message["shims"][index][0])
    spec = json.loads(state["tokenizer"])
    spec["normalizer"] = {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}
    state["tokenizer"] = json.dumps(spec)
    message["shims"][index] = [srsly.msgpack_dumps(state)]
    file.write_bytes(srsly.msgpack_dumps(message))
    with pytest.raises(ValueError, match="transformer/model"):
        spacy.load(path)


def test_only_the_factorys_name_was_changed(tmp_path, encoder):
    """In a trained pipeline of spacy-transformers."""
    nlp = spacy.blank("en")
    nlp.add_pipe("transformer", config={"model": {"name": encoder}})
    nlp.initialize()
    nlp.to_disk(tmp_path)
    config = (tmp_path / "config.cfg").read_text()
    (tmp_path / "config.cfg").write_text(
        config.replace('factory = "transformer"', 'factory = "earlyexit_transformer"')
    )
    with pytest.raises(ValueError, match="spacy-transformers.*spacy earlyexit convert"):
        spacy.load(tmp_path)


# --- one pipeline --------------------------------------------------------------------------


def change_meta(path, **changes):
    file = path / "meta.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_meta_of_another_language_or_a_later_version(path):
    change_meta(path, lang="de")
    with pytest.raises(ValueError, match="meta.json.*another pipeline.*'de'.*'en'"):
        spacy.load(path)
    change_meta(path, lang="en", requirements=["spacy-earlyexit>=99.0"])
    with pytest.raises(ValueError, match="spacy-earlyexit>=99.0.*later version"):
        spacy.load(path)
    entry = json.loads((path / "meta.json").read_text())["earlyexit"]
    entry["transformer"]["version"] = "99.0.0"
    change_meta(path, requirements=[], earlyexit=entry)
    with pytest.raises(ValueError, match="99.0.0.*later version"):
        spacy.load(path)


@pytest.mark.parametrize("kept", [["meta.json"], ["transformer"], ["vocab"], ["vocab", "ner"]])
def test_parts_of_two_pipelines_are_refused(trained, tmp_path, kept):
    """As a kill in the midst of nlp.to_disk leaves them."""
    nlp = copy.deepcopy(trained)
    nlp.to_disk(tmp_path / "before")
    nlp.update(make_examples(nlp), sgd=nlp.resume_training())
    nlp.to_disk(tmp_path / "after")
    for path in ("before", "after"):
        spacy.load(tmp_path / path)
    for part in kept:
        old, new = tmp_path / "before" / part, tmp_path / "after" / part
        if old.is_dir():
            shutil.rmtree(new)
            shutil.copytree(old, new)
        elif old.exists():
            shutil.copy(old, new)
    with pytest.raises(ValueError, match="parts of two pipelines"):
        spacy.load(tmp_path / "after")


def test_saving_twice_is_one_pipeline(trained, tmp_path):
    """Also over one another, after changes, and with parts left out."""
    nlp = copy.deepcopy(trained)
    transformer = transformer_of(nlp)
    for step in range(3):
        nlp.to_disk(tmp_path)
        assert transformer.cfg["id"] == transformer_of(spacy.load(tmp_path)).cfg["id"]
        if step == 0:
            transformer.exit = TokenExit(0.5, 1)
        else:
            nlp.update(make_examples(nlp), sgd=nlp.resume_training())
    nlp.to_disk(tmp_path, exclude=["vocab"])
    nlp.to_disk(tmp_path / "alone", exclude=["vocab"])
    assert predictions(spacy.load(tmp_path / "alone", vocab=nlp.vocab))


def test_a_pipeline_without_weights_compares_nothing(encoder, tmp_path):
    untrained(encoder).to_disk(tmp_path)
    config = {"components": {"transformer": {"model": {"reach": 9}}}}
    nlp = spacy.load(tmp_path, config=config)
    nlp.initialize(lambda: make_examples(nlp))
    assert module_of(transformer_of(nlp).model).settings["reach"] == 9
