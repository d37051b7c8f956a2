import re
from pathlib import Path

import pytest
import spacy
from conftest import SHARED, load_script
from spacy.tokens import Doc, DocBin
from typer.testing import CliRunner

DATA = SHARED / "data"


script = load_script("convert_iob")

SMALL = """\
# sent_id = 1
# text = Anna's in New York.
Anna\tB-PER
's\tO
in\tO
New\tB-LOC
York\tI-LOC
.\tO

Nothing\tO
here\tO


Bob\tB-PER
Ann\tB-PER
art\tB-creative-work
"""


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "in.iob"
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def read(path: Path) -> list[Doc]:
    return list(DocBin().from_disk(path).get_docs(spacy.blank("en").vocab))


def convert(folder: Path, content: str | bytes) -> list[Doc]:
    output = folder / "out.spacy"
    script.convert_iob(write(folder, content), output)
    return read(output)


def test_round_trip(tmp_path: Path) -> None:
    docs = convert(tmp_path, SMALL)
    assert [[(e.text, e.label_) for e in doc.ents] for doc in docs] == [
        [("Anna", "PER"), ("New York", "LOC")],
        [],
        [("Bob", "PER"), ("Ann", "PER"), ("art", "creative-work")],
    ]
    assert [doc.text for doc in docs] == ["Anna's in New York.", "Nothing here", "Bob Ann art"]
    for doc in docs:
        assert doc.has_annotation("ENT_IOB", require_complete=True)
        assert [word.is_sent_start for word in doc] == [True] + [False] * (len(doc) - 1)
        assert not doc.user_data


def test_last_sentence_needs_no_newline_and_lines_may_end_in_crlf(tmp_path: Path) -> None:
    docs = convert(tmp_path, b"\xef\xbb\xbfBob\tB-PER\r\n\r\n# text = a.\r\na\tO\r\n.\tO")
    assert [[word.text for word in doc] for doc in docs] == [["Bob"], ["a", "."]]
    assert docs[1].text == "a."


def test_words_that_look_like_comments(tmp_path: Path) -> None:
    docs = convert(tmp_path, "#\tO\n# text = x\tO\n#\tO\n#win\tB-x\n\n#a\tO\n# sent_id = 1\tO\n")
    assert [[word.text for word in doc] for doc in docs] == [
        ["#", "# text = x", "#", "#win"],
        ["#a", "# sent_id = 1"],
    ]


def test_only_newlines_end_a_line(tmp_path: Path) -> None:
    docs = convert(tmp_path, "a\u2028b\tO\n\x85c\tO\n")
    assert [[word.text for word in doc] for doc in docs] == [["a\u2028b", "\x85c"]]


def test_text_belongs_to_its_own_sentence(tmp_path: Path) -> None:
    docs = convert(tmp_path, "# text = ab c\na\tO\nb\tO\nc\tO\n\nd\tO\ne\tO\n")
    assert [doc.text for doc in docs] == ["ab c", "d e"]
    assert [[bool(word.whitespace_) for word in doc] for doc in docs] == [
        [False, True, False],
        [True, False],
    ]


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        ("a\tO\n\nb\tO\nc\n", 4, "found 1 column"),
        ("a\tO\nb\tX\tO\n", 2, "found 3 column"),
        ("a\tO\n# text = b\n", 2, "found 1 column"),
        ("# title\na\tO\n", 1, "found 1 column"),
        ("a\tO\n\tO\n", 2, "word is empty"),
        ("a\tO\n\u3000\tO\n", 2, "word is empty"),
        ("a\tO\nb\tPER\n", 2, "'PER'"),
        ("a\tO\nb\tB-\n", 2, "'B-'"),
        ("a\tO\nb\tL-PER\n", 2, "'L-PER'"),
        ("a\tO\nb\t\n", 2, "''"),
        ("a\tO\nb\tI-PER\n", 2, "follows O"),
        ("a\tB-LOC\nb\tI-PER\n", 2, "follows B-LOC"),
        ("a\tB-PER\n\nb\tI-PER\n", 3, "follows O"),
        (b"a\tO\n\nb\xff\tO\n", 3, "not UTF-8"),
        ("", 1, "no sentence"),
        ("\n\n# sent_id = 1\n", 1, "no sentence"),
        ("# text = a b\na\tO\nx\tO\n", 3, "'x' does not match the text of line 1"),
        ("# text = a\na\tO\nb\tO\n", 3, "'b' does not match"),
        ("\n# text = a b\na\tO\n", 2, "words end before the text"),
        ("# text = a\n\na\tO\n", 1, "no words follow"),
    ],
)
def test_errors_name_the_line(
    tmp_path: Path, content: str | bytes, line: int, problem: str
) -> None:
    path = write(tmp_path, content)
    with pytest.raises(script.CorpusError, match=re.escape(problem)) as caught:
        script.convert_iob(path, tmp_path / "out.spacy")
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_run_leaves_the_old_output(tmp_path: Path) -> None:
    output = tmp_path / "out.spacy"
    convert(tmp_path, SMALL)
    before = output.read_bytes()
    with pytest.raises(script.CorpusError):
        convert(tmp_path, SMALL + "\nbad line\n")
    assert output.read_bytes() == before


def test_a_failing_rename_leaves_the_old_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.spacy"
    convert(tmp_path, SMALL)
    before = output.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", str(output))

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="No space"):
        convert(tmp_path, "a\tO\n")
    assert output.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.iob", "out.spacy"]


def test_cli(tmp_path: Path) -> None:
    output = tmp_path / "new" / "folder" / "out.spacy"
    result = CliRunner().invoke(script.app, [str(write(tmp_path, SMALL)), str(output)])
    assert result.exit_code == 0, result.output
    line = "3 sentences, 11 words, 5 entities (LOC 1, PER 3, creative-work 1)"
    assert result.output.strip().endswith(line)
    assert result.output.count("\n") == 1
    assert len(read(output)) == 3


def test_sentences_joined_to_documents(tmp_path: Path) -> None:
    output = tmp_path / "out.spacy"
    args = [str(write(tmp_path, SMALL)), str(output), "--words", "8"]
    result = CliRunner().invoke(script.app, args)
    assert result.output.strip().startswith(f"{output}: 2 documents, 3 sentences, 11 words")
    docs = read(output)
    assert [doc.text.strip() for doc in docs] == ["Anna's in New York. Nothing here", "Bob Ann art"]
    assert [[sent.text for sent in doc.sents] for doc in docs] == [
        ["Anna's in New York.", "Nothing here"],
        ["Bob Ann art"],
    ]
    sentences = [ent.label_ for doc in convert(tmp_path, SMALL) for ent in doc.ents]
    assert [ent.label_ for doc in docs for ent in doc.ents] == sentences
    script.convert_iob(tmp_path / "in.iob", output, max_words=1)
    assert len(read(output)) == 3  # a sentence is never cut


@pytest.mark.parametrize(
    ("content", "options", "problem"),
    [
        (None, [], "in.iob: No such file or directory"),
        ("a\tO\nb\n", [], "in.iob:2: expected word<TAB>label"),
        ("a\tO\n", ["--lang", "nonsense"], "nonsense"),
    ],
)
def test_cli_fails_without_a_traceback(
    tmp_path: Path, content: str | None, options: list[str], problem: str
) -> None:
    path = tmp_path / "in.iob"
    if content is not None:
        write(tmp_path, content)
    output = tmp_path / "new" / "out.spacy"
    result = CliRunner().invoke(script.app, [str(path), str(output), *options])
    assert result.exit_code == 1
    # wasabi folds its messages at 80 characters.
    assert problem in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not output.parent.exists()


@pytest.mark.parametrize(
    ("name", "lang", "sentences", "words"),
    [
        ("wnut17/train", "en", 3394, 62730),
        ("wnut17/dev", "en", 1009, 15733),
        ("wnut17/test", "en", 1287, 23394),
        ("gsd_zh/train", "zh", 3997, 98616),
        ("gsd_zh/dev", "zh", 500, 12663),
        ("gsd_zh/test", "zh", 500, 12012),
    ],
)
def test_real_data(tmp_path: Path, name: str, lang: str, sentences: int, words: int) -> None:
    path = DATA / f"{name}.iob"
    if not path.exists():
        pytest.skip(f"the evaluation data is not here: {path}")
    output = tmp_path / "out.spacy"
    script.convert_iob(path, output, lang)
    docs = read(output)
    assert len(docs) == sentences
    assert sum(map(len, docs)) == words
    source = path.read_text(encoding="utf-8")
    assert sum(len(doc.ents) for doc in docs) == source.count("\tB-")
    rows = [
        f"{w.text}\t{w.ent_iob_}{'-' * bool(w.ent_type_)}{w.ent_type_}" for d in docs for w in d
    ]
    assert rows == [line for line in source.split("\n") if "\t" in line]
    texts = re.findall("^# text = (.*)$", source, flags=re.MULTILINE)
    if texts:
        assert [doc.text for doc in docs] == texts
