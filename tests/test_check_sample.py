import re
from pathlib import Path

import pytest
from conftest import ROOT, load_script
from typer.testing import CliRunner

SAMPLE = ROOT / "assets" / "sample"


script = load_script("check_sample")


def row(number: int | str, form: str, upos: str, misc: str = "_") -> str:
    return "\t".join([str(number), form, "_", upos, "_", "_", "_", "_", "_", misc])


def document(name: str, person: str, place: str, verb: str = "slept") -> list[str]:
    """Lines 1 to 15, if the file begins with it."""
    return [
        f"# newdoc id = {name}",
        f"# sent_id = {name}-1",
        f"# text = {person} Lee left New {place}.",
        row(1, person, "PROPN", "NE=B-PERSON"),
        row(2, "Lee", "PROPN", "NE=I-PERSON"),
        row(3, "left", "VERB"),
        row(4, "New", "PROPN", "NE=B-LOC"),
        row(5, place, "PROPN", "NE=I-LOC|SpaceAfter=No"),
        row(6, ".", "PUNCT"),
        "",
        f"# sent_id = {name}-2",
        f"# text = {place} {verb}",
        row(1, place, "PROPN", "NE=B-LOC"),
        row(2, verb, "VERB"),
        "",
    ]


SMALL = {
    "train": document("news-01", "Ann", "York") + document("chat-01", "Bob", "Delhi"),
    "dev": document("news-02", "Cem", "Ulm"),
    "test": document("chat-02", "Dee", "Bonn"),
}


def write(folder: Path, lines: dict[str, list[str]]) -> Path:
    for part, content in lines.items():
        (folder / f"{part}.conllu").write_text("\n".join(content) + "\n", encoding="utf-8")
    return folder


def write_broken(folder: Path, part: str, line: int, replacement: list[str]) -> Path:
    """Put `replacement` in the place of one line."""
    content = list(SMALL[part])
    content[line - 1 : line] = replacement
    return write(folder, {**SMALL, part: content})


@pytest.fixture
def few_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "MIN_SENTENCES", 8)


def test_the_real_corpus() -> None:
    counts = script.check_sample(SAMPLE)
    assert list(counts) == ["train", "dev", "test"]
    assert sum(c.sentences for c in counts.values()) >= 600
    for c in counts.values():
        assert all(c.names[type_] > 0 for type_ in script.TYPES)
    assert counts["train"].unseen is None
    assert counts["dev"].unseen > 0.5 and counts["test"].unseen > 0.5


def test_the_real_corpus_has_every_genre_in_every_part_in_fair_shares() -> None:
    genres = {}
    for part in script.PARTS:
        sents = script.read_part(SAMPLE / f"{part}.conllu", {})
        genres[part] = {sent.document.split("-")[0] for sent in sents}
    assert genres["train"] == genres["dev"] == genres["test"]
    sizes = {part: c.sentences for part, c in script.check_sample(SAMPLE).items()}
    total = sum(sizes.values())
    assert 0.65 < sizes["train"] / total < 0.75
    assert all(0.1 < sizes[part] / total < 0.2 for part in ("dev", "test"))


def test_the_readme_states_the_counts_as_printed() -> None:
    printed = CliRunner().invoke(script.app, [str(SAMPLE)]).stdout.strip()
    readme = (SAMPLE / "README.md").read_text(encoding="utf-8")
    assert [line.rstrip() for line in printed.splitlines()] == [
        line.rstrip() for line in readme.split("```text\n")[1].split("```")[0].splitlines()
    ]


def test_counts(tmp_path: Path, few_will_do: None) -> None:
    counts = script.check_sample(write(tmp_path, SMALL))
    assert counts["train"][:3] == (2, 4, 16)
    assert counts["dev"][:3] == (1, 2, 8)
    assert counts["train"].names == {"PERSON": 2, "LOC": 4}
    assert counts["dev"].unseen == counts["test"].unseen == 1


def test_a_name_is_known_whatever_its_case_and_type(tmp_path: Path, few_will_do: None) -> None:
    lines = {**SMALL, "dev": document("news-02", "ANN", "Ulm")}
    lines["test"] = [
        line.replace("LOC", "ORG") for line in document("chat-02", "Dee", "york", "woke")
    ]
    counts = script.check_sample(write(tmp_path, lines))
    assert counts["dev"].unseen == pytest.approx(2 / 3)  # not Ann Lee
    assert counts["test"].unseen == pytest.approx(1 / 3)  # only Dee Lee


def test_a_part_without_names_has_no_share(tmp_path: Path, few_will_do: None) -> None:
    nameless = [re.sub(r"NE=[BI]-[A-Z]+\|?", "", line) for line in SMALL["dev"]]
    lines = {**SMALL, "dev": [re.sub(r"\t$", "\t_", line) for line in nameless]}
    assert script.check_sample(write(tmp_path, lines))["dev"].unseen is None


@pytest.mark.parametrize(
    ("line", "replacement", "at", "problem"),
    [
        (6, [row(3, "left", "VERB") + "\t_"], 6, "expected 10 columns, found 11"),
        (6, ["3\tleft\tVERB"], 6, "expected 10 columns, found 3"),
        (6, [row(4, "left", "VERB")], 6, "expected ID 3, found '4'"),
        (6, [], 6, "expected ID 3, found '4'"),
        (6, [row("2.1", "has", "AUX"), row(3, "left", "VERB")], 6, "must be a word, not '2.1'"),
        (4, [row("1-2", "Ann", "X"), row(1, "Ann", "X")], 4, "must be a word, not '1-2'"),
        (6, [row(3, "", "VERB")], 6, "FORM is empty"),
        (6, [row(3, "le ft", "VERB")], 6, "FORM is empty or has a space"),
        (6, [row(3, "left", "V")], 6, "UPOS 'V'"),
        (6, [row(3, "left", "_")], 6, "UPOS '_'"),
        (6, [row(3, "left", "VERB").replace("_", "leave", 1)], 6, "LEMMA must be _, not 'leave'"),
        (6, [row(3, "left", "VERB", "")], 6, "MISC"),
        (6, [row(3, "left", "VERB", "SpaceAfter=No|NE=B-LOC")], 6, "MISC"),
        (6, [row(3, "left", "VERB", "Typo=Yes")], 6, "MISC"),
        (6, [row(3, "left", "VERB", "NE=O")], 6, "not 'O'"),
        (6, [row(3, "left", "VERB", "NE=B-PER")], 6, "not 'B-PER'"),
        (6, [row(3, "left", "VERB", "NE=U-LOC")], 6, "not 'U-LOC'"),
        (6, [row(3, "left", "VERB", "NE=I-LOC")], 6, "I-LOC follows I-PERSON"),
        (7, [row(4, "New", "PROPN", "NE=I-LOC")], 7, "I-LOC follows O"),
        (4, [row(1, "Ann", "PROPN", "NE=I-PERSON")], 4, "I-PERSON follows O"),
        (8, [row(5, "York", "PROPN", "NE=I-LOC")], 3, "make up 'Ann Lee left New York .'"),
        (3, ["# text = Ann Lee left  New York."], 3, "make up 'Ann Lee left New York.'"),
        (3, [], 1, "with newdoc id, sent_id"),
        (2, [], 1, "with newdoc id, text"),
        (1, [], 1, "first sentence needs a newdoc id"),
        (1, ["# newdoc id = News 1"], 1, "not 'News 1'"),
        (1, ["# newdoc id = news-01", "# newdoc id = news-01"], 2, "unexpected comment"),
        (1, ["# source = me"], 1, "unexpected comment '# source = me'"),
        (2, ["# sent_id = news-01-2"], 2, "expected sent_id news-01-1, found 'news-01-2'"),
        (11, ["# sent_id = news-01-1"], 11, "expected sent_id news-01-2, found 'news-01-1'"),
        (11, ["# sent_id = news-01-3"], 11, "expected sent_id news-01-2"),
        (11, ["# newdoc id = news-09", "# sent_id = news-09-1"], 1, "news-01 has only one"),
        (11, ["# newdoc id = news-01", "# sent_id = news-01-1"], 11, "'news-01' is already in"),
        (10, [], 10, "expected 10 columns, found 1"),
        (10, ["", ""], 11, "a blank line without a sentence"),
        (10, ["", "# sent_id = news-01-2", "# text = a", ""], 12, "no words follow"),
        (15, ["", "# text = a", ""], 16, "with text"),
        (30, ["x"], 30, "no blank line after the last sentence"),
    ],
)
def test_errors_name_the_line(
    tmp_path: Path,
    few_will_do: None,
    line: int,
    replacement: list[str],
    at: int,
    problem: str,
) -> None:
    folder = write_broken(tmp_path, "train", line, replacement)
    with pytest.raises(script.CorpusError, match=re.escape(problem)) as caught:
        script.check_sample(folder)
    assert str(caught.value).startswith(f"{folder / 'train.conllu'}:{at}: ")


@pytest.mark.parametrize(
    ("content", "at", "problem"),
    [
        (b"", 1, "a blank line without a sentence"),
        (b"# newdoc id = news-01\n", 1, "no blank line after the last sentence"),
        (b"# newdoc id = news-01\n# sent_id = \xff\n", 2, "not UTF-8"),
        (b"\xef\xbb\xbf# newdoc id = news-01\n\n", 1, "this one with none"),
        (b"# newdoc id = news-01\r\n\r\n\n", 1, "this one with newdoc id"),
    ],
)
def test_errors_of_whole_files(tmp_path: Path, content: bytes, at: int, problem: str) -> None:
    write(tmp_path, SMALL)
    path = tmp_path / "dev.conllu"
    path.write_bytes(content)
    with pytest.raises(script.CorpusError, match=re.escape(problem)) as caught:
        script.check_sample(tmp_path)
    assert str(caught.value).startswith(f"{path}:{at}: ")


def test_a_sentence_may_not_appear_twice(tmp_path: Path, few_will_do: None) -> None:
    lines = {**SMALL, "test": document("chat-02", "Bob", "DELHI")}
    with pytest.raises(script.CorpusError) as caught:
        script.check_sample(write(tmp_path, lines))
    assert str(caught.value) == (
        f"{tmp_path / 'test.conllu'}:3: 'bob lee left new delhi.' "
        f"is already in {tmp_path / 'train.conllu'}:18"
    )


def test_a_document_may_not_be_in_two_parts(tmp_path: Path, few_will_do: None) -> None:
    lines = {**SMALL, "dev": document("chat-01", "Cem", "Ulm")}
    with pytest.raises(script.CorpusError) as caught:
        script.check_sample(write(tmp_path, lines))
    assert str(caught.value) == (
        f"{tmp_path / 'dev.conllu'}:1: 'chat-01' is already in {tmp_path / 'train.conllu'}:16"
    )


def test_a_last_document_of_one_sentence(tmp_path: Path, few_will_do: None) -> None:
    lines = {**SMALL, "dev": SMALL["dev"][:10]}
    with pytest.raises(script.CorpusError, match="news-02 has only one sentence") as caught:
        script.check_sample(write(tmp_path, lines))
    assert str(caught.value).startswith(f"{tmp_path / 'dev.conllu'}:1: ")


def test_too_few_sentences(tmp_path: Path) -> None:
    with pytest.raises(script.CorpusError, match="after 8 sentences, it needs 600") as caught:
        script.check_sample(write(tmp_path, SMALL))
    assert str(caught.value).startswith(f"{tmp_path / 'test.conllu'}:11: ")


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    result = runner.invoke(script.app, [str(SAMPLE)])
    assert result.exit_code == 0
    for word in (*script.PARTS, *script.TYPES, "all", "not in train"):
        assert word in result.stdout

    write_broken(tmp_path, "dev", 6, [row(3, "left", "VERB", "NE=I-ORG")])
    result = runner.invoke(script.app, ["."])
    assert result.exit_code == 1
    assert "dev.conllu:6: I-ORG follows I-PERSON" in result.stdout

    (tmp_path / "dev.conllu").unlink()
    result = runner.invoke(script.app, ["."])
    assert result.exit_code == 1
    assert "dev.conllu: No such file or directory" in result.stdout
