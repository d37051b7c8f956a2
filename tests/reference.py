"""A slow, plain, masked reference of the multi-exit forward pass, one unit at a time.

Written from the method alone: every layer is computed for all positions, halted positions are put
back from the layer before, windows are Python loops. The engine has to equal it.
"""

import math

import numpy as np
import torch

from spacy_earlyexit.model.engine import run


def turned(x, theta):
    """Rotary positions of one head (N, d): component i and i + d/2 make a complex number."""
    n, d = x.shape
    i = torch.arange(d // 2, dtype=torch.float64)
    angle = torch.arange(n, dtype=torch.float64)[:, None] * theta ** (-2 * i / d)
    pairs = torch.complex(x[:, : d // 2], x[:, d // 2 :]) * torch.exp(1j * angle)
    return torch.cat([pairs.real, pairs.imag], dim=-1)


def layer_forward(layer, x, serves, config, number):
    """One full layer over a unit (N, H), every position a query, before its last norm.

    serves: Which positions are keys and values, shape (N,), bool.
    """
    n, hidden = x.shape
    d = hidden // config.n_heads
    seen = layer.attention_norm(x) if config.pre_norm else x
    q = layer.query(seen)
    k, v = layer.key_value(seen).chunk(2, dim=-1)
    window = config.windows[number - 1] if config.windows else None
    far = torch.tensor([[abs(i - j) > (window or n) for j in range(n)] for i in range(n)])
    heads = []
    for h in range(config.n_heads):
        part = slice(h * d, (h + 1) * d)
        own_q, own_k = q[:, part], k[:, part]
        if config.thetas:
            theta = config.thetas[number - 1]
            own_q, own_k = turned(own_q, theta), turned(own_k, theta)
        logits = own_q @ own_k.T / math.sqrt(d)
        # (itself too, so that a position that is not used later is a number)
        hidden_from = (far | ~serves) & ~torch.eye(n, dtype=torch.bool)
        weights = torch.softmax(logits.masked_fill(hidden_from, -math.inf), dim=-1)
        heads.append(weights @ v[:, part])
    a = x + layer.output(torch.cat(heads, dim=-1))
    if config.pre_norm:
        return a + feed_forward(layer, layer.norm(a), config)
    a = layer.attention_norm(a)
    return a + feed_forward(layer, a, config)


def feed_forward(layer, x, config):
    inner = layer.inner(x)
    if not config.gated:
        return layer.outer(layer.activation(inner))
    return layer.outer(layer.activation(inner[:, : config.inner]) * inner[:, config.inner :])


def entropy(scores, slices):
    """Normalised entropy of the most uncertain task, per word."""
    worst = []
    for row in scores:
        values = []
        for part in slices.values():
            p = torch.softmax(row[part], dim=-1)
            terms = [-(x * torch.log(x)) if x > 0 else x * 0 for x in p]
            values.append(sum(terms) / math.log(len(p)))
        worst.append(max(values))
    return torch.stack(worst)


def score(offramps, number, vectors, in_batch):
    """One off-ramp, word by word: its own vector and those of the neighbours that are there."""
    n, c = len(vectors), offramps.context
    blocks = offramps.weight[number - 1].split(vectors.shape[1], dim=1)
    rows = []
    for j in range(n):
        row = offramps.bias[number - 1]
        for i, block in enumerate(blocks):
            near = j + i - c
            if 0 <= near < n and (near == j or (in_batch[near] and in_batch[j])):
                row = row + block @ vectors[near]
        rows.append(row)
    return torch.stack(rows)


def run_unit(
    module,
    ids,
    row_word,
    word_row,
    slices,
    decide,
    special_share=0.0,
    reach=None,
    mean_pieces=False,
):
    """All layers of one unit.

    decide(layer, uncertainty (n_words,)) -> list of bool: which words may leave.
    special_share, reach, mean_pieces: see batch.Rules.
    RETURNS: scores at exit (n_words, C), exit layers, final rows, MACs.
    """
    encoder, offramps = module.encoder, module.offramps
    config = encoder.config
    h, n_words, row_word = config.hidden, len(word_row), row_word.tolist()
    x = encoder.embed(ids, torch.arange(len(ids)))
    exit_layer = [0] * n_words
    at_exit = [None] * n_words
    in_batch = [True] * n_words
    macs = len(ids) * (config.embedding or 0) * h
    row_layer = [1] * len(ids)
    for number in range(1, config.n_layers + 1):
        going = [e == 0 for e in exit_layer]
        if not any(going):
            break
        special_active = sum(going) > special_share * n_words
        active = [going[w] if w >= 0 else special_active for w in row_word]
        row_layer = [number if a else old for a, old in zip(active, row_layer, strict=True)]
        serves = torch.tensor([w < 0 or in_batch[w] for w in row_word])
        layer = encoder.layer(number)
        new = layer_forward(layer, x, serves, config, number)
        if not layer.pre_norm:
            new = layer.norm(new)
        if config.catch_up:
            # what has left the batch is not moved any more
            maps = encoder.catch_up
            down, up, bias = (part[number - 1] for part in (maps.down, maps.up, maps.bias))
            moved = x + x @ down @ up + bias
            x = torch.stack([m if s else o for m, o, s in zip(moved, x, serves, strict=True)])
            row_layer = [number if s else at for s, at in zip(serves, row_layer, strict=True)]
        x = torch.stack([n if a else o for n, o, a in zip(new, x, active, strict=True)])
        n_active, n_rows = sum(active), int(serves.sum())
        macs += 2 * h * h * (n_active + n_rows)
        matrices = 3 if config.gated else 2
        macs += 2 * h * n_active * n_rows + matrices * h * config.inner * n_active
        macs += 2 * h * config.catch_up * (n_rows - n_active)
        macs += offramps.weight[0].numel() * sum(in_batch)
        vectors = x[word_row]
        if mean_pieces:
            rows = [[i for i, w in enumerate(row_word) if w == j] for j in range(n_words)]
            vectors = torch.stack([x[own].mean(0) for own in rows])
        scores = score(offramps, number, encoder.final_norm(vectors), in_batch)
        doubt = entropy(scores, slices).detach()
        doubt[~torch.tensor(in_batch)] = -math.inf
        certain = decide(number, doubt)
        for w in range(n_words):
            if exit_layer[w] == 0 and (certain[w] or number == config.n_layers):
                exit_layer[w] = number
                at_exit[w] = scores[w]
        if reach is not None:
            going = [w for w in range(n_words) if exit_layer[w] == 0]
            in_batch = [any(abs(w - g) <= reach for g in going) for w in range(n_words)]
    rows = encoder.final_norm(x)
    if config.aligned:
        maps = [*encoder.align, encoder.align.new_zeros(h, h)]
        rows = torch.stack([r + maps[at - 1] @ r for r, at in zip(rows, row_layer, strict=True)])
        macs += h * h * sum(at < config.n_layers for at in row_layer)
    return torch.stack(at_exit), exit_layer, rows, macs


def token_rule(threshold, window):
    """TOKEE, word by word."""

    def decide(layer, u):
        n = len(u)
        return [
            max(u[i].item() for i in range(n) if abs(i - j) <= window) < threshold for j in range(n)
        ]

    return decide


def sentence_rule(threshold):
    """SENTEE."""
    return lambda layer, u: [max(u.tolist()) < threshold] * len(u)


def given_rule(exits):
    """Exits that were fixed beforehand."""
    return lambda layer, u: [e <= layer for e in exits]


def engine(module, pieces, criterion, **kwargs):
    """Run all units in one batch; results in the pieces' order of words."""
    units = np.argsort(np.diff(pieces.unit_starts), kind="stable")
    batch, out = run(module, pieces, units, criterion, list(module.offramps.classes), **kwargs)
    words = batch.pieces_word
    scores = torch.empty_like(out.scores)
    scores[torch.from_numpy(words)] = out.scores
    exits = np.empty(len(words), dtype=int)
    exits[words] = out.exit_layer
    macs = np.empty(len(units))
    macs[units] = out.macs
    states = None
    if out.states is not None:
        states = torch.empty_like(out.states)
        states[torch.from_numpy(batch.pieces_row)] = out.states
    return scores, exits, macs, states, (batch, out)


def reference(module, pieces, rule_of_unit, rules=None):
    """The same from the reference, unit by unit."""
    scores, exits, macs, states = [], [], [], []
    for u in range(pieces.n_units):
        rows = slice(*pieces.unit_starts[u : u + 2])
        words = slice(*pieces.word_starts[u : u + 2])
        row_word = pieces.row_word[rows]
        row_word = np.where(row_word >= 0, row_word - words.start, -1)
        result = run_unit(
            module,
            torch.from_numpy(pieces.ids[rows]),
            row_word,
            torch.from_numpy(pieces.word_row[words] - rows.start),
            module.offramps.slices,
            rule_of_unit(u),
            **(vars(rules) if rules else {}),
        )
        scores.append(result[0])
        exits.extend(result[1])
        states.append(result[2])
        macs.append(result[3])
    return torch.cat(scores), np.asarray(exits), np.asarray(macs, float), torch.cat(states)


def assert_equal(ours, theirs):
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(ours[1], theirs[1])
    np.testing.assert_allclose(ours[2], theirs[2])
    torch.testing.assert_close(ours[3], theirs[3], rtol=1e-9, atol=1e-9)
