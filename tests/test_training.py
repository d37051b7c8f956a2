"""The two training stages, run as users run them, and self-sampling on its own."""

import contextlib
import inspect
import io
import itertools
import json
import re
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import spacy
import torch
from conftest import ROOT, make_examples, make_nlp
from spacy.cli.debug_config import debug_config
from spacy.cli.evaluate import evaluate
from spacy.cli.init_config import fill_config
from spacy.cli.train import train
from spacy.tokens import DocBin
from spacy.util import registry
from test_engine import engine, make_module, make_pieces

from spacy_earlyexit.calibration.search import Search, find_points
from spacy_earlyexit.model.architecture import (
    MultiExitTransformer,
    Tok2VecMultiExit,
    module_of,
)
from spacy_earlyexit.model.criteria import FixedExit, TokenExit
from spacy_earlyexit.model.offramps import joint_loss, make_joint_loss
from spacy_earlyexit.model.self_sampling import (
    START,
    SampledExit,
    SelfSampling,
    make_self_sampling,
)
from spacy_earlyexit.pipeline.factory import DEFAULT_CONFIG
from spacy_earlyexit.training.exit_scorer import make_exit_scorer

N_LAYERS = 4
JOINT = ROOT / "configs" / "joint.cfg"
SELF_SAMPLING = ROOT / "configs" / "self_sampling.cfg"
ZH_JOINT = ROOT / "configs" / "zh_joint.cfg"
ZH_SELF_SAMPLING = ROOT / "configs" / "zh_self_sampling.cfg"
PAPER_JOINT = ROOT / "configs" / "paper_joint.cfg"
PAPER_SELF_SAMPLING = ROOT / "configs" / "paper_self_sampling.cfg"
CONFIGS = [JOINT, SELF_SAMPLING, ZH_JOINT, ZH_SELF_SAMPLING, PAPER_JOINT, PAPER_SELF_SAMPLING]


# --- spacy train ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The six sentences as a DocBin, for training and as dev data."""
    path = tmp_path_factory.mktemp("corpus") / "tiny.spacy"
    nlp = spacy.blank("en")
    DocBin(docs=[eg.reference for eg in make_examples(nlp)]).to_disk(path)
    return str(path)


def run_train(config, output, **overrides):
    """`spacy train`. Returns the folder, the printed log, and the log's rows as numbers."""
    table = io.StringIO()
    rows = output / "log.jsonl"
    settings = {
        "nlp.pipeline": ["transformer", "ner"],
        "training.score_weights.tag_acc": None,
        "training.batcher.size": 40,
        "training.optimizer.learn_rate.warmup_steps": 2,
        "training.optimizer.learn_rate.initial_rate": 0.002,
        "training.logger.output_file": str(rows),
        **overrides,
    }
    output.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(table):
        train(config, output, overrides=settings)
    return SimpleNamespace(
        path=output,
        table=table.getvalue(),
        rows=[json.loads(line) for line in rows.read_text(encoding="utf8").splitlines()],
    )


@pytest.fixture(scope="module")
def stage1(encoder, corpus, tmp_path_factory):
    return run_train(
        JOINT,
        tmp_path_factory.mktemp("stage1"),
        **{
            "paths.train": corpus,
            "paths.dev": corpus,
            "paths.encoder": encoder,
            "training.optimizer.learn_rate.total_steps": 60,
            "training.eval_frequency": 30,
        },
    )


@pytest.fixture(scope="module")
def stage2(stage1, corpus, tmp_path_factory):
    """Two operating points within a 4-layer encoder's reach, and one beyond it."""
    return run_train(
        SELF_SAMPLING,
        tmp_path_factory.mktemp("stage2"),
        **{
            "paths.train": corpus,
            "paths.dev": corpus,
            "paths.stage1": str(stage1.path / "model-last"),
            "training.optimizer.learn_rate.total_steps": 6,
            "training.eval_frequency": 3,
            "components.transformer.scorer.speedups": [1.5, 2, 40],
            "components.transformer.scorer.window": 0,
            "training.score_weights.exit_score_3x": None,
            "training.score_weights.exit_score_4x": None,
            "training.score_weights.exit_score_40x": 0.0,
        },
    )


def log_columns(run):
    """The printed table: column name to its values."""
    lines = run.table.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("E    #"))
    names = re.split(r"\s{2,}", lines[start].strip())
    cells = [line.split() for line in lines[start + 2 :] if re.match(r"\s*\d+ +\d+ ", line)]
    assert len(cells) == len(run.rows)
    assert {len(row) for row in cells} == {len(names)}
    return {name: [float(row[i]) for row in cells] for i, name in enumerate(names)}


@pytest.mark.parametrize("run", ["stage1", "stage2"])
def test_log_shows_what_a_stage_is_about(run, request):
    """Scores of the components that are there, in stage 2 also at each speed-up; in 100 columns."""
    stage, run = run, request.getfixturevalue(run)
    columns = log_columns(run)
    wanted = {"ENTS_F", "ENTS_P", "ENTS_R"} if stage == "stage1" else {"ENTS_F", "2X", "40X"}
    assert columns.keys() == {"E", "#", "LOSS TRANS...", "SCORE"} | wanted
    assert len(run.rows) >= 2
    assert all(0 <= value <= 100 for name in wanted for value in columns[name])
    assert max(map(len, run.table.splitlines())) <= 100
    if stage == "stage2":
        assert run.rows[-1]["scores"]["exit_score_40x"] == columns["40X"][-1] == 0.0


def test_stage1_learns_and_saves(stage1):
    assert [row["step"] for row in stage1.rows] == [0, 30, 60]
    losses = [row["losses"]["transformer"] for row in stage1.rows]
    # summed since the last row: one step, 30, 30
    assert 0 < losses[2] < losses[1]
    assert stage1.rows[-1]["score"] > 0.8
    nlp = spacy.load(stage1.path / "model-best")
    assert nlp.get_pipe("transformer").label_data == {"ner": ["LOC", "PER"]}
    assert "exit_score" not in stage1.rows[-1]["scores"]
    nlp.resume_training()
    assert nlp.update(make_examples(nlp))["transformer"] > 0


def test_stage2_starts_from_stage1(stage1, stage2):
    """At its first evaluation, after one small step, it knows what stage 1 has learned."""
    assert stage1.rows[0]["scores"]["ents_f"] < 50
    assert stage2.rows[0]["scores"]["ents_f"] > 80
    ours = spacy.load(stage2.path / "model-last").get_pipe("transformer")
    theirs = spacy.load(stage1.path / "model-last").get_pipe("transformer")
    assert ours.label_data == theirs.label_data
    weights = dict(module_of(ours.model).named_parameters())
    difference = [
        (weights[name] - old).abs().max().item()
        for name, old in module_of(theirs.model).named_parameters()
    ]
    assert 0 < max(difference) < 0.5


def test_stage2_leaves_the_points_to_calibrate(stage2):
    """Thresholds are searched for the score of a checkpoint; none of it stays."""
    for name in ("model-best", "model-last"):
        nlp = spacy.load(stage2.path / name)
        assert nlp.get_pipe("transformer").points == {}
        assert nlp("Anna lives in York")._.exit_layers == [N_LAYERS] * 4, "still full depth"


def test_evaluation_changes_nothing(encoder):
    """On test data, say: no points, no weights, no setting; and twice the same is the same."""
    nlp = make_nlp(encoder)
    transformer, examples = nlp.get_pipe("transformer"), make_examples(nlp)
    transformer.scorer = make_exit_scorer([1.2], window=0)
    nlp.update(examples, sgd=nlp.resume_training())
    before = nlp.to_bytes()
    scores = nlp.evaluate(examples)
    assert "exit_score" in scores and nlp.to_bytes() == before
    again = nlp.evaluate(examples)
    assert again["exit_score"] == scores["exit_score"] and transformer.points == {}
    found = find_points(transformer, examples, Search(speedups=[1.2], max_losses=[], windows=[0]))
    transformer.set_points({name: point.to_point() for name, point in found.points.items()})
    before = nlp.to_bytes()
    nlp.evaluate(examples[:2])
    assert nlp.to_bytes() == before


def test_a_scorers_bug_is_not_a_score(encoder, monkeypatch):
    """Only what is out of reach counts as 0."""
    nlp = make_nlp(encoder)
    transformer, examples = nlp.get_pipe("transformer"), make_examples(nlp)
    transformer.scorer = make_exit_scorer([40], window=0)
    nlp.update(examples, sgd=nlp.resume_training())
    assert nlp.evaluate(examples)["exit_score"] == 0.0

    def score(*args, **kwargs):
        raise ValueError("a bug")

    transformer.scorer = make_exit_scorer([1.2], window=0)
    nlp.get_pipe("ner").scorer = score
    with pytest.raises(ValueError, match="a bug"):
        transformer.score(examples)


def test_points_stay_while_it_learns(encoder, tmp_path):
    """They are worth less, which a warning says; none is taken away."""
    nlp = make_nlp(encoder)
    transformer, examples = nlp.get_pipe("transformer"), make_examples(nlp)
    block = TokenExit(0.5, 0).to_config()
    transformer.set_points({"40x": {"exit": block}, "50x": {"exit": block}})
    transformer.exit = "40x"
    transformer.scorer = make_exit_scorer([40, 50], window=0)
    with pytest.warns(UserWarning, match="has operating points, and now its weights change"):
        nlp.update(examples, sgd=nlp.resume_training())
    assert nlp.evaluate(examples)["exit_score"] == 0
    assert list(transformer.points) == ["40x", "50x"]
    nlp.to_disk(tmp_path)
    assert spacy.load(tmp_path).get_pipe("transformer").exit == "40x"


def test_stage2_chooses_by_exit_score(stage2):
    for row in stage2.rows:
        parts = row["scores"]
        assert row["score"] == pytest.approx(parts["exit_score"] / 100, abs=1e-4)
    best = max(row["score"] for row in stage2.rows)
    meta = json.loads((stage2.path / "model-best" / "meta.json").read_text(encoding="utf8"))
    assert meta["performance"]["exit_score"] == pytest.approx(best, abs=1e-4)


def test_stored_pipeline_can_be_evaluated(stage2, corpus, tmp_path):
    """`spacy evaluate --output` has depth and speed-up, and no search: that is for training."""
    output = tmp_path / "metrics.json"
    with contextlib.redirect_stdout(io.StringIO()):
        evaluate(str(stage2.path / "model-best"), corpus, output=output, gold_preproc=True)
    metrics = json.loads(output.read_text(encoding="utf8"))
    assert metrics["exit_layer_mean"] == N_LAYERS
    assert metrics["exit_speedup"] == 1.0
    assert 0 <= metrics["ents_f"] <= 1
    assert not [name for name in metrics if name.startswith("exit_score")]


def test_stage2_without_stage1_names_the_setting(corpus, tmp_path):
    overrides = {"paths.train": corpus, "paths.dev": corpus, "paths.stage1": str(tmp_path / "no")}
    with pytest.raises(ValueError, match=r"no pipeline in this folder.*`init_from`"):
        run_train(SELF_SAMPLING, tmp_path / "out", **overrides)


# --- the configs ---------------------------------------------------------------------------


def paths_for(config, encoder, corpus):
    paths = {"paths.train": corpus, "paths.dev": corpus}
    if config.stem.endswith("joint"):
        return {**paths, "paths.encoder": encoder}
    return {**paths, "paths.stage1": "somewhere"}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_debug_config(config, encoder, corpus):
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        debug_config(config, overrides=paths_for(config, encoder, corpus))
    assert "Config is valid" in shown.getvalue()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_fill_config(config, tmp_path):
    """What is set stays; a filled config has nothing left to fill."""
    first, second = tmp_path / "first.cfg", tmp_path / "second.cfg"
    fill_config(first, config, silent=True)
    fill_config(second, first, silent=True)
    assert first.read_text(encoding="utf8") == second.read_text(encoding="utf8")
    ours = spacy.util.load_config(config, interpolate=False)
    filled = spacy.util.load_config(first, interpolate=False)
    for section in ("components", "training", "initialize", "corpora"):
        assert flat(ours[section]).items() <= flat(filled[section]).items()


def test_the_defaults_are_the_shipped_recipe(tmp_path):
    """A config that names the factory only, nlp.add_pipe and joint.cfg are the same."""
    bare, filled, joint = (tmp_path / f"{name}.cfg" for name in ("bare", "filled", "joint"))
    bare.write_text(
        '[nlp]\nlang = "en"\npipeline = ["transformer"]\n'
        '[components]\n[components.transformer]\nfactory = "earlyexit_transformer"\n'
    )
    fill_config(filled, bare, silent=True)
    fill_config(joint, JOINT, silent=True)
    nlp = spacy.blank("en")
    nlp.add_pipe("earlyexit_transformer", name="transformer")
    blocks = [
        spacy.util.load_config(path, interpolate=False)["components"]["transformer"]
        for path in (filled, joint)
    ]
    blocks.append(nlp.config["components"]["transformer"])
    for block in blocks:
        assert isinstance(block["model"].pop("name"), str)
    assert blocks[0] == blocks[1] == blocks[2]


@pytest.mark.parametrize("function", [MultiExitTransformer, Tok2VecMultiExit])
def test_an_architecture_that_is_only_named_has_the_defaults(function):
    """As does the transformer of a pipeline that was made for spacy-transformers."""
    model = DEFAULT_CONFIG["transformer"]["model"]
    parameters = inspect.signature(function).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    known = {name: value for name, value in defaults.items() if name in model}
    assert len(known) >= 8
    assert known == {name: model[name] for name in known}


def test_stage_two_has_the_defaults_of_self_sampling():
    sampling = spacy.util.load_config(SELF_SAMPLING)["components"]["transformer"]["self_sampling"]
    parameters = inspect.signature(make_self_sampling).parameters.values()
    defaults = {
        p.name: list(p.default) if type(p.default) is tuple else p.default for p in parameters
    }
    assert {name: defaults[name] for name in sampling if name != "@misc"} == {
        name: value for name, value in sampling.items() if name != "@misc"
    }


def test_stage_two_changes_what_the_readme_says():
    """The two shipped stages differ in the model by these only."""
    one, two = (flat(spacy.util.load_config(path)["components"]) for path in (JOINT, SELF_SAMPLING))
    changed = {key.rpartition(".")[2] for key in one if key in two and one[key] != two[key]}
    assert changed == {"special_share", "catch_up", "offramp_lr_scale", "speedups"}


@pytest.mark.slow
def test_the_papers_rules_train_both_stages(encoder, corpus, tmp_path):
    """What is drawn, copied and weighed is the paper's."""
    paths = {"paths.train": corpus, "paths.dev": corpus}
    few = {"training.optimizer.learn_rate.total_steps": 4, "training.eval_frequency": 2}
    stage1 = run_train(PAPER_JOINT, tmp_path / "1", **paths, **few, **{"paths.encoder": encoder})
    last = {"paths.stage1": str(stage1.path / "model-last")}
    scorer = {"components.transformer.scorer.speedups": [1.5]}
    stage2 = run_train(PAPER_SELF_SAMPLING, tmp_path / "2", **paths, **few, **last, **scorer)
    rules = {"special_share": 0.0, "reach": None, "mean_pieces": False, "catch_up": 0}
    for stage in (stage1, stage2):
        nlp = spacy.load(stage.path / "model-last")
        model = nlp.config["components"]["transformer"]["model"]
        assert {**rules, "offramp_context": 0}.items() <= model.items()
        names = [
            name for name, _ in module_of(nlp.get_pipe("transformer").model).named_parameters()
        ]
        assert not [name for name in names if "catch_up" in name]
    sampling = nlp.config["components"]["transformer"]["self_sampling"]
    assert sampling["windows"] == [2, 3, 4, 5, 6, 7] and max(sampling["thresholds"]) == 0.25
    assert sampling["schedule"] == "constant" and sampling["speedups"] is None
    assert nlp.get_pipe("transformer").loss.keywords["layer_weights"] == "linear"


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.cfg")), ids=lambda p: p.stem)
def test_optimizer_needs_nothing_outside_its_block(config):
    """Language.create_optimizer resolves the block alone (resume_training and rehearse with it)."""
    settings = spacy.util.load_config(config, interpolate=False)["training"]
    optimizer = registry.resolve({"optimizer": settings["optimizer"]})["optimizer"]
    total = settings["optimizer"]["learn_rate"]["total_steps"]
    rates = list(itertools.islice(optimizer.schedules["learn_rate"], 1, total + 1))
    assert rates[-3] > 0 == min(rates[-2:])
    steps = {"training.optimizer.learn_rate.total_steps": 7}
    loaded = spacy.util.load_config(config, steps, interpolate=True)
    assert loaded["training"]["max_steps"] == 7


@pytest.mark.parametrize("steps", [60, 600])
def test_a_rate_that_ends_too_early_is_said(encoder, steps):
    settings = {"nlp.pipeline": ["transformer", "ner"], "paths.encoder": encoder}
    total = {"training.optimizer.learn_rate.total_steps": 60, "training.max_steps": steps}
    config = spacy.util.load_config(JOINT, {**settings, **total}, interpolate=False)
    nlp = spacy.util.load_model_from_config(config, auto_fill=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        nlp.initialize(lambda: make_examples(nlp))
    said = [str(w.message) for w in caught if "learning rate is 0 from step 60" in str(w.message)]
    assert len(said) == (steps == 600)


STAGE2 = ("training.optimizer.learn_rate.initial_rate",)
STAGE2 += ("components.transformer.self_sampling.full_depth",)


@pytest.mark.parametrize(
    "ours, base, others", [(ZH_JOINT, JOINT, ()), (ZH_SELF_SAMPLING, SELF_SAMPLING, STAGE2)]
)
def test_chinese_is_trained_as_english_is(ours, base, others):
    """What differs is what text without spaces needs, and rate and draws of stage 2."""
    ours, base = (flat(spacy.util.load_config(path, interpolate=False)) for path in (ours, base))
    only = ("components.tagger.", "components.segmenter.", "training.score_weights.")
    differing = {
        key
        for key in ours.keys() | base.keys()
        if ours.get(key) != base.get(key) and not key.startswith(only)
    }
    assert differing | {"paths.encoder"} == {
        *("nlp.lang", "nlp.pipeline", "nlp.tokenizer.@tokenizers", "paths.encoder"),
        *(f"components.transformer.model.get_spans.{key}" for key in ("length", "longest")),
        *others,
    }


def flat(block):
    return {key: repr(value) for key, value in spacy.util.dict_to_dot(block).items()}


# --- self-sampling -------------------------------------------------------------------------

WINDOWS, THRESHOLDS = [1, 3, 5], [0.05, 0.1, 0.25]


def draw(n=20_000, seed=0, **shares):
    torch.manual_seed(seed)
    settings = {"aggressive": 0.2, "full_depth": 0.4, "schedule": "constant", **shares}
    sampling = make_self_sampling(WINDOWS, THRESHOLDS, speedups=None, **settings)
    sampled = sampling(n, n_layers=3)
    # thresholds are stored in single precision
    return sampled.window.numpy(), np.round(sampled.threshold.numpy().astype(float), 6)


def test_sampling_respects_grids_and_shares():
    window, threshold = draw(aggressive=0.2, full_depth=0.4)
    assert window.shape == threshold.shape == (20_000,)
    assert set(window) == set(WINDOWS)
    assert set(threshold) == {0.0, *THRESHOLDS}
    assert np.mean(threshold == 0) == pytest.approx(0.4, abs=0.02)
    # one of nine random draws is as aggressive by chance
    hard = (window == 1) & (threshold == 0.25)
    assert np.mean(hard) == pytest.approx(0.2 + 0.4 / 9, abs=0.02)
    others = (threshold > 0) & ~hard
    for w in WINDOWS:
        for t in THRESHOLDS:
            share = np.mean(others & (window == w) & (threshold == t))
            expected = 0.0 if (w, t) == (1, 0.25) else 0.4 / 9
            assert share == pytest.approx(expected, abs=0.01)


def test_sampling_at_the_ends_of_the_shares():
    window, threshold = draw(1000, aggressive=1.0, full_depth=0.0)
    assert set(window) == {1} and set(threshold) == {0.25}
    _, threshold = draw(1000, aggressive=0.0, full_depth=1.0)
    assert set(threshold) == {0.0}
    window, threshold = draw(1000, aggressive=0.0, full_depth=0.0)
    assert set(window) == set(WINDOWS) and set(threshold) == set(THRESHOLDS)


def test_sampling_is_reproducible():
    first, again, other = draw(50, seed=1), draw(50, seed=1), draw(50, seed=2)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"windows": []}, "`windows`"),
        ({"windows": [2, -1]}, "`windows`"),
        ({"thresholds": []}, "`thresholds`"),
        ({"thresholds": [0.1, 0.0]}, "`thresholds`"),
        ({"thresholds": [1.5]}, "`thresholds`"),
        ({"thresholds": None}, "thresholds and speedups.*one of the two"),
        ({"speedups": [2.0]}, "thresholds and speedups.*one of the two"),
        ({"thresholds": None, "speedups": []}, "`speedups`"),
        ({"thresholds": None, "speedups": [1.0, 2.0]}, "`speedups`.*> 1"),
        ({"aggressive": -0.1}, "shares"),
        ({"full_depth": -0.1}, "shares"),
        ({"aggressive": 0.7, "full_depth": 0.4}, "shares"),
        ({"schedule": "quadratic"}, "`schedule`"),
    ],
)
def test_impossible_sampling(settings, message):
    with pytest.raises(ValueError, match=message):
        make_self_sampling(
            **{"windows": WINDOWS, "thresholds": THRESHOLDS, "speedups": None, **settings}
        )


def test_sampled_exit_equals_token_exit_per_unit():
    """Every unit leaves as if it were alone with its own threshold, over depth, and window."""
    module, n_units, n_words = make_module(), 6, 8
    pieces = make_pieces([n_words] * n_units)
    order = np.argsort(np.diff(pieces.unit_starts), kind="stable")
    # thresholds between the words of each unit at layer 1; one unit runs at full depth
    _, out = engine(module, pieces, FixedExit(1))[4]
    threshold = out.uncertainty.view(n_units, n_words).quantile(0.7, dim=1)
    threshold[2] = 0.0
    window = torch.tensor([0, 1, 2, 0, 1, 3])
    factors = [1.0, *np.linspace(1.0, 1.02, module.encoder.config.n_layers - 1).tolist()]
    scores, exits, macs, _, _ = engine(module, pieces, SampledExit(threshold, window, factors))
    for position, unit in enumerate(order):
        own_threshold = [threshold[position].item() * factor for factor in factors]
        criterion = TokenExit(own_threshold, int(window[position]))
        own_scores, own_exits, own_macs, _, _ = engine(module, pieces, criterion)
        words = slice(*pieces.word_starts[unit : unit + 2])
        np.testing.assert_array_equal(exits[words], own_exits[words])
        torch.testing.assert_close(scores[words], own_scores[words])
        if threshold[position] > 0:  # else off-ramps are run that nothing can leave by
            assert macs[unit] == own_macs[unit]
    alone = engine(module, pieces, SampledExit(threshold, torch.zeros_like(window), factors))[1]
    highest = threshold.amax().expand(n_units)
    same = engine(module, pieces, SampledExit(highest, window, factors))[1]
    assert (exits != alone).any() and (exits != same).any(), "windows and thresholds have to matter"


def test_thresholds_follow_the_speedups_that_are_wanted():
    """Units of many sizes that cost the less the higher their threshold is, by chance more or less,
    and with a larger window more: in the end the MACs of each draw are those wanted.
    """
    sampling = make_self_sampling([0, 2], speedups=[1.5, 4.0], aggressive=0.0, full_depth=0.2)
    generator = np.random.default_rng(0)
    torch.manual_seed(0)
    late = np.zeros((2, 2, 2))  # per window and speed-up: MACs spent, and at full depth
    for step in range(400):
        sampled = sampling(20, n_layers=3)
        full = generator.uniform(1e6, 1e7, 20)
        window, level = sampled.drawn.numpy()
        certain = sampled.threshold.numpy() ** 0.2 / np.where(window == 1, 1.2, 1.0)
        spent = full * np.clip((1 - certain) * generator.uniform(0.5, 1.5, 20), 0.05, 1)
        spent[sampled.threshold.numpy() == 0] = full[sampled.threshold.numpy() == 0]
        sampling.follow(sampled, spent, full)
        leaves = sampled.threshold.numpy() > 0
        if step >= 100:
            np.add.at(late, (window[leaves], level[leaves], 0), spent[leaves])
            np.add.at(late, (window[leaves], level[leaves], 1), full[leaves])
    reached = late[..., 1] / late[..., 0]
    np.testing.assert_allclose(reached, [[1.5, 4.0]] * 2, rtol=0.05)
    assert (sampling.grid[1] > sampling.grid[0]).all(), "a larger window needs a higher threshold"


def test_given_thresholds_stay():
    sampling = make_self_sampling([0], [0.01, 0.1], full_depth=0.0, speedups=None)
    sampled = sampling(5, n_layers=3)
    sampling.follow(sampled, np.full(5, 10.0), np.full(5, 10.0))
    assert sampling.grid.tolist() == [pytest.approx([0.01, 0.1])]


@pytest.mark.parametrize("speedup, start, grows", [(1.2, 1.0, False), (100.0, START, True)])
def test_training_moves_the_thresholds(encoder, speedup, start, grows):
    """What costs too little gets lower ones, what costs too much higher ones."""
    nlp = stage2_nlp(encoder, thresholds=None, speedups=[speedup], full_depth=0.0)
    transformer = nlp.get_pipe("transformer")
    transformer.self_sampling.grid.fill_(start)
    transformer.update(make_examples(nlp), sgd=nlp.create_optimizer())
    assert (float(transformer.self_sampling.grid) > start) == grows


def test_sampled_thresholds_grow_over_depth():
    sampled = make_self_sampling([0], [0.01], full_depth=0.0, speedups=None)(5, n_layers=4)
    assert sampled.factors == [1.0, 2.0, 3.0, 4.0]


def stage2_nlp(encoder, **sampling):
    block = {"@misc": "spacy-earlyexit.SelfSampling.v1", "windows": [0], "thresholds": [1.0]}
    block["speedups"] = None
    model = {
        "transformer_config": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    }
    return make_nlp(encoder, model=model, self_sampling={**block, **sampling} if sampling else None)


def first_update(nlp):
    """Loss and gradients of one update."""
    transformer = nlp.get_pipe("transformer")
    loss = transformer.update(make_examples(nlp))["transformer"]
    transformer.steps.take()
    named = module_of(transformer.model).named_parameters()
    return loss, {name: p.grad.clone() for name, p in named if p.grad is not None}


def test_sampling_at_full_depth_is_stage_one(encoder):
    loss, gradient = first_update(stage2_nlp(encoder))
    sampled_loss, sampled_gradient = first_update(
        stage2_nlp(encoder, aggressive=0.0, full_depth=1.0)
    )
    assert sampled_loss == pytest.approx(loss, rel=1e-5)
    assert gradient and list(gradient) == list(sampled_gradient)
    for name in gradient:
        torch.testing.assert_close(gradient[name], sampled_gradient[name], msg=name)


def test_what_has_left_trains_no_layer_above(encoder):
    """With a threshold of 1 every word leaves at layer 1."""
    _, gradient = first_update(stage2_nlp(encoder, aggressive=1.0, full_depth=0.0))
    offramps = gradient["offramps.weight"]
    assert offramps[0].abs().sum() > 0
    assert offramps[1:].abs().sum() == 0
    assert "encoder.layers.0.query.weight" in gradient
    above = [gradient[n] for n in gradient if re.match(r"encoder\.layers\.[1-3]\.", n)]
    assert all(g.abs().sum() == 0 for g in above)


def test_weights_of_tasks():
    scores = torch.randn(3, 5)
    slices = {"a": slice(0, 2), "b": slice(2, 5)}
    gold = {"a": torch.tensor([0, 1, 1]), "b": torch.tensor([2, 0, 1])}
    loss = joint_loss([(1, torch.arange(3), scores)], gold, slices, 1, task_weights={"b": 3.0})
    cross_entropy = torch.nn.functional.cross_entropy
    expected = cross_entropy(scores[:, :2], gold["a"]) + 3 * cross_entropy(scores[:, 2:], gold["b"])
    torch.testing.assert_close(loss, expected)


def test_weight_of_a_task_that_is_not_there(encoder):
    block = {"@misc": "spacy-earlyexit.JointLoss.v1", "task_weights": {"tga": 2.0}}
    with pytest.raises(ValueError, match=r"`task_weights` has to be tasks out of .*tga"):
        first_update(make_nlp(encoder, loss=block))


@pytest.mark.parametrize("settings", [{"layer_weights": "square"}, {"task_weights": {"ner": -1.0}}])
def test_impossible_losses(settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}`"):
        make_joint_loss(**settings)


def test_the_loss_of_the_config_is_used(encoder):
    block = {"@misc": "spacy-earlyexit.JointLoss.v1", "layer_weights": "linear"}
    plain, own = make_nlp(encoder), make_nlp(encoder, loss=block)
    assert first_update(plain)[0] != pytest.approx(first_update(own)[0], rel=1e-3)


def test_self_sampling_belongs_to_training(encoder, tmp_path):
    """A pipeline trained with it predicts as it is told, here at full depth."""
    nlp = stage2_nlp(encoder, aggressive=1.0, full_depth=0.0)
    assert isinstance(nlp.get_pipe("transformer").self_sampling, SelfSampling)
    nlp.to_disk(tmp_path)
    assert set(spacy.load(tmp_path)("Anna lives in York")._.exit_layers) == {N_LAYERS}
