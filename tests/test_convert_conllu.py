import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import spacy
from conftest import ROOT, SHARED, load_script
from spacy.tokens import Doc, DocBin
from spacy.training import Corpus
from spacy.training.converters import conllu_to_docs
from typer.testing import CliRunner

SAMPLE = ROOT / "assets" / "sample"
DATA = SHARED / "data" / "ewt"
PARTS = ("train", "dev", "test")


script = load_script("convert_conllu")


def row(id_: int | str, form: str, upos: str = "_", xpos: str = "_", misc: str = "_") -> str:
    return "\t".join([str(id_), form, "_", upos, xpos, "_", "_", "_", "_", misc])


SMALL = [
    "# newdoc id = a",
    "# sent_id = a-1",
    "# text = Anna Lee left.",
    row(1, "Anna", "PROPN", "NNP", "NE=B-PER"),  # 4
    row(2, "Lee", "PROPN", "NNP", "NE=I-PER"),
    row(3, "left", "VERB", "VBD", "SpaceAfter=No"),  # 6
    row(4, ".", "PUNCT", "."),
    "",
    "# text = Nobody knew",
    row(1, "Nobody", "PRON", "NN"),  # 10
    row(2, "knew", "VERB", "VBD"),
    "",
    "# newdoc",
    "# text = I don't.",
    row(1, "I", "PRON", "PRP"),  # 15
    row("2-3", "don't", misc="SpaceAfter=No"),
    row(2, "do", "AUX", "VBP"),
    row(3, "n't", "PART", "RB"),
    row("3.1", "know", "VERB", "VB"),
    row(4, ".", "PUNCT", "."),  # 20
    "",
]


def write(folder: Path, content: list[str] | bytes) -> Path:
    path = folder / "in.conllu"
    path.write_bytes(content if isinstance(content, bytes) else "\n".join(content).encode() + b"\n")
    return path


def read(path: Path) -> list[Doc]:
    return list(DocBin().from_disk(path).get_docs(spacy.blank("en").vocab))


def convert(folder: Path, content: list[str] | bytes, by_document: bool = False) -> list[Doc]:
    output = folder / "out.spacy"
    script.convert_conllu(write(folder, content), output, by_document=by_document)
    return read(output)


def entities(doc: Doc) -> list[tuple[int, int, str]]:
    return [(ent.start, ent.end, ent.label_) for ent in doc.ents]


def test_round_trip(tmp_path: Path) -> None:
    docs = convert(tmp_path, SMALL)
    assert [doc.text for doc in docs] == ["Anna Lee left.", "Nobody knew", "I don't."]
    assert [[word.text for word in doc] for doc in docs] == [
        ["Anna", "Lee", "left", "."],
        ["Nobody", "knew"],
        ["I", "do", "n't", "."],
    ]
    assert [word.pos_ for word in docs[2]] == ["PRON", "AUX", "PART", "PUNCT"]
    assert [word.tag_ for word in docs[2]] == ["PRP", "VBP", "RB", "."]
    assert [entities(doc) for doc in docs] == [[(0, 2, "PER")], [], []]
    for doc in docs:
        for name in ("POS", "TAG", "ENT_IOB", "SENT_START"):
            assert doc.has_annotation(name, require_complete=True)
        for name in ("LEMMA", "MORPH", "DEP", "HEAD"):
            assert not doc.has_annotation(name)
        assert not doc.user_data
        assert len(list(doc.sents)) == 1


def test_documents(tmp_path: Path) -> None:
    docs = convert(tmp_path, SMALL, by_document=True)
    assert [doc.text for doc in docs] == ["Anna Lee left. Nobody knew", "I don't."]
    assert [sent.text for sent in docs[0].sents] == ["Anna Lee left.", "Nobody knew"]
    assert docs[0].has_annotation("SENT_START", require_complete=True)
    assert entities(docs[0]) == [(0, 2, "PER")]
    assert not docs[0].user_data
    nlp = spacy.blank("en")
    examples = list(Corpus(tmp_path / "out.spacy", gold_preproc=True)(nlp))
    assert [eg.reference.text.strip() for eg in examples] == [
        "Anna Lee left.",
        "Nobody knew",
        "I don't.",
    ]


def test_a_document_may_go_on_without_a_space(tmp_path: Path) -> None:
    lines = ["# newdoc", "# text = a", row(1, "a", misc="SpaceAfter=No"), "", row(1, "b")]
    assert [doc.text for doc in convert(tmp_path, lines, by_document=True)] == ["ab"]


def test_names_of_two_sentences_do_not_become_one(tmp_path: Path) -> None:
    lines = ["# newdoc", row(1, "A", misc="NE=B-x"), "", row(1, "B", misc="NE=B-x")]
    (doc,) = convert(tmp_path, lines, by_document=True)
    assert entities(doc) == [(0, 1, "x"), (1, 2, "x")]


def test_what_is_not_annotated(tmp_path: Path) -> None:
    for doc in convert(tmp_path, [row(1, "a"), row(2, "b"), "", row(1, "c")]):
        for name in ("POS", "TAG", "ENT_IOB", "ENT_TYPE"):
            assert not doc.has_annotation(name)


def test_what_is_annotated_in_part(tmp_path: Path) -> None:
    lines = [row(1, "a", "NOUN"), row(2, "b", "_", "NN"), "", row(1, "c", misc="NE=O")]
    docs = convert(tmp_path, lines)
    assert [word.pos_ for word in docs[0]] == ["NOUN", ""]
    assert [word.tag_ for word in docs[0]] == ["", "NN"]
    assert all(doc.has_annotation("ENT_IOB", require_complete=True) for doc in docs)
    assert not docs[1].has_annotation("POS")


def test_neighbouring_names_and_other_keys_in_misc(tmp_path: Path) -> None:
    lines = [
        row(1, "a", misc="Gloss=NE|NE=B-x-y|SpaceAfter=No"),
        row(2, "b", misc="NE=B-x-y"),
        row(3, "c", misc="SNE=B-z"),
    ]
    (doc,) = convert(tmp_path, lines)
    assert entities(doc) == [(0, 1, "x-y"), (1, 2, "x-y")]
    assert doc.text == "ab c"


def test_multiword_tokens_that_are_not_spelt_like_their_words(tmp_path: Path) -> None:
    lines = [
        "# text = Komm zum Haus!",
        row("0.1", "_"),
        row(1, "Komm"),
        row("2-3", "zum", misc="NE=B-ignored"),
        row(2, "zu", misc="SpaceAfter=No"),
        row(3, "dem"),
        row("4-5", "Haus!"),
        row(4, "Haus"),
        row("4.1", "_"),
        row("4.2", "_"),
        row(5, "!"),
    ]
    (doc,) = convert(tmp_path, lines)
    assert doc.text == "Komm zu dem Haus!"
    assert not doc.has_annotation("ENT_IOB")


def test_dropped_multiword_tokens(tmp_path: Path) -> None:
    # The rows 1-2 and their SpaceAfter=No are gone; the text still has it right.
    lines = ["# text = don't!", row(1, "do"), row(2, "n't"), row(3, "!")]
    converted = script.convert_conllu(write(tmp_path, lines), tmp_path / "out.spacy")
    assert [doc.text for doc in converted.docs] == ["don't!"]
    assert converted.joined == 2


def test_words_keep_their_form(tmp_path: Path) -> None:
    forms = ["1 000", "#", "_", "A\u0308", "\ufb01n", "-LRB-", "a\u2028b", "\u200b"]
    lines = ["# text = " + " ".join(forms), *(row(i, form) for i, form in enumerate(forms, 1))]
    (doc,) = convert(tmp_path, lines)
    assert [word.text for word in doc] == forms


def test_windows_line_ends_and_missing_or_spare_blank_lines(tmp_path: Path) -> None:
    content = "\r\n".join(["\ufeff# text = a", row(1, "a"), "", "", "", row(1, "b")])
    docs = convert(tmp_path, content.encode())
    assert [doc.text for doc in docs] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "replacement", "at", "problem"),
    [
        (6, ["3\tleft\tVERB"], 6, "expected 10 columns, found 3"),
        (6, [row(3, "left") + "\t_"], 6, "expected 10 columns, found 11"),
        (6, ["# note", row(3, "left")], 6, "expected 10 columns, found 1"),
        (8, [], 8, "expected 10 columns, found 1"),
        (6, [row(3, "")], 6, "FORM is empty"),
        (6, [row(3, "left", "")], 6, "UPOS is empty"),
        (6, [row(3, "left ")], 6, "FORM begins or ends with a space"),
        (6, [], 6, "expected ID 3, found '4'"),
        (6, [row(4, "left")], 6, "expected ID 3, found '4'"),
        (6, [row("03", "left")], 6, "expected ID 3, found '03'"),
        (6, [row("x", "left")], 6, "expected ID 3, found 'x'"),
        (4, [row(0, "Anna")], 4, "expected ID 1, found '0'"),
        (19, [row("2.1", "know")], 19, "expected ID 4, found '2.1'"),
        (19, [row("3.2", "know")], 19, "expected ID 4, found '3.2'"),
        (16, [row("3-4", "don't")], 16, "expected ID 2, found '3-4'"),
        (16, [row("2-2", "don't")], 16, "expected ID 2, found '2-2'"),
        (16, [row("2-1", "don't")], 16, "expected ID 2, found '2-1'"),
        (18, [row("3-4", "n't.")], 18, "expected ID 3, found '3-4'"),
        (16, [row("2-3", "don't")] * 2, 17, "expected ID 2, found '2-3'"),
        (16, [row("2-9", "don't")], 16, "ends with word 9, but the sentence with 4"),
        (6, [row(3, "left", "VERBS")], 6, "UPOS 'VERBS'"),
        (6, [row(3, "left", "SPACE")], 6, "UPOS 'SPACE'"),
        (6, [row(3, "left", misc="NE=PER")], 6, "found 'PER'"),
        (6, [row(3, "left", misc="NE=U-PER")], 6, "found 'U-PER'"),
        (6, [row(3, "left", misc="NE=")], 6, "found ''"),
        (6, [row(3, "left", misc="NE=I-LOC")], 6, "I-LOC follows I-PER"),
        (10, [row(1, "Nobody", misc="NE=I-PER")], 10, "I-PER follows O"),
        (18, [row(3, "n't", misc="NE=I-PER")], 18, "I-PER follows O"),
        (6, [row(3, "left", misc="NE=B-x|NE=B-y")], 6, "more than one NE"),
        (3, ["# text = Anna Lee left ."], 6, "a space follows 'left'"),
        (3, ["# text = Anna lee left."], 5, "'Lee' does not match the text of line 3"),
        (3, ["# text = Anna Lee left"], 7, "'.' does not match"),
        (3, ["# text = Anna Lee left. So"], 3, "words end before the text, at 'So'"),
        (14, ["# text = I do n't."], 16, '"don\'t" does not match the text of line 14'),
        (9, ["# sent_id = b", ""], 9, "no words follow"),
        (12, ["", "# newdoc", row("0.1", "x"), ""], 14, "no words follow"),
    ],
)
def test_errors_name_the_line(
    tmp_path: Path, line: int, replacement: list[str], at: int, problem: str
) -> None:
    content = list(SMALL)
    content[line - 1 : line] = replacement
    path = write(tmp_path, content)
    with pytest.raises(script.CorpusError, match=re.escape(problem)) as caught:
        script.convert_conllu(path, tmp_path / "out.spacy")
    assert str(caught.value).startswith(f"{path}:{at}: ")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "at", "problem"),
    [
        (b"", 1, "no sentence"),
        (b"\n\n", 1, "no sentence"),
        (b"# newdoc\n", 1, "no words follow"),
        (row(1, "a").encode() + b"\n\n# \xff\n", 3, "not UTF-8"),
    ],
)
def test_errors_of_whole_files(tmp_path: Path, content: bytes, at: int, problem: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(script.CorpusError, match=re.escape(problem)) as caught:
        script.convert_conllu(path, tmp_path / "out.spacy")
    assert str(caught.value).startswith(f"{path}:{at}: ")
    assert list(tmp_path.iterdir()) == [path]


def test_documents_need_a_newdoc(tmp_path: Path) -> None:
    path = write(tmp_path, ["", "# newdocs", row(1, "a"), "", "# newdoc", row(1, "b")])
    with pytest.raises(script.CorpusError, match="no # newdoc") as caught:
        script.convert_conllu(path, tmp_path / "out.spacy", by_document=True)
    assert str(caught.value).startswith(f"{path}:2: ")


def test_a_failing_run_leaves_the_old_output(tmp_path: Path) -> None:
    output = tmp_path / "out.spacy"
    convert(tmp_path, SMALL)
    before = output.read_bytes()
    with pytest.raises(script.CorpusError):
        convert(tmp_path, [*SMALL, "bad line"])
    assert output.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.conllu", "out.spacy"]


@pytest.mark.parametrize(
    ("content", "options", "line"),
    [
        (
            SMALL,
            [],
            "3 documents, 3 sentences, 10 words, 6 UPOS tags, 7 XPOS tags, 1 entities (PER 1)",
        ),
        (
            SMALL,
            ["--docs"],
            "2 documents, 3 sentences, 10 words, 6 UPOS tags, 7 XPOS tags, 1 entities (PER 1)",
        ),
        (
            ["# text = ab", row(1, "a"), row(2, "b")],
            ["--lang", "xx"],
            "1 documents, 1 sentences, 2 words, 0 UPOS tags, 0 XPOS tags, entities not annotated; "
            "1 spaces left out that # text does not have",
        ),
    ],
)
def test_cli(tmp_path: Path, content: list[str], options: list[str], line: str) -> None:
    output = tmp_path / "new" / "folder" / "out.spacy"
    arguments = [str(write(tmp_path, content)), str(output), *options]
    result = CliRunner().invoke(script.app, arguments)
    assert result.exit_code == 0, result.output
    assert result.output == f"{output}: {line}\n"
    assert len(read(output)) == int(line.split()[0])


@pytest.mark.parametrize(
    ("content", "options", "problem"),
    [
        (None, [], "in.conllu: No such file or directory"),
        ([row(1, "a"), row(3, "b")], [], "in.conllu:2: expected ID 2"),
        ([row(1, "a")], ["--docs"], "in.conllu:1: no # newdoc"),
        ([row(1, "a")], ["--lang", "nonsense"], "nonsense"),
    ],
)
def test_cli_fails_without_a_traceback(
    tmp_path: Path, content: list[str] | None, options: list[str], problem: str
) -> None:
    path = tmp_path / "in.conllu" if content is None else write(tmp_path, content)
    output = tmp_path / "new" / "out.spacy"
    result = CliRunner().invoke(script.app, [str(path), str(output), *options])
    assert result.exit_code == 1
    # wasabi folds its messages at 80 characters.
    assert problem in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not output.parent.exists()


def test_it_runs_as_a_script(tmp_path: Path) -> None:
    output = tmp_path / "out.spacy"
    arguments = [str(SAMPLE / "dev.conllu"), str(output), "--docs"]
    command = [sys.executable, "scripts/convert_conllu.py", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == (
        f"{output}: 20 documents, 113 sentences, 1403 words, 17 UPOS tags, 0 XPOS tags, "
        "124 entities (EVENT 18, LOC 43, ORG 16, PERSON 27, PRODUCT 20)\n"
    )


@pytest.mark.parametrize("part", PARTS)
def test_sample(tmp_path: Path, part: str) -> None:
    counts = load_script("check_sample").check_sample(SAMPLE)[part]
    output = tmp_path / "out.spacy"
    joined = script.convert_conllu(SAMPLE / f"{part}.conllu", output, by_document=True).joined
    docs = read(output)
    assert joined == 0
    assert len(docs) == counts.documents
    assert sum(len(list(doc.sents)) for doc in docs) == counts.sentences
    assert sum(map(len, docs)) == counts.words
    assert Counter(ent.label_ for doc in docs for ent in doc.ents) == counts.names
    for doc in docs:
        assert doc.has_annotation("POS", require_complete=True)
        assert not doc.has_annotation("TAG")


@pytest.mark.parametrize(
    ("part", "documents", "sentences", "words", "joined"),
    [
        ("train", 394, 2729, 33396, 516),
        ("dev", 32, 475, 4803, 62),
        ("test", 208, 868, 11952, 147),
    ],
)
def test_real_data(
    tmp_path: Path, part: str, documents: int, sentences: int, words: int, joined: int
) -> None:
    path = DATA / f"{part}.conllu"
    if not path.exists():
        pytest.skip(f"the evaluation data is not here: {path}")
    output = tmp_path / "out.spacy"
    assert script.convert_conllu(path, output).joined == joined
    docs = read(output)
    assert len(docs) == sentences
    assert sum(map(len, docs)) == words
    source = path.read_text(encoding="utf-8")
    # One text has a no-break space.
    texts = re.findall("^# text = (.*)$", source.replace("\xa0", " "), flags=re.MULTILINE)
    multiword = [bool(re.search(r"^\d+-", b, re.MULTILINE)) for b in source.split("\n\n")]
    for doc, text, has_multiword in zip(docs, texts, multiword, strict=False):
        assert has_multiword or doc.text == text
    rows = [line.split("\t") for line in source.split("\n") if re.match(r"\d+\t", line)]
    assert [[w.text, w.pos_, w.tag_] for doc in docs for w in doc] == [
        [form, upos, xpos] for _, form, _, upos, xpos, *_ in rows
    ]
    labels = [re.search(r"NE=([^|]+)", columns[9]) for columns in rows]
    assert [f"{w.ent_iob_}-{w.ent_type_}" if w.ent_type_ else "" for d in docs for w in d] == [
        match[1] if match else "" for match in labels
    ]
    for doc in docs:
        for name in ("POS", "TAG", "ENT_IOB", "SENT_START"):
            assert doc.has_annotation(name, require_complete=True)

    script.convert_conllu(path, output, by_document=True)
    whole = read(output)
    assert len(whole) == documents
    assert [[w.text for w in sent] for doc in whole for sent in doc.sents] == [
        [w.text for w in doc] for doc in docs
    ]


@pytest.mark.parametrize("part", PARTS)
def test_the_same_as_spacy_convert(tmp_path: Path, part: str) -> None:
    path = DATA / f"{part}.conllu"
    if not path.exists():
        pytest.skip(f"the evaluation data is not here: {path}")
    source = "\n\n".join(path.read_text(encoding="utf-8").split("\n\n")[:200]) + "\n\n"
    ours = convert(tmp_path, source.encode())
    theirs = list(conllu_to_docs(source, n_sents=1, no_print=True))
    assert len(ours) == len(theirs) == 200
    for own, other in zip(ours, theirs, strict=True):
        for attribute in ("text", "pos_", "tag_", "ent_iob_", "ent_type_"):
            assert [getattr(w, attribute) for w in own] == [getattr(w, attribute) for w in other]
    assert sum(len(doc.ents) for doc in ours) > 10
