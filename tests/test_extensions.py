"""doc._.exit_layers and friends: one true number per current token, whatever happened since."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from textwrap import dedent

import numpy as np
import pytest
import torch
from conftest import make_encoder, make_nlp
from pipelines import initialized
from spacy.tokens import Doc, DocBin, Token
from spacy.training import Example
from spacy.util import registry

from spacy_earlyexit.model.architecture import module_of
from spacy_earlyexit.model.criteria import FixedExit, TokenExit
from spacy_earlyexit.pipeline import extensions
from spacy_earlyexit.pipeline.exits import find_exits
from spacy_earlyexit.pipeline.extensions import word_record

TEXT = "Anna Smith lives in New York ."
N_LAYERS = 4


@registry.misc("test_staircase.v1")
class Staircase:
    """Words leave at layers 1, 2, 3, 4, 1, 2, … in the order of their unit."""

    def checks(self, layer):
        return True

    def halts(self, n_layers):
        return True

    def __call__(self, layer, uncertainty, words):
        unit = words.word_unit
        first = torch.searchsorted(unit, torch.arange(words.n_units))
        position = torch.arange(len(unit)) - first[unit]
        return position % N_LAYERS + 1 <= layer

    def to_config(self):
        return {"@misc": "test_staircase.v1"}

    def validate(self, n_layers):
        assert n_layers == N_LAYERS


@pytest.fixture(scope="module")
def stairs(encoder):
    """A pipeline whose exits are known beforehand."""
    nlp = make_nlp(encoder)
    nlp.get_pipe("transformer").exit = Staircase()
    return nlp


def split(doc, i, first):
    """Split token i behind its first characters."""
    text = doc[i].text
    with doc.retokenize() as retokenizer:
        heads = [(doc[i], 1), doc[i].head if doc[i].head.i != i else (doc[i], 1)]
        retokenizer.split(doc[i], [text[:first], text[first:]], heads=heads)


def merge(doc, start, end):
    with doc.retokenize() as retokenizer:
        retokenizer.merge(doc[start:end])


def run_script(tmp_path, source, *args):
    """Run a script in a fresh process; it prints JSON in its last line."""
    path = tmp_path / "script.py"
    path.write_text(dedent(source), encoding="utf8")
    # in a session of its own, so that workers that hang end with it
    process = subprocess.Popen(
        [sys.executable, str(path), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, err
    return json.loads(out.strip().splitlines()[-1])


# --- one number per token ------------------------------------------------------------------


def test_one_layer_per_token(stairs):
    assert stairs(TEXT)._.exit_layers == [1, 2, 3, 4, 1, 2, 3]


def test_whitespace_is_zero_and_left_out_of_means(stairs):
    doc = stairs("Anna  lives \n in York")
    assert [t.is_space for t in doc] == [False, True, False, True, False, False]
    assert doc._.exit_layers == [1, 0, 2, 0, 3, 4]
    assert doc._.exit_stats["mean_depth"] == pytest.approx((1 + 2 + 3 + 4) / 4)
    scores = stairs.evaluate([Example(stairs.make_doc(doc.text), doc)])
    assert scores["exit_layer_mean"] == pytest.approx((1 + 2 + 3 + 4) / 4)


def test_docs_never_encoded_are_zero(stairs):
    doc = stairs.make_doc(TEXT)
    assert doc._.exit_layers == [0] * 7
    assert doc[1]._.exit_layer == 0 and doc[1:3]._.exit_layer == 0
    nothing = {"mean_depth": 0.0, "macs": 0.0, "macs_full": 0.0, "speedup": 1.0}
    assert doc._.exit_stats == nothing
    assert np.isnan(word_record(doc, "uncertainty")).tolist() == [True] * 7


@pytest.mark.parametrize("text", ["", "  ", "\n\n\t"])
def test_docs_without_words(stairs, text):
    doc = stairs(text)
    assert doc._.exit_layers == [0] * len(doc)
    assert doc._.exit_stats["speedup"] == 1.0


def test_token_and_span(stairs):
    doc = stairs(TEXT)
    assert [t._.exit_layer for t in doc] == [1, 2, 3, 4, 1, 2, 3]
    assert doc[0:2]._.exit_layer == 2
    assert doc[2:6]._.exit_layer == 4, "the deepest"
    assert doc[4:5]._.exit_layer == 1
    assert doc[2:2]._.exit_layer == 0, "nothing in it"


# --- tokens that change afterwards ---------------------------------------------------------


def test_merged_tokens_have_the_deepest(stairs):
    doc = stairs(TEXT)
    merge(doc, 0, 2)
    assert doc._.exit_layers == [2, 3, 4, 1, 2, 3]
    merge(doc, 1, 4)
    assert doc._.exit_layers == [2, 4, 2, 3]
    assert [t._.exit_layer for t in doc] == doc._.exit_layers


def test_merging_with_whitespace(stairs):
    doc = stairs("Anna  lives \n in York")
    merge(doc, 0, 2)
    merge(doc, 1, 4)
    assert doc._.exit_layers == [1, 3, 4]


def test_split_tokens_inherit(stairs):
    doc = stairs(TEXT)
    split(doc, 1, 2)
    assert [t.text for t in doc][:4] == ["Anna", "Sm", "ith", "lives"]
    assert doc._.exit_layers == [1, 2, 2, 3, 4, 1, 2, 3]
    split(doc, 0, 1)
    assert doc._.exit_layers == [1, 1, 2, 2, 3, 4, 1, 2, 3]


def test_split_and_merged_across_old_borders(stairs):
    """New York -> N|ew York: the second token has parts of two words."""
    doc = stairs(TEXT)
    split(doc, 4, 1)
    merge(doc, 5, 7)
    assert doc[5].text == "ew York"
    assert doc._.exit_layers == [1, 2, 3, 4, 1, 2, 3]
    assert doc[5]._.exit_layer == 2


def test_retokenising_leaves_the_stats(stairs):
    doc = stairs(TEXT)
    before = doc._.exit_stats
    merge(doc, 0, 4)
    after = doc._.exit_stats
    assert doc._.exit_layers == [4, 1, 2, 3]
    assert after["mean_depth"] == pytest.approx((4 + 1 + 2 + 3) / 4)
    assert (after["macs"], after["macs_full"]) == (before["macs"], before["macs_full"])


# --- Docs that are stored, copied, cut and joined ------------------------------------------


def through_bytes(doc):
    return Doc(doc.vocab).from_bytes(doc.to_bytes())


def through_docbin(doc):
    stored = DocBin(docs=[doc], store_user_data=True).to_bytes()
    return next(DocBin(store_user_data=True).from_bytes(stored).get_docs(doc.vocab))


def through_dict(doc):
    return Doc(doc.vocab).from_dict(doc.to_dict())


@pytest.mark.parametrize("way", [through_bytes, through_docbin, through_dict, Doc.copy])
def test_stored_and_copied(stairs, way):
    doc = stairs("Anna  Smith lives in New York .")
    merge(doc, 0, 3)
    other = way(doc)
    assert other is not doc
    assert other._.exit_layers == doc._.exit_layers == [2, 3, 4, 1, 2, 3]
    assert other._.exit_stats == doc._.exit_stats
    merge(other, 1, 3)
    split(other, 0, 4)
    assert other._.exit_layers == [1, 2, 4, 1, 2, 3]
    assert doc._.exit_layers == [2, 3, 4, 1, 2, 3], "the first one is left alone"


def test_a_copy_has_its_own_record(stairs):
    doc = stairs(TEXT)
    other = doc.copy()
    with stairs.get_pipe("transformer").use(FixedExit(1)):
        stairs(other)
    assert other._.exit_layers == [1] * 7
    assert doc._.exit_layers == [1, 2, 3, 4, 1, 2, 3]


def test_docbin_without_user_data_says_never_encoded(stairs):
    doc = stairs(TEXT)
    (other,) = DocBin().from_bytes(DocBin(docs=[doc]).to_bytes()).get_docs(doc.vocab)
    assert other._.exit_layers == [0] * 7


@pytest.mark.parametrize("start,end", [(0, 2), (2, 6), (5, 7), (0, 7)])
def test_span_as_doc(stairs, start, end):
    doc = stairs(TEXT)
    part = doc[start:end].as_doc(copy_user_data=True)
    assert part._.exit_layers == [1, 2, 3, 4, 1, 2, 3][start:end]
    assert part[0]._.exit_layer == doc[start]._.exit_layer
    assert part[:]._.exit_layer == doc[start:end]._.exit_layer
    # a unit is computed as a whole, so its cost can't be told apart
    assert part._.exit_stats["speedup"] == doc._.exit_stats["speedup"]


def test_span_as_doc_of_a_part_of_a_part(stairs):
    part = stairs(TEXT)[1:6].as_doc(copy_user_data=True)[1:3].as_doc(copy_user_data=True)
    assert part.text.strip() == "lives in"
    assert part._.exit_layers == [3, 4]


def test_joined_docs(stairs):
    docs = [stairs("Anna Smith lives"), stairs.make_doc("never seen"), stairs("in New York .")]
    doc = Doc.from_docs(docs)
    assert doc._.exit_layers == [1, 2, 3, 0, 0, 1, 2, 3, 4]
    for key in ("macs", "macs_full"):
        assert doc._.exit_stats[key] == sum(d._.exit_stats[key] for d in docs)
    merge(doc, 2, 6)
    assert doc._.exit_layers == [1, 2, 3, 2, 3, 4]
    assert through_bytes(doc)._.exit_layers == [1, 2, 3, 2, 3, 4]


def test_the_pipeline_again_leaves_nothing_stale(stairs):
    doc = stairs(TEXT)
    size = len(doc.user_data)
    with stairs.get_pipe("transformer").use(FixedExit(3)):
        stairs(doc)
    assert doc._.exit_layers == [3] * 7
    assert len(doc.user_data) == size
    joined = Doc.from_docs([stairs("Anna Smith"), stairs("lives in New York .")])
    assert joined._.exit_layers == [1, 2, 1, 2, 3, 4, 1]
    with stairs.get_pipe("transformer").use(FixedExit(1)):
        stairs(joined)
    assert joined._.exit_layers == [1] * 7
    assert len(joined.user_data) == size


def test_the_pipeline_again_after_merging(stairs):
    doc = stairs(TEXT)
    merge(doc, 0, 3)
    stairs(doc)
    assert doc._.exit_layers == [1, 2, 3, 4, 1]
    assert doc._.exit_stats["speedup"] > 1


def test_underscore_in_json(stairs):
    """What exporters ask for."""
    exported = stairs(TEXT).to_json(underscore=["exit_layers", "exit_stats"])["_"]
    assert json.loads(json.dumps(exported))["exit_layers"] == [1, 2, 3, 4, 1, 2, 3]


# --- cost ----------------------------------------------------------------------------------


def test_stats_keys_and_consistency(stairs):
    stats = stairs(TEXT)._.exit_stats
    assert set(stats) == {"mean_depth", "macs", "macs_full", "speedup"}
    assert stats["speedup"] == stats["macs_full"] / stats["macs"]
    assert stats["mean_depth"] == pytest.approx(np.mean([1, 2, 3, 4, 1, 2, 3]))


def test_stats_at_full_depth_and_at_layer_one(stairs):
    transformer = stairs.get_pipe("transformer")
    with transformer.use("full"):
        full = stairs(TEXT)._.exit_stats
    with transformer.use(FixedExit(1)):
        first = stairs(TEXT)._.exit_stats
    assert (full["speedup"], full["mean_depth"]) == (1.0, N_LAYERS)
    assert first["mean_depth"] == 1
    assert first["macs_full"] == full["macs_full"]
    # a quarter of the layers, one off-ramp
    assert 3.5 < first["speedup"] <= N_LAYERS
    assert first["macs"] < stairs(TEXT)._.exit_stats["macs"] < full["macs"]


# --- what else can be recorded -------------------------------------------------------------


def test_nothing_else_is_stored_by_default(stairs):
    doc = stairs(TEXT)
    for field in ("uncertainty", "confidence"):
        with pytest.raises(
            ValueError, match=f"'{field}' was not recorded .* nothing. Put .*record"
        ):
            word_record(doc, field)
    assert len(doc.user_data) == 1


def test_what_was_not_recorded_is_an_error_that_says_what_was(encoder):
    doc = make_nlp(encoder, record=["confidence"])(TEXT)
    with pytest.raises(ValueError, match="'uncertainty' was not .*; recorded was: confidence"):
        word_record(doc, "uncertainty")
    with pytest.raises(ValueError, match="'confidense' is nothing .*: uncertainty, confidence"):
        word_record(doc, "confidense")
    assert np.isnan(word_record(Doc(doc.vocab, words=["\n"]), "confidence")).all()


def test_record_uncertainty_and_confidence(encoder):
    nlp = make_nlp(encoder, record=["uncertainty", "confidence"])
    doc = nlp("Anna  Smith lives")
    doubt, sure = word_record(doc, "uncertainty"), word_record(doc, "confidence")
    words = [0, 2, 3]
    n_classes = 5  # O, and B and I of two labels
    assert doubt.shape == sure.shape == (4,)
    assert np.isnan([doubt[1], sure[1]]).all(), "whitespace"
    assert all(0 < doubt[i] < 1 and 1 / n_classes < sure[i] < 1 for i in words)
    stored = through_bytes(doc)
    np.testing.assert_array_equal(word_record(stored, "confidence"), sure)
    merge(doc, 0, 3)
    assert word_record(doc, "uncertainty").tolist() == [max(doubt[0], doubt[2]), doubt[3]]
    assert word_record(doc, "confidence").tolist() == [min(sure[0], sure[2]), sure[3]]


def test_confidence_is_tempered(encoder):
    """By the temperature of the layer at which the word left, as its uncertainty is."""
    nlp = make_nlp(encoder, record=["confidence"])
    transformer = nlp.get_pipe("transformer")
    transformer.exit = Staircase()
    temperature = module_of(transformer.model).offramps.temperature
    with torch.no_grad():
        temperature[:, 0] = torch.tensor([0.5, 1.0, 2.0, 8.0])
    doc = transformer(nlp.make_doc(TEXT))
    scores = torch.from_numpy(find_exits(doc).scores)
    layers = torch.tensor(doc._.exit_layers)
    expected = (scores / temperature[layers - 1, :1]).softmax(1).amax(1)
    np.testing.assert_allclose(word_record(doc, "confidence"), expected, rtol=1e-5)


def test_nothing_is_known_without_tasks(encoder):
    """Of a pipeline without off-ramps: neither certain nor uncertain."""
    nlp = initialized(
        encoder,
        components=(),
        tasks=[],
        exit={"@misc": "spacy-earlyexit.FixedExit.v1", "layer": 2},
        record=["uncertainty", "confidence"],
    )
    doc = nlp(TEXT)
    assert doc._.exit_layers == [2] * 7
    for field in ("uncertainty", "confidence"):
        assert np.isnan(word_record(doc, field)).all()


# --- looking for one token -----------------------------------------------------------------


class Counting(dict):
    """Counts how often all of its keys are read."""

    reads = 0

    def __iter__(self):
        self.reads += 1
        return super().__iter__()

    def items(self):
        self.reads += 1
        return super().items()


def test_a_tokens_layer_is_found_without_reading_all_keys(stairs):
    """With many values of other extensions on the Doc."""
    Token.set_extension("test_other", default=None, force=True)
    doc = stairs(" ".join(["Anna"] * 50))
    for token in doc:
        token._.test_other = 1
    doc.user_data = Counting(doc.user_data)
    assert [token._.exit_layer for token in doc] == doc._.exit_layers == ([1, 2, 3, 4] * 13)[:50]
    assert doc.user_data.reads <= 1


def test_what_changes_in_user_data_is_noticed(stairs):
    doc, other = stairs(TEXT), stairs("New York is nice")
    key, data = next(iter(doc.user_data.items()))
    assert doc[1]._.exit_layer == 2
    del doc.user_data[key]
    assert doc[1]._.exit_layer == 0
    doc.user_data[key] = data
    assert doc[1]._.exit_layer == 2
    del doc.user_data[key]
    doc.user_data["other"] = 1  # as many as before
    assert doc[1]._.exit_layer == 0
    doc.user_data = {key: data}
    assert doc[1]._.exit_layer == 2
    with stairs.get_pipe("transformer").use("full"):
        stairs(doc)
    assert [token._.exit_layer for token in doc] == [N_LAYERS] * 7
    joined = Doc.from_docs([doc, other, doc])
    assert [token._.exit_layer for token in joined] == [4] * 7 + [1, 2, 3, 4] + [4] * 7
    assert joined._.exit_layers == [token._.exit_layer for token in joined]
    part = joined[6:10].as_doc(copy_user_data=True)
    assert [token._.exit_layer for token in part] == part._.exit_layers


def test_a_tokens_layer_reads_few_of_many_records(stairs, monkeypatch):
    """In a Doc that was joined of many."""
    joined = Doc.from_docs([stairs(TEXT)] * 40)
    assert joined[100]._.exit_layer
    seen = []
    overlapping = extensions._overlapping
    monkeypatch.setattr(
        extensions, "_overlapping", lambda *args: seen.append(1) or overlapping(*args)
    )
    assert [token._.exit_layer for token in joined] == [1, 2, 3, 4, 1, 2, 3] * 40
    assert len(seen) == len(joined)


def test_recorded_uncertainty_rules_the_exit(encoder):
    """At layer 1: who is below the threshold leaves, who is above stays."""
    nlp = make_nlp(encoder, record=["uncertainty"])
    transformer = nlp.get_pipe("transformer")
    with transformer.use(FixedExit(1)):
        doubt = word_record(nlp(TEXT), "uncertainty")
    threshold = float(np.median(doubt))
    with transformer.use(TokenExit([threshold, 0.0, 0.0, 0.0], 0)):
        layers = nlp(TEXT)._.exit_layers
    assert layers == [1 if d < threshold else N_LAYERS for d in doubt]
    assert set(layers) == {1, N_LAYERS}


# --- long documents ------------------------------------------------------------------------


def test_strided_spans(encoder):
    """A token that lies in two units counts where it has more context."""
    spans = {"@span_getters": "spacy-transformers.strided_spans.v1", "window": 4, "stride": 2}
    nlp = make_nlp(encoder, model={"get_spans": spans})
    nlp.get_pipe("transformer").exit = Staircase()
    doc = nlp("Bob met Anna in Paris and New York")
    #     units: 1   2   3   4
    #                    1   2   3   4
    #                            1   2   3   4
    assert doc._.exit_layers == [1, 2, 3, 2, 3, 2, 3, 4]
    parts = [nlp(text)._.exit_stats for text in ("Bob met Anna in", "Anna in Paris and")]
    parts.append(nlp("Paris and New York")._.exit_stats)
    assert doc._.exit_stats["macs"] == sum(p["macs"] for p in parts)
    assert doc._.exit_stats["macs_full"] == sum(p["macs_full"] for p in parts)
    tail = doc[6:8].as_doc(copy_user_data=True)
    assert tail._.exit_layers == [3, 4]
    assert tail._.exit_stats["macs"] == parts[2]["macs"]


@registry.span_getters("test_last_first.v1")
def last_first():
    """Spans in another order than the text: the second half, then the first."""
    return lambda docs: [[doc[len(doc) // 2 :], doc[: len(doc) // 2]] for doc in docs]


def test_spans_in_another_order_than_the_text(encoder):
    nlp = make_nlp(encoder, model={"get_spans": {"@span_getters": "test_last_first.v1"}})
    transformer = nlp.get_pipe("transformer")
    transformer.exit = Staircase()
    doc = transformer(nlp.make_doc("Bob met Anna in Paris and New York"))
    assert doc._.exit_layers == [1, 2, 3, 4, 1, 2, 3, 4]
    assert doc[0]._.exit_layer == 1 and doc[2:4]._.exit_layer == 4
    assert find_exits(doc).tokens.tolist() == list(range(8))
    halves = [nlp.make_doc(text) for text in ("Bob met Anna in", "Paris and New York")]
    plain = make_nlp(encoder).get_pipe("transformer")
    plain.exit = Staircase()
    expected = plain.predict(halves).scores
    np.testing.assert_allclose(find_exits(doc).scores, expected, rtol=1e-4, atol=1e-5)


def test_document_beyond_the_positions(stairs):
    """40 words of 4 to 5 pieces, 64 positions."""
    text = " ".join(["Paris", "Bonn"] * 20)
    doc = stairs(text)
    layers = doc._.exit_layers
    assert len(layers) == 40
    assert set(layers) == {1, 2, 3, 4}
    assert layers[:4] == [1, 2, 3, 4]
    stats = doc._.exit_stats
    part = doc[:1].as_doc(copy_user_data=True)._.exit_stats
    assert part["macs_full"] < stats["macs_full"] / 2, "the first of several units"
    with stairs.get_pipe("transformer").use(FixedExit(2)):
        assert stairs(text)._.exit_layers == [2] * 40
    with stairs.get_pipe("transformer").use("full"):
        assert stairs(text)._.exit_stats["speedup"] == 1.0


def test_one_word_beyond_the_positions(stairs):
    doc = stairs("Anna " + "x" * 200 + " lives")
    assert [layer > 0 for layer in doc._.exit_layers] == [True] * 3


# --- several processes ---------------------------------------------------------------------

SEVERAL = """
import json, multiprocessing, sys

def main(method, path):
    multiprocessing.set_start_method(method)
    import spacy, torch
    torch.set_num_threads(4)
    nlp = spacy.load(path)
    texts = [f"Anna Smith lives in {c} York . " * 12 for c in "abcdefgh"]

    def layers(**kwargs):
        return [
            [d._.exit_layers, d._.exit_stats, [e.text for e in d.ents]]
            for d in nlp.pipe(texts, batch_size=2, **kwargs)
        ]

    fresh = layers(n_process=2) if method == "fork" else None
    torch.ones(1000, 1000).exp()  # surely starts torch's threads
    own = layers()
    after = layers(n_process=2)
    with nlp.get_pipe("transformer").use("full"):
        full = layers(n_process=2) if method == "fork" else None
    print(json.dumps({"fresh": fresh, "own": own, "after": after, "full": full}))

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_several_processes(tmp_path, method):
    """Also after the parent's own threads have started, which hangs forked torch."""
    encoder = make_encoder(tmp_path / "encoder", hidden_size=128, intermediate_size=512)
    nlp = make_nlp(str(encoder), record=["uncertainty"])
    transformer = nlp.get_pipe("transformer")
    with transformer.use(FixedExit(1)):
        doubt = word_record(nlp("Anna Smith lives in a York . " * 12), "uncertainty")
    transformer.exit = TokenExit(float(np.median(doubt)), 0)
    nlp.to_disk(tmp_path / "pipeline")
    found = run_script(tmp_path, SEVERAL, method, tmp_path / "pipeline")
    assert len(found["own"]) == 8
    assert any(len(set(layers)) > 1 for layers, _, _ in found["own"]), "words of several depths"
    assert found["after"] == found["own"]
    if method == "fork":
        assert found["fresh"] == found["own"]
        assert [set(layers) for layers, _, _ in found["full"]] == [{N_LAYERS}] * 8


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_worker_has_one_thread_and_no_warning(tmp_path):
    """The tokenizer has no threads, of which the tokenizers library would warn after a fork."""
    script = """
    import json, os, sys
    import torch
    from spacy_earlyexit.pipeline.forks import one_thread_in_forks
    from spacy_earlyexit.model.pieces import PieceTokenizer
    from transformers import AutoTokenizer

    one_thread_in_forks()
    tokenizer = PieceTokenizer.from_transformers(AutoTokenizer.from_pretrained(sys.argv[1]), "tiny")
    os.environ.pop("TOKENIZERS_PARALLELISM", None)
    os.dup2(1, 2)
    torch.set_num_threads(2)

    def encode():
        return [part.tolist() for part in tokenizer.encode(["Anna", "Berlin"] * 999, [True] * 1998)]

    own = encode()
    there, here = os.pipe()
    if not os.fork():
        os.close(there)
        with os.fdopen(here, "w") as file:
            json.dump([encode(), torch.get_num_threads()], file)
        os._exit(0)
    os.close(here)
    with os.fdopen(there) as file:
        found = json.load(file)
    os.wait()
    print(json.dumps([found == [own, 1], torch.get_num_threads()]))
    """
    encoder = make_encoder(tmp_path / "encoder")
    code = tmp_path / "script.py"
    code.write_text(dedent(script), encoding="utf8")
    done = subprocess.run(
        [sys.executable, str(code), str(encoder)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "fork" not in done.stdout + done.stderr
    assert json.loads(done.stdout.strip().splitlines()[-1]) == [True, 2]


# --- the registry --------------------------------------------------------------------------


def test_importing_registers_nothing_and_installing_reads_docbins(stairs, tmp_path):
    docs = [stairs(TEXT), stairs("New York")]
    DocBin(docs=docs, store_user_data=True).to_disk(tmp_path / "docs.spacy")
    script = """
    import json, sys, warnings
    import spacy
    from spacy.tokens import Doc, DocBin, Span, Token
    import spacy_earlyexit

    names = lambda: [
        [owner.__name__, attr]
        for owner, attrs in ((Doc, ["exit_layers", "exit_stats"]), (Token, ["exit_layer"]),
                             (Span, ["exit_layer"]))
        for attr in attrs if owner.has_extension(attr)
    ]
    before = names()
    warnings.simplefilter("error")
    spacy_earlyexit.install_extensions()
    spacy_earlyexit.install_extensions()
    docs = DocBin().from_disk(sys.argv[1]).get_docs(spacy.blank("en").vocab)
    print(json.dumps([before, names(), [d._.exit_layers for d in docs]]))
    """
    before, after, layers = run_script(tmp_path, script, tmp_path / "docs.spacy")
    assert before == []
    assert len(after) == 4
    assert layers == [[1, 2, 3, 4, 1, 2, 3], [1, 2]]


def test_somebody_elses_extension_is_left_alone(tmp_path):
    script = """
    import json, warnings
    import spacy
    from spacy.tokens import Doc, Token
    import spacy_earlyexit

    Doc.set_extension("exit_layers", default="theirs")
    Token.set_extension("exit_layer", getter=lambda token: "theirs")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        spacy_earlyexit.install_extensions()
    doc = spacy.blank("en")("a b")
    print(json.dumps([
        [str(w.message) for w in caught],
        doc._.exit_layers, doc[0]._.exit_layer, doc._.exit_stats["speedup"],
    ]))
    """
    messages, on_doc, on_token, speedup = run_script(tmp_path, script)
    assert len(messages) == 2
    assert "doc._.exit_layers" in messages[0] and "token._.exit_layer" in messages[1]
    assert (on_doc, on_token) == ("theirs", "theirs")
    assert speedup == 1.0, "the free name is taken"
