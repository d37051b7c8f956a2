import re
from pathlib import Path

import pytest
from conftest import SHARED, load_script
from typer import Typer
from typer.testing import CliRunner

script = load_script("prepare_ewt")

DATA = SHARED / "data" / "ewt"

# Line 1 of UD's dev: "z" comes before "a", since the order of documents is that of their ids.
TAGS_DEV = """\
# newdoc id = z
# sent_id = z-1
# newpar id = z-p1
# text = She's from Oslo.
1-2	She's	_	_	_	_	_	_	_	_
1	She	she	PRON	PRP	Case=Nom	4	nsubj	4:nsubj	_
2	's	be	AUX	VBZ	_	4	cop	4:cop	_
3	from	from	ADP	IN	_	4	case	4:case	_
3.1	Norway	Norway	PROPN	NNP	_	_	_	4:obl	_
4	Oslo	Oslo	PROPN	NNP	_	0	root	0:root	SpaceAfter=No|Typo=Yes
5	.	.	PUNCT	.	_	4	punct	4:punct	_

# sent_id = z-2
# text = Norwegians cant
1	Norwegians	Norwegian	PROPN	NNPS	_	2	nsubj	2:nsubj	_
2-3	cant	_	_	_	_	_	_	_	_
2	ca	can	AUX	MD	_	0	root	0:root	_
3	nt	not	PART	RB	_	2	advmod	2:advmod	_

# newdoc id = a
# sent_id = a-1
# text = Anna Lee, Norwegian
1	Anna	Anna	PROPN	NNP	_	0	root	0:root	_
2	Lee	Lee	PROPN	NNP	_	1	flat	1:flat	CorrectSpaceAfter=Yes|SpaceAfter=No
3	,	,	PUNCT	,	_	1	punct	1:punct	_
4	Norwegian	Norwegian	ADJ	JJ	_	1	amod	1:amod	_

# sent_id = a-2
# text = Yes
1	Yes	yes	INTJ	UH	_	0	root	0:root	_
"""

NAMES_DEV = """\
# newdoc id = a
# sent_id = a-1
# text = Anna Lee, Norwegian
1	Anna	B-PER	-	stephen
2	Lee	I-PER	-	stephen
3	,	O	-	-
4	Norwegian	B-OTH	-	stephen

# sent_id = z-1
1	She	O	-	-
2	's	B-O	-	stephen
3	from	O	-	-
4	Oslo	B-LOC	-	stephen
5	.	O	-	-

# sent_id = z-2
1	Norwegians	O	-	-
2	can	O	-	-
3	t	O	-	-

# sent_id = b-1
1	No	O	-	-
"""

TRAIN = """\
# newdoc id = a
# sent_id = a-1
# text = Anna Lee, Norwegian
1	Anna	Anna	PROPN	NNP	_	_	_	_	NE=B-PER
2	Lee	Lee	PROPN	NNP	_	_	_	_	NE=I-PER|SpaceAfter=No
3	,	,	PUNCT	,	_	_	_	_	_
4	Norwegian	Norwegian	ADJ	JJ	_	_	_	_	_

# newdoc id = z
# sent_id = z-1
# text = She's from Oslo.
1	She	she	PRON	PRP	_	_	_	_	_
2	's	be	AUX	VBZ	_	_	_	_	_
3	from	from	ADP	IN	_	_	_	_	_
4	Oslo	Oslo	PROPN	NNP	_	_	_	_	NE=B-LOC|SpaceAfter=No
5	.	.	PUNCT	.	_	_	_	_	_

"""

# Documents of UD's test, in no order; what is before the first of dev is train.
DOCUMENTS = {
    "weblog-1": "test",
    script.FIRST_OF_TEST: "test",
    "email-enronsent23_02": "dev",
    script.FIRST_OF_DEV: "dev",
    "email-enronsent21_02": "train",
    "answers-1": "train",
}


def tagged(document: str, number: int) -> str:
    return f"# sent_id = {document}-{number}\n# text = Hi\n1\tHi\thi\tINTJ\tUH" + "\t_" * 5 + "\n\n"


def named(document: str, number: int) -> str:
    return f"# sent_id = {document}-{number}\n1\tHi\tO\t-\t-\n\n"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    write(folder / script.TAGS["dev"], TAGS_DEV)
    write(folder / script.NAMES["dev"], NAMES_DEV)
    tags = [f"# newdoc id = {d}\n{tagged(d, 2)}{tagged(d, 1)}" for d in DOCUMENTS]
    names = [named(d, 1) + named(d, 2) for d in sorted(DOCUMENTS)]
    write(folder / script.TAGS["test"], "".join(tags))
    write(folder / script.NAMES["test"], "".join(names))
    return folder


def write(path: Path, content: str) -> None:
    path.write_text(content, encoding="utf-8", newline="\n")


def edit(path: Path, line: int, replacement: str) -> None:
    lines = path.read_text(encoding="utf-8").split("\n")
    lines[line - 1 : line] = [replacement]
    write(path, "\n".join(lines))


def run(*arguments: object) -> tuple[int, str]:
    """Exit code, and the output without its line breaks."""
    app = Typer()
    app.command()(script.prepare_cli)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in result.output
    return result.exit_code, " ".join(result.output.split())


def test_words_tags_and_names_are_joined(raw: Path, tmp_path: Path) -> None:
    notes = script.prepare(raw, tmp_path / "ewt")
    content = (tmp_path / "ewt" / "train.conllu").read_bytes().decode()
    assert content.startswith(TRAIN)
    tags, names = (raw / files["dev"] for files in (script.TAGS, script.NAMES))
    assert notes == [
        "left out: 1 sentences whose words are not the same in both corpora, the first "
        f"{tags}:13 and {names}:16",
        f"left out: 2 sentences that only one corpus has, the first {tags}:28",
        f"{tmp_path / 'ewt' / 'train.conllu'}: 6 sentences, 13 words",
        f"{tmp_path / 'ewt' / 'dev.conllu'}: 4 sentences, 4 words",
        f"{tmp_path / 'ewt' / 'test.conllu'}: 4 sentences, 4 words",
    ]


def test_documents_in_the_order_of_their_ids(raw: Path, tmp_path: Path) -> None:
    script.prepare(raw, tmp_path / "ewt")
    found = {
        part: re.findall(
            "^# (?:newdoc|sent_)id = (.*)$",
            (tmp_path / "ewt" / f"{part}.conllu").read_text(encoding="utf-8").replace(" id", "id"),
            flags=re.MULTILINE,
        )
        for part in script.PARTS
    }
    expected: dict[str, list[str]] = {"train": ["a", "a-1", "z", "z-1"], "dev": [], "test": []}
    for document, part in sorted(DOCUMENTS.items()):
        # Sentences stay in UD's order.
        expected[part] += [document, f"{document}-2", f"{document}-1"]
    assert found == expected


@pytest.mark.parametrize(
    ("files", "line", "replacement", "at", "problem"),
    [
        ("NAMES", 4, "1	Anna	B-PER", 4, "expected the 5 columns"),
        ("NAMES", 4, "2	Anna	B-PER	-	-", 4, "expected ID 1, found '2'"),
        ("NAMES", 4, "1	Anna	PER	-	-", 4, "expected a label"),
        ("NAMES", 4, "1	Anna	O	-	-", 5, "I-PER follows O"),
        ("NAMES", 2, "# sent = a-1", 1, "no sent_id"),
        ("NAMES", 9, "# sent_id = a-1", 9, "a second sentence with sent_id a-1"),
        ("TAGS", 2, "# sent = z-1", 1, "no sent_id"),
        ("TAGS", 13, "# sent_id = z-1", 13, "a second sentence with sent_id z-1"),
        ("TAGS", 1, "#", 1, "needs a newdoc id"),
        ("TAGS", 4, "#", 1, "no text"),
        ("TAGS", 6, "1	She", 6, "expected 10 columns"),
    ],
)
def test_errors_name_the_line(
    raw: Path, tmp_path: Path, files: str, line: int, replacement: str, at: int, problem: str
) -> None:
    path = raw / getattr(script, files)["dev"]
    edit(path, line, replacement)
    with pytest.raises(script.CorpusError, match=re.escape(problem)) as caught:
        script.prepare(raw, tmp_path / "ewt")
    assert str(caught.value).startswith(f"{path}:{at}: ")
    assert not (tmp_path / "ewt").exists()


def test_files_that_do_not_belong_together(raw: Path, tmp_path: Path) -> None:
    for files in (script.TAGS, script.NAMES):
        write(raw / files["test"], (raw / files["dev"]).read_text(encoding="utf-8"))
    code, out = run(raw, tmp_path / "ewt")
    assert code == 1 and "no sentence for dev.conllu" in out
    assert not (tmp_path / "ewt").exists()


def test_command_line(raw: Path, tmp_path: Path) -> None:
    code, out = run(raw, tmp_path / "ewt")
    assert code == 0
    assert "6 sentences, 13 words" in out and "EWT is in" in out
    assert sorted(path.name for path in (tmp_path / "ewt").iterdir()) == [
        "dev.conllu",
        "test.conllu",
        "train.conllu",
    ]


def test_a_mirror_is_copied(tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    (mirror / "ewt").mkdir(parents=True)
    for part in script.PARTS:
        (mirror / "ewt" / f"{part}.conllu").write_bytes(part.encode())
    code, out = run(tmp_path / "no assets", tmp_path / "ewt", "--mirror", mirror)
    assert code == 0 and "EWT is in" in out
    for part in script.PARTS:
        assert (tmp_path / "ewt" / f"{part}.conllu").read_bytes() == part.encode()


@pytest.mark.parametrize("missing", ["en_ewt-ud-test.iob2", "en_ewt-ud-dev.conllu"])
def test_a_missing_asset(raw: Path, tmp_path: Path, missing: str) -> None:
    (raw / missing).unlink()
    code, out = run(raw, tmp_path / "ewt")
    assert code == 1 and missing in out
    assert "project assets" in out and "--vars.mirror" in out
    assert not (tmp_path / "ewt").exists()


def test_an_incomplete_mirror(tmp_path: Path) -> None:
    (tmp_path / "ewt").mkdir()
    (tmp_path / "ewt" / "train.conllu").write_bytes(b"")
    code, out = run(tmp_path, tmp_path / "output", "--mirror", tmp_path)
    assert code == 1 and "dev.conllu" in out and "--vars.mirror" in out
    assert not (tmp_path / "output").exists()


def test_the_split_of_the_real_corpus(tmp_path: Path) -> None:
    """Taken apart into the files that it was made of, it comes out as it was."""
    if not DATA.is_dir():
        pytest.skip(f"the evaluation data is not here: {DATA}")
    expected = {part: (DATA / f"{part}.conllu").read_bytes() for part in script.PARTS}
    documents = re.split("(?=^# newdoc id)", b"".join(expected.values()).decode(), flags=re.M)[1:]
    # UD's dev ends where the documents begin anew in the order of their ids.
    ids = [document.partition("\n")[0] for document in documents]
    end = next(i for i in range(1, len(ids)) if ids[i] < ids[i - 1])
    raw = tmp_path / "raw"
    raw.mkdir()
    for source, part in (("dev", documents[:end]), ("test", documents[end:])):
        tags = "".join(part)
        names = re.sub(
            r"^([0-9]+\t[^\t]+)\t.*\t(.*)$",
            lambda row: f"{row[1]}\t{label_of(row[2])}\t-\t-",
            tags,
            flags=re.M,
        )
        # UD has another order.
        write(raw / script.TAGS[source], "".join(reversed(part)))
        write(raw / script.NAMES[source], names)
    assert len(script.prepare(raw, tmp_path / "ewt")) == 3
    for part, content in expected.items():
        assert (tmp_path / "ewt" / f"{part}.conllu").read_bytes() == content


def label_of(misc: str) -> str:
    match = re.match("NE=([^|]+)", misc)
    return match[1] if match else "O"
