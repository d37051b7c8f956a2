"""Operating points: the search, and python -m spacy earlyexit calibrate."""

import copy
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import spacy
import srsly
import torch
from conftest import SEARCH, TEXTS, make_examples, make_nlp, run_cli
from pipelines import halfway
from spacy.cli.package import generate_readme
from spacy.tokens import Doc, DocBin
from spacy.training import Example

import spacy_earlyexit
import spacy_earlyexit.calibration.search as module
from spacy_earlyexit.calibration import measuring
from spacy_earlyexit.calibration.measuring import Curve, Measurement, Probe, Sweep, find_threshold
from spacy_earlyexit.calibration.recording import expected_error, gold_chances
from spacy_earlyexit.calibration.search import Candidate, Search, find_points
from spacy_earlyexit.evaluation.statistics import standard_error
from spacy_earlyexit.model.architecture import module_of
from spacy_earlyexit.model.criteria import SCHEDULES, FixedExit, SentenceExit, TokenExit
from spacy_earlyexit.model.offramps import IGNORE

N_LAYERS = 4
# Those of SEARCH, for the command.
OPTIONS = ["--speedups", "1.5,2", "--windows", "0,1", "--schedules", "constant,doubled"]
OPTIONS += ["--finalists", "1"]


# --- the search ----------------------------------------------------------------------------


def test_points_are_measured_and_within_reach(calibrated, dev):
    """Loaded again, a point does on dev what it says."""
    found, output = calibrated
    assert set(found.points) | set(found.missed) == {"1.5x", "2x", "lossless"}
    assert found.points
    for name, speedup in (("1.5x", 1.5), ("2x", 2.0)):
        if name in found.points:
            near = abs(found.points[name].speedup / speedup - 1) <= measuring.TOLERANCE
            assert near != (name in found.overshot)
    nlp = spacy.load(output)
    transformer = nlp.get_pipe("transformer")
    assert list(transformer.points) == ["full", *found.points]
    assert transformer.exit is None
    docs = list(DocBin().from_disk(dev).get_docs(nlp.vocab))
    for name, point in transformer.points.items():
        with transformer.use(name):
            scores = nlp.evaluate([Example(nlp.make_doc(doc.text), doc) for doc in docs])
        assert scores["exit_speedup"] == pytest.approx(point["dev_speedup"], rel=1e-4)
        assert scores["ents_f"] == pytest.approx(point["dev_score"], abs=1e-6)
        assert scores["exit_layer_mean"] == pytest.approx(point["dev_mean_depth"], rel=1e-4)


@pytest.mark.parametrize("error", [0.0, 1.0])
def test_a_speedup_is_the_surest_run_within_one_error(trained, monkeypatch, error):
    """Among all runs at the target, whatever the window ranks in the replays."""
    monkeypatch.setattr(module, "TOLERANCE", 0.2)  # six sentences leave in large steps
    monkeypatch.setattr(module, "standard_error", lambda base, other, score: error)
    search = Search(**{**vars(SEARCH), "speedups": (1.5,), "max_losses": (), "finalists": 2})
    found = find_points(
        trained.get_pipe("transformer"), make_examples(trained), without_temperatures(search)
    )
    near = [run for run in found.runs if abs(run.speedup / 1.5 - 1) <= 0.2]
    assert {run.criterion.window for run in near} == {0, 1}
    best = max(run.score for run in near)
    alike = [run for run in near if run.score >= best - module.SURELY * error]
    point = found.points["1.5x"]
    assert point in alike
    assert point.expected_error == min(run.expected_error for run in alike)


def test_a_loss_is_the_fastest_run(calibrated):
    found, _ = calibrated
    fine = [r for r in found.runs if r.score >= found.full.score and r.speedup > 1]
    if fine:
        assert found.points["lossless"].speedup == max(run.speedup for run in fine)
    else:
        assert "lossless" in found.missed


def test_no_score_may_lose_for_another():
    full = Measurement(None, 0.85, 1.0, 4.0, {"ents_f": 0.8, "tag_acc": 0.9})
    better_on_average = replace(full, score=0.86, scores={"ents_f": 0.85, "tag_acc": 0.87})
    assert not module._loses_at_most(0.0, full, better_on_average)
    assert not module._loses_at_most(0.02, full, better_on_average)
    assert module._loses_at_most(0.04, full, better_on_average)
    assert module._loses_at_most(0.0, full, full)


def a_run(window, missed, *, tags_missed=(), others=None):
    """A run over 100 documents of one entity and one tag each.

    window (Optional[int]): None for sentence exit.
    missed, tags_missed (Iterable[int]): The documents whose entity or tag is not found.
    others (Optional[Dict[str, float]]): Scores in place of these two.
    """
    hits = {}
    for key, wrong in (("ents_f", missed), ("tag_acc", tags_missed)):
        hits[key] = np.ones((100, 3), dtype=int)
        hits[key][list(wrong), 0] = 0
    scores = others or {key: counts[:, 0].mean() for key, counts in hits.items()}
    criterion = SentenceExit(0.1) if window is None else TokenExit(0.1, window)
    return Measurement(criterion, float(np.mean(list(scores.values()))), 2.0, 3.0, scores, hits)


FULL = a_run(None, range(8), tags_missed=[50])


def choose(runs, full=FULL):
    return module._choose(runs, full)


def test_what_dev_cannot_tell_apart_is_the_larger_window():
    """Two entities found and three lost: no more than chance does. Five lost and none found is."""
    best = a_run(0, range(10))
    alike = a_run(2, range(2, 13))
    worse = a_run(5, range(15))
    assert best.score > alike.score > worse.score
    for runs in ([best, alike, worse], [worse, alike, best]):
        assert choose(runs) is alike
    assert choose([best, worse]) is best
    sentence = a_run(None, range(2, 13))
    assert choose([alike, sentence, best]) is sentence


def sure(run, right):
    """The same run with the probability of each document's one label."""
    return replace(run, expected_error=1 - right)


def test_of_what_dev_cannot_tell_apart_the_surest():
    """Probabilities tell apart what labels do not; but not against labels that surely do."""
    best = sure(a_run(0, range(10)), 0.8)
    surest = sure(a_run(1, range(2, 13)), 0.9)
    wide = sure(a_run(5, range(2, 13)), 0.85)
    worse = sure(a_run(5, range(15)), 0.95)
    assert choose([best, surest, wide, worse]) is surest
    assert choose([best, wide]) is wide and choose([best, worse]) is best


def test_expected_error_is_that_of_the_labels_at_exit(trained):
    """At the true temperatures of the layers that words leave at, whatever divides scores for the
    uncertainty. Of names: 1 - F1 of the words in them, were the answers drawn from the
    probabilities.
    """
    transformer, examples = trained.get_pipe("transformer"), make_examples(trained)
    probe, criterion = Probe(transformer, examples, hits=True), halfway(trained)
    assert np.isnan(probe(criterion).expected_error)
    probe.record()
    # What is fitted to six sentences leaves no error.
    probe.true_temperatures = {"ner": torch.linspace(1.0, 3.0, N_LAYERS)}
    run = probe(criterion)
    with transformer.use(criterion):
        output = transformer.predict(probe.docs)
    gold = transformer.gold(examples, output.pieces)["ner"].numpy()
    assert transformer.temperatures == {"ner": [1.0] * N_LAYERS}
    temperatures = probe.true_temperatures["ner"][output.exit_layer - 1]
    scores = torch.from_numpy(output.scores) / temperatures[:, None]
    right = claimed = wanted = 0.0
    for label, chances in zip(gold, torch.softmax(scores, 1).tolist(), strict=True):
        outside = module_of(transformer.model).offramps.classes["ner"].index("O")
        claimed += 1 - chances[outside]
        wanted += label != outside
        right += chances[label] if label != outside else 0.0
    by_hand = 1 - 2 * right / (claimed + wanted)
    assert wanted and run.expected_error == pytest.approx(by_hand, rel=1e-3)
    assert run.task_errors == {"ner": pytest.approx(by_hand, rel=1e-3)}
    assert np.isnan(Probe(transformer, examples)(criterion).expected_error)


def test_expected_error_of_other_tasks_is_that_of_words():
    """Words without gold count in none; a task without gold is left out, an easy one is heard."""
    scores = torch.log(torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]]))
    names, tags = ["O", "B-PER"], ["NN", "VB"]

    def error(*pairs, heat=1.0):
        known = [gold_chances(scores, torch.full((3, 1), heat), np.asarray(g), c) for g, c in pairs]
        return expected_error(known)

    of_tags, of_names = ([0, 0, IGNORE], tags), ([0, 1, IGNORE], names)
    assert error(of_tags) == pytest.approx(1 - (0.9 + 0.2) / 2)
    assert error(of_names) == pytest.approx(1 - 2 * 0.8 / (0.1 + 0.8 + 1))
    assert error(of_tags, of_names) ** 2 == pytest.approx(error(of_tags) * error(of_names))
    nothing = [IGNORE] * 3, tags
    assert error(of_tags, nothing) == error(of_tags)
    assert np.isnan(error(nothing))
    assert 0 < error(([0, 1, IGNORE], tags), heat=1e-3) < 1e-6


def test_of_equal_windows_the_better_score():
    small, good, fair = a_run(0, range(10)), a_run(2, range(2, 13)), a_run(2, range(3, 15))
    assert choose([small, good]) is good and choose([small, fair]) is fair
    assert choose([small, fair, good]) is good


def test_chance_is_that_of_the_difference():
    """What both runs miss says nothing of which is better, however much it is."""
    best, worse = a_run(0, range(40)), a_run(5, range(44))
    alone = np.sqrt(0.4 * 0.6 / 100)  # the error of the best score by itself
    assert best.scores["ents_f"] - worse.scores["ents_f"] < alone
    assert choose([worse, best]) is best


def test_no_score_is_lost_that_dev_can_tell():
    best = a_run(0, range(10))
    alike = a_run(5, range(2, 13))
    worse = a_run(5, range(2, 13), tags_missed=range(8))
    assert choose([best, alike]) is alike
    assert choose([best, worse]) is best
    error = standard_error(best.hits, worse.hits, "tag_acc")
    assert error == pytest.approx(np.sqrt(0.08 * 0.92 / 100), rel=0.1)


def test_scores_count_by_how_surely_dev_knows_them():
    """Names that go up and down by tens, five more of them in the end, against four tags lost."""
    full = a_run(None, range(20))
    noisy = a_run(5, range(15, 30), tags_missed=range(4))
    steady = a_run(0, range(1, 21))
    assert noisy.score > steady.score
    assert choose([noisy, steady], full) is steady


def test_without_a_known_error_the_best_score_is_chosen():
    full = a_run(None, range(8), others={"dep_las": 0.91})
    best = a_run(0, range(10), others={"dep_las": 0.9})
    near = a_run(5, range(2, 13), others={"dep_las": 0.899})
    same = a_run(2, range(10), others={"dep_las": 0.9})
    assert standard_error(best.hits, near.hits, "dep_las") == 0.0
    assert choose([near, best], full) is best
    assert choose([near, best, same], full) is same


def test_hits_are_counted_only_where_asked(trained, monkeypatch):
    """Not at every evaluation of a training."""
    transformer, examples = trained.get_pipe("transformer"), make_examples(trained)
    run = Probe(transformer, examples, hits=True)(TokenExit(0.5, 1))
    assert run.hits["ents_f"].shape == (len(TEXTS), 3)
    assert set(run.to_point()) == {"exit", "dev_score", "dev_speedup", "dev_mean_depth"}
    monkeypatch.delattr(measuring, "count_hits")
    assert Probe(transformer, examples)(TokenExit(0.5, 1)).hits == {}


def test_losses_that_are_allowed(trained):
    """More loss, more speed; what nothing reaches has no point, and a reason."""
    search = Search(
        speedups=(100.0,), max_losses=(0.0, 0.9), windows=(0,), schedules=("constant",), prefix="a-"
    )
    assert search.points == ["a-100x", "a-lossless", "a-within-0.9"]
    transformer = trained.get_pipe("transformer")
    found = find_points(transformer, make_examples(trained), without_temperatures(search))
    assert "can't be reached" in found.missed["a-100x"]
    loose = found.points["a-within-0.9"]
    assert loose.score >= found.full.score - 0.9
    if "a-lossless" in found.points:
        assert found.points["a-lossless"].speedup <= loose.speedup


def test_temperatures_are_those_with_less_expected_error(stored, monkeypatch):
    """Both are tried, and what is found, runs and pipeline are of one of them."""
    search = Search(**{**vars(SEARCH), "speedups": (1.5, 2.0), "max_losses": ()})
    of_each = {}
    for kinds in ((False,), (True,), (False, True)):
        nlp = spacy.load(stored)
        transformer = nlp.get_pipe("transformer")
        only = Search(**{**vars(search), "temperatures": kinds})
        found = find_points(transformer, make_examples(nlp), only)
        of_each[kinds] = found, transformer.temperatures["ner"]
    assert set(of_each[False,][1]) == {1.0} and set(of_each[True,][1]) != {1.0}
    best = module._least_error({kind: of_each[kind,][0] for kind in (False, True)}, search)
    found, temperatures = of_each[False, True]
    assert temperatures == of_each[best,][1]
    assert [run.to_point() for run in found.runs] == [
        run.to_point() for run in of_each[best,][0].runs
    ]

    def calibration(*errors):
        run = Measurement(None, 0.9, 2.0, 4.0)
        points = {"1.5x": replace(run, expected_error=errors[0])}
        if len(errors) > 1:
            points["2x"] = replace(run, expected_error=errors[1])
        return module.Calibration(run, points, {}, [], [run])

    for without, fitted, expected in (
        (calibration(0.1, 0.2), calibration(0.2, 0.2), False),
        (calibration(0.1, 0.2), calibration(0.1, 0.15), True),
        (calibration(0.1), calibration(0.2, 0.2), True),
        (calibration(0.1, 0.2), calibration(0.05), False),
        (calibration(np.nan, 0.2), calibration(0.05, 0.1), False),
    ):
        assert module._least_error({False: without, True: fitted}, search) is expected


def without_temperatures(search):
    """For a transformer that other tests share."""
    return Search(**{**vars(search), "temperatures": (False,)})


def test_sentence_exit(trained):
    search = Search(speedups=(1.5,), sentence=True, max_losses=(), prefix="sentence-")
    found = find_points(
        trained.get_pipe("transformer"), make_examples(trained), without_temperatures(search)
    )
    kinds = {type(run.criterion) for run in found.runs[1:]}
    assert kinds == {SentenceExit}


def test_a_curve_saves_runs(trained):
    """Started from the recording, the search is there in a few runs."""
    probe = Probe(trained.get_pipe("transformer"), make_examples(trained))
    recording, _ = probe.record()
    candidate = Candidate("constant", None, N_LAYERS)  # replays of sentence exit are exact
    curve = Curve(recording, candidate)
    plain, guided = Sweep(probe, candidate), Sweep(probe, candidate)
    target = float(np.interp(0.4, [0, 1], [1, curve.speedups[-1]]))
    find_threshold(plain, target, tolerance=0.05)
    find_threshold(guided, target, tolerance=0.05, curve=curve)
    assert len(guided.seen) <= len(plain.seen)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_never_fall_and_stay_valid(schedule):
    for threshold in (1e-4, 0.1, 1.0):
        criterion = Candidate(schedule, 2, 12)(threshold)
        criterion.validate(12)
        each = np.asarray([criterion.threshold_at(layer) for layer in range(1, 13)])
        assert each[0] == pytest.approx(threshold) and (np.diff(each) >= 0).all()
        assert each.max() <= 1
        rebuilt = spacy.util.registry.resolve({"exit": criterion.to_config()})["exit"]
        assert rebuilt.threshold == criterion.threshold
    assert isinstance(Candidate(schedule, None, 12)(0.1), SentenceExit)


def test_doubled_is_what_the_released_code_does():
    assert Candidate("doubled", 0, 4)(0.1).threshold == (0.1, 0.1, 0.2, 0.2)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"speedups": [1.0]}, "speedups.*numbers > 1"),
        ({"max_losses": [-0.1]}, "max_loss"),
        ({"windows": []}, "windows"),
        ({"windows": [-1]}, "windows"),
        ({"schedules": ["random"]}, "schedules.*constant, doubled"),
        ({"depths": []}, "depths"),
        ({"depths": [0.0]}, r"depths.*shares in \(0, 1\]"),
        ({"every": []}, "every"),
        ({"every": [0]}, "every.*>= 1"),
        ({"finalists": 0}, "finalists"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Search(**settings)


def test_nothing_to_score_by(trained):
    bare = [Doc(trained.vocab, words=text.split()) for text, _ in TEXTS]
    examples = [Example(doc.copy(), doc) for doc in bare]
    transformer = trained.get_pipe("transformer")
    with pytest.raises(ValueError, match="gold for none of the components"):
        find_points(transformer, examples, without_temperatures(SEARCH))
    with pytest.raises(ValueError, match="nothing to calibrate"):
        find_points(transformer, [], without_temperatures(SEARCH))


def test_too_much_to_record(trained, monkeypatch):
    monkeypatch.setattr(measuring, "MOST_RECORDED", 100)
    with pytest.raises(ValueError, match="--limit"):
        Probe(trained.get_pipe("transformer"), make_examples(trained)).record()


# --- what the transformer is given ---------------------------------------------------------


def test_a_disabled_transformer_is_not_measured(encoder):
    nlp = make_nlp(encoder)
    nlp.disable_pipe("transformer")
    with pytest.raises(ValueError, match="'transformer' is disabled"):
        Probe(nlp.get_pipe("transformer"), make_examples(nlp))


def test_runs_do_not_see_each_other(trained):
    probe = Probe(trained.get_pipe("transformer"), make_examples(trained))
    first, fast, again = probe(None), probe(TokenExit(1.0, 0)), probe(None)
    assert first.scores == again.scores and first.mean_depth == again.mean_depth == N_LAYERS
    assert fast.mean_depth < N_LAYERS
    assert not any(doc.has_annotation("ENT_IOB") for doc in probe.docs)


# --- the command calibrate -----------------------------------------------------------------


def test_command(stored, dev, tmp_path):
    output = tmp_path / "new"
    plot = tmp_path / "plot"
    args = [stored, dev, "--output", output, *OPTIONS, "-G", "--exit", "1.5x", "--plot", plot]
    code, out = run_cli("calibrate", *args, "--max-loss", "0.5")
    assert code == 0, out
    assert "full" in out and "within-0.5" in out and "temperatures: " in out
    assert "the least expected error of the runs that are not surely worse" in out
    nlp = spacy.load(output)
    transformer = nlp.get_pipe("transformer")
    # spaCy writes it, and cuts off the last digits of numbers.
    meta = srsly.read_json(output / "meta.json")
    shown = meta["earlyexit"]["transformer"]["points"]
    assert shown.keys() == transformer.points.keys()
    for name, point in transformer.points.items():
        assert shown[name]["dev_speedup"] == pytest.approx(point["dev_speedup"])
        assert shown[name]["exit"].keys() == point["exit"].keys() if point["exit"] else True
    assert meta["earlyexit"]["transformer"]["exit"] == transformer.exit
    for name in transformer.points:
        assert f"| `{name}` |" in meta["notes"]
    assert transformer.exit == ("1.5x" if "1.5x" in transformer.points else None)
    assert plot.with_suffix(".svg").read_text().startswith("<?xml")
    assert plot.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert spacy.load(stored).get_pipe("transformer").points == {}, "the input stays as it was"


def test_meta_follows_the_points(calibrated, tmp_path):
    """Whatever way they come into a pipeline, and out of it. Other notes stay."""
    _, fast = calibrated
    nlp = spacy.load(fast)
    nlp.meta["notes"] = "Ours.\n\n" + nlp.meta["notes"]
    transformer = nlp.get_pipe("transformer")
    name = next(name for name in transformer.points if name != "full")
    for exit, shown in ((name, f"In force: {name}."), (None, "In force: full depth.")):
        transformer.exit = exit
        assert nlp.meta["earlyexit"]["transformer"]["exit"] == exit
        assert nlp.meta["notes"].startswith("Ours.") and shown in nlp.meta["notes"]
        assert nlp.meta["notes"].count("### Operating points") == 1
    nlp.rename_pipe("transformer", "encoder")
    assert list(nlp.meta["earlyexit"]) == ["encoder"]
    other = spacy.blank("en")
    other.add_pipe("encoder", source=nlp)
    other.add_pipe("earlyexit_ner")
    assert list(other.meta["earlyexit"]["encoder"]["points"]) == list(transformer.points)
    other.to_disk(tmp_path)
    card = generate_readme(json.loads((tmp_path / "meta.json").read_text()))
    assert f"| `{name}` |" in card
    with pytest.warns(UserWarning, match="thresholds and the temperatures were found for those of"):
        nlp.update(make_examples(nlp), sgd=nlp.create_optimizer())
    transformer.exit = name
    nlp.initialize(lambda: make_examples(nlp))
    assert transformer.points == {} and transformer.exit is None
    assert nlp.meta["earlyexit"]["encoder"]["points"] == {} and nlp.meta["notes"] == "Ours."


def test_add_keeps_points_and_temperatures(calibrated, dev, tmp_path):
    _, fast = calibrated
    before = spacy.load(fast).get_pipe("transformer")
    args = [fast, dev, "-o", tmp_path / "both", *OPTIONS, "-G", "--add", "--no-lossless"]
    code, out = run_cli("calibrate", *args, "--criterion", "sentence", "--prefix", "sentence-")
    assert code == 0, out
    after = spacy.load(tmp_path / "both").get_pipe("transformer")
    assert after.temperatures == before.temperatures
    assert before.points.items() <= after.points.items()
    added = set(after.points) - set(before.points)
    assert added and added <= {"sentence-1.5x", "sentence-2x"}


def test_input_is_replaced_only_with_force(stored, dev, tmp_path):
    copy = tmp_path / "copy"
    spacy.load(stored).to_disk(copy)
    code, out = run_cli("calibrate", copy, dev, "-o", copy, *OPTIONS)
    assert code == 1 and "--force" in out
    assert spacy.load(copy).get_pipe("transformer").points == {}
    code, out = run_cli("calibrate", copy, dev, "-o", copy, *OPTIONS, "-G", "--force")
    assert code == 0, out
    assert spacy.load(copy).get_pipe("transformer").points
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_temperatures_of_a_task(stored, dev, tmp_path):
    """On top of what is tried; wrong ones are named, and nothing is written."""
    args = [stored, dev, "-o", tmp_path / "out", *OPTIONS, "-G"]
    code, out = run_cli("calibrate", *args, "--no-temperatures", "--task-temperatures", "ner=0.5")
    assert code == 0, out
    found = spacy.load(tmp_path / "out").get_pipe("transformer")
    assert set(found.temperatures["ner"]) == {0.5}
    at_half = found.points
    code, out = run_cli("calibrate", *args, "--no-temperatures", "--force")
    assert spacy.load(tmp_path / "out").get_pipe("transformer").points != at_half
    args[3] = tmp_path / "none"
    for value, expected in (
        ("ner", "tasks and numbers, like seg=0.7"),
        ("ner=cold", "tasks and numbers, like seg=0.7"),
        ("ner=0", "numbers > 0"),
        ("tag=2", "tasks among ner"),
    ):
        code, out = run_cli("calibrate", *args, "--task-temperatures", value)
        assert code == 1 and expected in " ".join(out.split()), out
    args = [tmp_path / "out", dev, "-o", tmp_path / "none", *OPTIONS, "-G", "--add"]
    code, out = run_cli("calibrate", *args, "--task-temperatures", "ner=0.5")
    assert code == 1 and "empty where temperatures stay as they are" in " ".join(out.split())
    assert not (tmp_path / "none").exists()


def test_setting_in_force_stays_or_falls_back(stored, dev, tmp_path):
    """A point that is gone gives way to full depth; a criterion stays, with a warning."""
    nlp = spacy.load(stored)
    transformer = nlp.get_pipe("transformer")
    transformer.points["old"] = {"exit": TokenExit(0.1, 1).to_config()}
    transformer.exit = "old"
    nlp.to_disk(tmp_path / "named")
    transformer.exit = TokenExit(0.1, 1)
    nlp.to_disk(tmp_path / "criterion")
    code, out = run_cli("calibrate", tmp_path / "named", dev, "-o", tmp_path / "a", *OPTIONS, "-G")
    assert code == 0 and "'old', which was in force, is not among those" in out
    assert "--add" in out and spacy.load(tmp_path / "a").get_pipe("transformer").exit is None
    args = [tmp_path / "criterion", dev, "-o", tmp_path / "b", *OPTIONS, "-G"]
    code, out = run_cli("calibrate", *args, "--no-temperatures")
    assert code == 0 and "chosen at other temperatures" not in out
    code, out = run_cli("calibrate", *args, "--force", "--temperatures")
    assert code == 0 and "chosen at other temperatures" in out
    assert set(spacy.load(tmp_path / "b").get_pipe("transformer").temperatures["ner"]) != {1.0}
    args = [tmp_path / "b", dev, "-o", tmp_path / "e", *OPTIONS, "-G", "--no-temperatures"]
    code, out = run_cli("calibrate", *args)
    assert code == 0 and "chosen at other temperatures" in out, "from fitted ones to none"
    assert set(spacy.load(tmp_path / "e").get_pipe("transformer").temperatures["ner"]) == {1.0}
    kept = spacy.load(tmp_path / "b").get_pipe("transformer").exit
    assert kept.to_config() == TokenExit(0.1, 1).to_config()
    # One that no temperature moves, and a point that was looked for in vain.
    transformer.exit = FixedExit(2)
    nlp.to_disk(tmp_path / "fixed")
    code, out = run_cli("calibrate", tmp_path / "fixed", dev, "-o", tmp_path / "c", *OPTIONS, "-G")
    assert code == 0 and "temperatures were" not in out and "other temperatures" not in out
    transformer.points["40x"] = transformer.points["old"]
    transformer.exit = "40x"
    nlp.to_disk(tmp_path / "far")
    args = [tmp_path / "far", dev, "-o", tmp_path / "d", *OPTIONS, "-G", "--speedups", "1.5,40"]
    code, out = run_cli("calibrate", *args)
    assert code == 0 and "'40x' was not reached on dev" in out


@pytest.mark.parametrize(
    "options, message",
    [
        (["--exit", "5x"], "one of full, 1.5x, 2x, lossless"),
        (["--speedups", "fast"], "speedups"),
        (["--windows", "1.5"], "windows"),
        (["--schedules", "none"], "schedules"),
        (["--max-loss", "2"], "max_loss"),
        (["--plot", "curve.txt"], "plot"),
    ],
)
def test_command_errors(stored, dev, tmp_path, options, message):
    code, out = run_cli("calibrate", stored, dev, "-o", tmp_path / "new", *OPTIONS, *options)
    assert code == 1 and message in out
    assert not (tmp_path / "new").exists()


def test_plot_without_matplotlib(stored, dev, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    args = ["-o", tmp_path / "new", "--plot", tmp_path / "curve.svg"]
    code, out = run_cli("calibrate", stored, dev, *args)
    assert code == 1 and "spacy-earlyexit[plots]" in out


def test_commands_without_transformer(dev, tmp_path):
    spacy.blank("en").to_disk(tmp_path / "blank")
    code, out = run_cli("calibrate", tmp_path / "blank", dev, "-o", tmp_path / "new")
    assert code == 1 and "no earlyexit_transformer" in out
    code, out = run_cli("evaluate", tmp_path / "blank", dev)
    assert code == 1 and "no earlyexit_transformer" in out


def test_depths_are_shares_of_the_layers():
    """At least one layer, and each number once; a share of 1 is no limit."""
    search = Search(windows=(1,), schedules=("linear",), depths=(1.0, 0.7, 0.6, 0.1))
    lasts = [candidate.last_layer for candidate in search.candidates(4)]
    assert lasts == [1, 2, 3, None]
    assert [c(0.1).last_layer for c in search.candidates(4)] == lasts


def test_no_word_goes_deeper_than_tried(trained):
    """And what is always faster than the target is not run for it."""
    search = Search(speedups=(1.6,), max_losses=(), windows=(0,), depths=(0.75, 0.25), finalists=9)
    search = without_temperatures(search)
    found = find_points(trained.get_pipe("transformer"), make_examples(trained), search)
    runs = [run for run in found.runs if run.criterion is not None]
    assert {run.criterion.last_layer for run in runs} == {3}
    assert max(run.mean_depth for run in runs) <= 3


def test_words_leave_at_every_second_layer_only(trained):
    search = Search(speedups=(1.5,), max_losses=(), windows=(0,), every=(2,), finalists=9)
    assert {(c(0.1).threshold[0], c(0.1).threshold[2]) for c in search.candidates(4)} == {(0, 0)}
    assert all(c(0.1).checks(2) for c in search.candidates(4))
    transformer = trained.get_pipe("transformer")
    found = find_points(transformer, make_examples(trained), without_temperatures(search))
    assert len(found.runs) > 1
    for run in found.runs[1:]:
        with transformer.use(run.criterion):
            docs = trained.pipe([eg.predicted.copy() for eg in make_examples(trained)])
            layers = {layer for doc in docs for layer in doc._.exit_layers}
        # A last layer is one where all leave, whatever is checked.
        assert layers <= {2, 4, run.criterion.last_layer}


def test_finalists_are_of_different_kinds_first():
    """The most promising, the largest window, other steps, other depths, other windows, other
    schedules.
    """
    deep, flat = (replace(Candidate("linear", 0, 4), last_layer=last) for last in (None, 2))
    others = [Candidate("linear", window, 4, 2) for window in (1, 2)]
    constant, rare = replace(flat, schedule="constant"), replace(flat, every=2)
    chosen = module._of_each_kind([flat, constant, deep, *others, rare])
    assert chosen == [flat, others[1], rare, deep, others[0], constant]


def test_finalists_are_of_different_windows_first():
    """The most promising, the largest window, the other windows, the other schedules."""
    ranked = [Candidate(s, w, 4) for w in (0, 1, 2) for s in ("linear", "constant")]
    chosen = module._of_each_kind(ranked)
    assert [(c.window, c.schedule) for c in chosen] == [
        (0, "linear"),
        (2, "linear"),
        (1, "linear"),
        (0, "constant"),
        (1, "constant"),
        (2, "constant"),
    ]
    sentences = [Candidate(s, None, 4) for s in ("linear", "constant")]
    assert module._of_each_kind(sentences) == sentences


def test_outputs_that_cannot_be_written_are_no_surprise_at_the_end(
    stored, dev, tmp_path, monkeypatch
):
    """Said before any work is done."""
    monkeypatch.setattr(spacy, "load", None)
    file = tmp_path / "file"
    file.write_text("")
    code, out = run_cli("evaluate", stored, dev, "-o", tmp_path)
    assert code == 2 and "is a directory" in out
    for command, option in (("evaluate", "-o"), ("evaluate", "--plot"), ("calibrate", "-o")):
        code, out = run_cli(command, stored, dev, option, file / "below.svg")
        assert code == 1 and "file" in out
    code, out = run_cli("benchmark", dev, stored, "--json", file / "below.json")
    assert code == 1 and "file" in out


def test_spacy_knows_the_commands():
    for name in ("calibrate", "evaluate"):
        command = [sys.executable, "-m", "spacy", "earlyexit", name, "--help"]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0 and "--output" in result.stdout


@pytest.mark.parametrize("speedups", ["50", "50,60"])
def test_no_wanted_point_is_a_failure(stored, dev, tmp_path, speedups):
    """Not a success without a point; nothing is written."""
    args = [stored, dev, "--output", tmp_path / "new", "-G", "--finalists", "1"]
    code, out = run_cli("calibrate", *args, "--windows", "0", "--speedups", speedups)
    assert code == 1
    assert "No operating point was found, and nothing is saved" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "option,value,message",
    [
        ("--speedups", "inf", "`speedups` has to be numbers > 1"),
        ("--speedups", "nan", "`speedups` has to be numbers > 1"),
        ("--max-loss", "-1", "`max_loss` has to be shares"),
    ],
)
def test_impossible_numbers(stored, dev, tmp_path, option, value, message):
    code, out = run_cli("calibrate", stored, dev, "-o", tmp_path / "new", f"{option}={value}")
    assert code == 1 and message in out


def test_labels_of_other_data_are_an_error(stored, tmp_path):
    other = Doc(spacy.blank("en").vocab, words=["Anna", "lives"], ents=["B-PERSON", "O"])
    DocBin(docs=[other]).to_disk(tmp_path / "other.spacy")
    code, out = run_cli("calibrate", stored, tmp_path / "other.spacy", "-o", tmp_path / "new")
    out = " ".join(out.split())
    assert code == 1 and "'other.spacy' annotates" in out and "PERSON. It knows: LOC, PER" in out


def test_points_are_run_again_before_they_are_kept(stored, dev, tmp_path, monkeypatch):
    """What is loaded has to cost what was measured."""
    from spacy_earlyexit.pipeline import transformer as component

    write = component.write_cfg

    def blunt(cfg):
        cfg = copy.deepcopy(cfg)
        for point in cfg["points"].values():
            if point["exit"]:
                point["exit"]["threshold"] = 0.0
        return write(cfg)

    monkeypatch.setattr(component, "write_cfg", blunt)
    args = [stored, dev, "--output", tmp_path / "new", *OPTIONS, "-G"]
    code, out = run_cli("calibrate", *args)
    assert code == 1 and "costs something else when it is loaded again" in out
    assert list(tmp_path.iterdir()) == []


def test_the_function_stores_points_and_prints_nothing(trained, capfd):
    nlp = copy.deepcopy(trained)
    found = spacy_earlyexit.calibrate(nlp, make_examples(nlp), SEARCH)
    assert list(nlp.get_pipe("transformer").points) == ["full", *found.points]
    assert capfd.readouterr() == ("", "")
