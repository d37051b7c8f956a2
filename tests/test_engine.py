"""The checks (a)-(g) of the method, forward and backward, against the masked reference."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import assert_equal, engine, given_rule, reference, sentence_rule, token_rule

from spacy_earlyexit.model.batch import Rules
from spacy_earlyexit.model.costs import full_depth_macs, layer_macs
from spacy_earlyexit.model.criteria import UNIT_GAP, FixedExit, SentenceExit, TokenExit, window_max
from spacy_earlyexit.model.encoders import Encoder, EncoderConfig, layers
from spacy_earlyexit.model.engine import MultiExitModule, run
from spacy_earlyexit.model.offramps import IGNORE, OffRamps, joint_loss, uncertainty
from spacy_earlyexit.model.pieces import Pieces
from spacy_earlyexit.model.self_sampling import SampledExit

CONFIG = EncoderConfig(
    family="bert",
    n_vocab=50,
    n_types=2,
    n_positions=40,
    first_position=0,
    n_layers=4,
    n_heads=2,
    hidden=8,
    inner=12,
    activation="gelu",
    norm_eps=1e-12,
    hidden_dropout=0.0,
    attention_dropout=0.0,
)
# What other families have: shared layers behind small embeddings (ALBERT); norms in front, rotary
# positions, windows narrower than the units, gates, no biases (ModernBERT).
SHARED_LAYERS = replace(
    CONFIG, family="albert", embedding=6, n_types=0, first_position=2, blocks=[0, 1, 0, 1]
)
LOCAL = replace(
    CONFIG,
    family="modernbert",
    pre_norm=True,
    gated=True,
    thetas=[1000.0, 10.0, 10.0, 1000.0],
    windows=[None, 2, 3, None],
    attention_bias=False,
    inner_bias=False,
    norm_bias=False,
)
ALIGNED = replace(CONFIG, aligned=True)
CAUGHT_UP = replace(CONFIG, aligned=True, catch_up=3)
LOCAL_CAUGHT_UP = replace(LOCAL, catch_up=2)
every_kind = pytest.mark.parametrize(
    "config",
    [CONFIG, SHARED_LAYERS, LOCAL, ALIGNED, CAUGHT_UP, LOCAL_CAUGHT_UP],
    ids=lambda c: c.family + "-aligned" * c.aligned + "-catch-up" * bool(c.catch_up),
)
CLASSES = {"ner": ["O", "B-X", "I-X"], "pos": ["A", "B", "C", "D"]}
TASKS = list(CLASSES)


@pytest.fixture(scope="module", autouse=True)
def small_chunks():
    """Rows that go through a layer in chunks need not be many here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "CHUNK", 5)
        yield


def make_module(seed=0, config=CONFIG, context=0):
    torch.manual_seed(seed)
    offramps = OffRamps(CLASSES, config.n_layers, config.hidden, context)
    module = MultiExitModule(Encoder(config), offramps)
    for name, parameter in module.named_parameters():
        # Large enough that words, layers and units differ clearly.
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.7)
    return module.to(torch.float64).eval()


def make_pieces(words_per_unit, seed=0):
    """Units of words of 1-3 pieces."""
    rng = np.random.default_rng(seed)
    ids, row_word, word_row, unit_starts, word_starts = [], [], [], [0], [0]
    for n_words in words_per_unit:
        row_word.append(-1)
        for _ in range(n_words):
            word = len(word_row)
            word_row.append(len(row_word))
            row_word.extend([word] * int(rng.integers(1, 4)))
        row_word.append(-1)
        unit_starts.append(len(row_word))
        word_starts.append(len(word_row))
    ids = rng.integers(0, CONFIG.n_vocab, len(row_word))
    n_words, n_units = len(word_row), len(words_per_unit)
    counts = np.diff(word_starts)
    return Pieces(
        ids=ids,
        unit_starts=np.asarray(unit_starts),
        row_word=np.asarray(row_word),
        word_row=np.asarray(word_row),
        word_starts=np.asarray(word_starts),
        word_doc=np.repeat(np.arange(n_units), counts),
        word_token=np.concatenate([np.arange(c) for c in counts]),
        word_chars=np.zeros((n_words, 2), dtype=np.int32),
        owned=np.ones(n_words, dtype=bool),
        unit_doc=np.arange(n_units),
        unit_bounds=np.stack([np.zeros_like(counts), counts], axis=1),
    )


class GivenExit:
    """Exit layers fixed beforehand, one per word of the batch."""

    def __init__(self, exits):
        self.exits = np.asarray(exits)

    def checks(self, layer):
        return True

    def halts(self, n_layers):
        return True

    def __call__(self, layer, uncertainty, words):
        return torch.from_numpy(self.exits[words.word_id] <= layer)


def above_one(criterion):
    """With a threshold that no setting may have: nothing is ever so uncertain."""
    object.__setattr__(criterion, "threshold", 1.1)
    return criterion


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6)
RULES = st.builds(
    Rules,
    special_share=st.sampled_from([0.0, 0.3, 1.0]),
    reach=st.sampled_from([None, 0, 1, 3]),
    mean_pieces=st.booleans(),
)
CONTEXT = st.integers(0, 2)  # of the off-ramps
SLOW = settings(max_examples=20, suppress_health_check=list(HealthCheck))


@every_kind
@SLOW
@given(
    LENGTHS,
    st.integers(0, 3),
    st.floats(0.05, 1.0),
    st.sampled_from([None, 2, CONFIG.n_layers]),
    RULES,
    CONTEXT,
    st.integers(0, 5),
)
def test_token_exit_equals_reference(
    config, lengths, window, threshold, last, rules, context, seed
):
    """(c), (e) and the rules themselves, for random lengths, windows, thresholds and depths."""
    module, pieces = make_module(seed, config, context), make_pieces(lengths, seed)
    ours = engine(module, pieces, TokenExit(threshold, window, last), rules=rules, states=True)
    rule = token_rule(threshold, window)

    def rule_of_unit(u):
        return lambda layer, doubt: [layer == last or leaves for leaves in rule(layer, doubt)]

    assert_equal(ours, reference(module, pieces, rule_of_unit, rules))
    assert ours[1].max() <= (last or CONFIG.n_layers)


@every_kind
@SLOW
@given(LENGTHS, st.floats(0.3, 1.0), st.integers(0, 5))
def test_sentence_exit_equals_reference(config, lengths, threshold, seed):
    module, pieces = make_module(seed, config), make_pieces(lengths, seed)
    ours = engine(module, pieces, SentenceExit(threshold), states=True)
    assert_equal(ours, reference(module, pieces, lambda u: sentence_rule(threshold)))


@every_kind
@SLOW
@given(LENGTHS, RULES, CONTEXT, st.integers(0, 10_000))
def test_given_exits_equal_reference_forward_and_backward(config, lengths, rules, context, seed):
    """(c): the gathering path equals the masked one for any exits, and so do its gradients."""
    module, pieces = make_module(seed % 7, config, context), make_pieces(lengths, seed)
    exits = np.random.default_rng(seed).integers(1, CONFIG.n_layers + 1, sum(lengths))
    units = np.argsort(np.diff(pieces.unit_starts), kind="stable")
    order = np.concatenate([np.arange(*pieces.word_starts[u : u + 2]) for u in units])
    criterion = GivenExit(exits[order])
    ours = engine(module, pieces, criterion, rules=rules, states=True, every_offramp=True)
    theirs = reference(
        module, pieces, lambda u: given_rule(exits[slice(*pieces.word_starts[u : u + 2])]), rules
    )
    np.testing.assert_array_equal(ours[1], exits)
    assert_equal(ours, theirs)

    weight = torch.randn(ours[3].shape, dtype=torch.float64)
    gradients = []
    for scores, states in ((ours[0], ours[3]), (theirs[0], theirs[3])):
        module.zero_grad()
        ((states * weight).sum() + (scores**2).sum()).backward(retain_graph=True)
        gradients.append(
            [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in module.parameters()]
        )
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@every_kind
@pytest.mark.parametrize("special_share", [0.0, 0.5, 1.0])
def test_threshold_zero_is_full_depth(config, special_share):
    """(a)"""
    module, pieces = make_module(config=config), make_pieces([3, 7, 1, 5])
    rules = Rules(special_share=special_share)
    full = engine(module, pieces, None)
    zero = engine(module, pieces, TokenExit(0.0, 1), rules=rules)
    assert torch.equal(full[0], zero[0])
    assert (zero[1] == CONFIG.n_layers).all()
    np.testing.assert_array_equal(full[2], zero[2])


@every_kind
@pytest.mark.parametrize(
    "criterion", [above_one(TokenExit(1.0, 2)), above_one(SentenceExit(1.0)), FixedExit(1)]
)
def test_threshold_above_one_leaves_at_layer_one(config, criterion):
    """(b)"""
    _, exits, _, _, _ = engine(make_module(config=config), make_pieces([3, 7, 1]), criterion)
    assert (exits == 1).all()


@every_kind
def test_unit_at_full_depth_beside_one_that_halts(config):
    """As self-sampling draws them: special pieces halt from the start in the second one only."""
    module, pieces = make_module(config=config), make_pieces([3, 7])
    drawn = SampledExit(torch.tensor([0.0, 0.9]), torch.tensor([0, 0]), [1.0] * CONFIG.n_layers)
    full = engine(module, pieces, None)
    ours = engine(module, pieces, drawn, rules=Rules(special_share=1.0))
    torch.testing.assert_close(ours[0][:3], full[0][:3], rtol=1e-9, atol=1e-9)
    assert (ours[1][:3] == CONFIG.n_layers).all() and (ours[1][3:] < CONFIG.n_layers).any()


@every_kind
@pytest.mark.parametrize("layer", [1, 3, CONFIG.n_layers])
def test_fixed_layer_is_that_of_full_depth(config, layer):
    """Whatever the rules: nothing halts before everything leaves."""
    module, pieces = make_module(config=config), make_pieces([3, 7, 1, 5])
    plain = engine(module, pieces, FixedExit(layer))
    lean = engine(module, pieces, FixedExit(layer), rules=Rules(special_share=1.0, reach=0))
    assert torch.equal(plain[0], lean[0])
    np.testing.assert_array_equal(plain[2], lean[2])


@every_kind
def test_full_depth_costs_the_formula(config):
    """(d): L · (12H²-type terms) exactly, and one off-ramp."""
    module, pieces = make_module(config=config), make_pieces([3, 7, 1, 5])
    _, _, macs, _, _ = engine(module, pieces, None)
    rows, words = np.diff(pieces.unit_starts), np.diff(pieces.word_starts)
    h, f, n_layers = config.hidden, config.inner, config.n_layers
    matrices = 3 if config.gated else 2
    layer = 4 * h * h * rows + 2 * h * rows**2 + matrices * h * f * rows
    projection = 6 * h * rows if config is SHARED_LAYERS else 0
    expected = projection + n_layers * layer + h * 7 * words
    np.testing.assert_array_equal(macs, expected)
    np.testing.assert_array_equal(full_depth_macs(config, rows, words, 7 * h), expected)
    # with F = 4H the linear part is 12H² per row; a halted row costs a sixth of that
    one, none = np.asarray([1]), np.asarray([0])
    assert layer_macs(config, none, one)[0] == 2 * h * h + 2 * h * config.catch_up


def test_window_blocks_exactly_k_neighbours():
    """(f): clipped at the unit's edges, and never reaching the next unit."""

    class Layout:
        word_gap = torch.tensor([0] + [1] * 6 + [UNIT_GAP] + [1] * 2)
        n_gaps = 1
        most_words = 100

    for window in (0, 1, 2, 3, 20):
        for hard in (0, 3, 6, 7):
            u = torch.zeros(10)
            u[hard] = 1.0
            blocked = window_max(u, Layout, window) > 0.5
            first, last = (0, 6) if hard < 7 else (7, 9)
            expected = [first <= j <= last and abs(j - hard) <= window for j in range(10)]
            assert blocked.tolist() == expected


@every_kind
def test_result_does_not_depend_on_the_batch(config):
    """(g)"""
    module, pieces = make_module(config=config), make_pieces([3, 7, 1, 5, 9, 2])
    criteria = [TokenExit(threshold, 1) for threshold in np.linspace(0.3, 0.95, 14)]
    results = [engine(module, pieces, criterion) for criterion in criteria]
    best = int(np.argmax([len(set(exits)) for _, exits, *_ in results]))
    criterion, together = criteria[best], results[best]
    assert len(set(together[1])) > 1, "the setting has to make words leave at several layers"
    for u in range(pieces.n_units):
        batch, out = run(module, pieces, np.asarray([u]), criterion, TASKS)
        words = batch.pieces_word
        np.testing.assert_array_equal(out.exit_layer, together[1][words])
        torch.testing.assert_close(out.scores, together[0][words], rtol=1e-9, atol=1e-9)


@every_kind
def test_finished_units_and_halted_rows_are_not_computed(config, monkeypatch):
    """What is thrown away is never multiplied: rows that go into each feed-forward."""
    monkeypatch.setattr(layers, "CHUNK", 100)
    module, pieces = make_module(config=config), make_pieces([2, 6, 4])
    seen = []
    for layer in module.encoder.layers:
        layer.inner.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    exits = np.asarray([1, 1] + [4, 1, 1, 1, 1, 1] + [2, 2, 3, 3])
    units = np.argsort(np.diff(pieces.unit_starts), kind="stable")
    order = np.concatenate([np.arange(*pieces.word_starts[u : u + 2]) for u in units])
    engine(module, pieces, GivenExit(exits[order]))
    rows_of = np.bincount(pieces.row_word[pieces.row_word >= 0], minlength=12)
    expected = []
    for layer in range(1, 5):
        n = 0
        for u in range(3):
            words = slice(*pieces.word_starts[u : u + 2])
            alive = exits[words] >= layer
            n += rows_of[words][alive].sum() + (2 if alive.any() else 0)
        expected.append(n)
    assert seen == expected


@every_kind
def test_loss_gradient_is_numeric(config):
    """Joint loss and states at exit through halt-and-copy at given exits, in double precision."""
    module, pieces = make_module(3, config), make_pieces([2, 4])
    exits = np.asarray([1, 3, 2, 4, 1, 2])
    gold = {"ner": torch.tensor([0, 1, 2, IGNORE, 0, 0]), "pos": torch.tensor([3, 0, 1, 1, 2, 0])}

    def loss():
        units = np.arange(2)
        settings = {"every_offramp": True, "states": True}
        _, out = run(module, pieces, units, GivenExit(exits), TASKS, **settings)
        weight = torch.linspace(-1.0, 1.0, out.states.numel()).view_as(out.states)
        heard = (out.states * weight).mean()
        slices = module.offramps.slices
        return heard + joint_loss(out.layer_scores, gold, slices, CONFIG.n_layers)

    loss().backward()
    generator = np.random.default_rng(0)
    for name, parameter in module.named_parameters():
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        for i in generator.choice(len(flat), size=min(4, len(flat)), replace=False):
            old = flat[i].item()
            flat[i] = old + 1e-6
            up = loss().item()
            flat[i] = old - 1e-6
            down = loss().item()
            flat[i] = old
            assert (up - down) / 2e-6 == pytest.approx(gradient[i].item(), abs=1e-6), name


def test_joint_loss_weights():
    """sum_l l·CE_l / sum_l l, averaged over words with gold."""
    scores = torch.randn(3, 4, 3)
    layers = [(i + 1, torch.arange(4), scores[i]) for i in range(3)]
    gold = torch.tensor([0, 2, IGNORE, 1])
    keep = gold != IGNORE
    ce = [torch.nn.functional.cross_entropy(s[keep], gold[keep]) for s in scores]
    expected = (1 * ce[0] + 2 * ce[1] + 3 * ce[2]) / 6
    of_task = {"ner": gold}, {"ner": slice(0, 3)}, 3
    loss = joint_loss(layers, *of_task, layer_weights="linear")
    torch.testing.assert_close(loss, expected)
    # a batch that left at layer 2 weighs less, not its two layers more
    left = joint_loss(layers[:2], *of_task, layer_weights="linear")
    torch.testing.assert_close(left, (1 * ce[0] + 2 * ce[1]) / 6)


def test_uncertainty_bounds_and_stability():
    slices = {"a": slice(0, 3), "b": slice(3, 4)}
    flat, sharp = torch.zeros(1, 4), torch.tensor([[1e4, 0.0, -1e4, 7.0]])
    assert uncertainty(flat, slices).item() == pytest.approx(1.0)
    assert uncertainty(sharp, slices).item() == 0.0


def test_most_uncertain_task_rules():
    scores = torch.tensor([[9.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 9.0, 0.0, 0.0]])
    slices = {"a": slice(0, 2), "b": slice(2, 5)}
    each = torch.maximum(
        uncertainty(scores[:, :2], {"a": slice(0, 2)}),
        uncertainty(scores[:, 2:], {"b": slice(0, 3)}),
    )
    torch.testing.assert_close(uncertainty(scores, slices), each)
