import re
from pathlib import Path

import pytest
from conftest import SHARED, load_script
from typer import Typer
from typer.testing import CliRunner

script = load_script("prepare_gsd_zh")

DATA = SHARED / "data" / "gsd_zh"

RAW = """\
# newdoc id = batch-0000
# sent_id = batch-0000-0001
# text = 瑪氏中斷Game 2。
1	瑪氏	B-ORG	-	shuheng
2	中斷	O	-	-
3	Game	B-OTH	-	shuheng
4	2	I-OTH	-	shuheng
5	。	O	-	-

# sent_id = batch-0000-0002
# text = 拍照
1	拍照	O	-	-
"""

READY = """\
# sent_id = batch-0000-0001
# text = 瑪氏中斷Game 2。
瑪氏	B-ORG
中斷	O
Game	O
2	O
。	O

# sent_id = batch-0000-0002
# text = 拍照
拍照	O
"""


def write(path: Path, content: str) -> None:
    path.write_text(content, encoding="utf-8", newline="\n")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    for name in script.RAW.values():
        write(folder / name, RAW)
    return folder


def run(*arguments: object) -> tuple[int, str]:
    """Exit code, and the output without its line breaks."""
    app = Typer()
    app.command()(script.prepare_cli)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in result.output
    return result.exit_code, " ".join(result.output.split())


def test_words_names_and_text(raw: Path, tmp_path: Path) -> None:
    """Other kinds of names than PER, ORG and LOC are no names."""
    output = tmp_path / "gsd_zh"
    code, out = run(raw, output)
    assert code == 0 and "Chinese GSD is in" in out
    assert "train.iob: 2 sentences" in out
    for part in script.PARTS:
        assert (output / f"{part}.iob").read_bytes().decode() == READY


@pytest.mark.parametrize(
    ("old", "new", "line", "problem"),
    [
        ("# text = 拍照\n", "", 10, "the sentence has no text"),
        ("2\t中斷\tO\t-\t-", "2\t中斷\tO", 5, "expected the 5 columns"),
        ("0002", "0001", 10, "a second sentence with sent_id batch-0000-0001"),
        ("B-OTH", "O", 7, "I-OTH follows O"),
    ],
)
def test_errors_name_the_line(
    raw: Path, tmp_path: Path, old: str, new: str, line: int, problem: str
) -> None:
    path = raw / script.RAW["dev"]
    write(path, RAW.replace(old, new))
    with pytest.raises(script.CorpusError, match=re.escape(problem)) as caught:
        script.prepare(raw, tmp_path / "gsd_zh")
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert not (tmp_path / "gsd_zh").exists()


def test_missing_files(raw: Path, tmp_path: Path) -> None:
    (raw / script.RAW["test"]).unlink()
    for arguments in ((raw,), (raw, "--mirror", tmp_path)):
        code, out = run(arguments[0], tmp_path / "output", *arguments[1:])
        assert code == 1
        assert "project assets" in out and "--vars.mirror FOLDER, which holds gsd_zh/" in out
    assert not (tmp_path / "output").exists()


def test_a_mirror_is_copied(tmp_path: Path) -> None:
    (tmp_path / "gsd_zh").mkdir()
    for part in script.PARTS:
        (tmp_path / "gsd_zh" / f"{part}.iob").write_bytes(part.encode())
    code, _ = run(tmp_path / "no assets", tmp_path / "output", "--mirror", tmp_path)
    assert code == 0
    for part in script.PARTS:
        assert (tmp_path / "output" / f"{part}.iob").read_bytes() == part.encode()


def test_the_real_corpus(tmp_path: Path) -> None:
    """Taken apart into the files that it was made of, it comes out as it was."""
    if not DATA.is_dir():
        pytest.skip(f"the evaluation data is not here: {DATA}")
    raw = tmp_path / "raw"
    raw.mkdir()
    for part, name in script.RAW.items():
        lines: list[str] = []
        number = 0
        for line in (DATA / f"{part}.iob").read_text(encoding="utf-8").split("\n"):
            number = number + 1 if "\t" in line else 0
            lines.append(f"{number}\t{line}\t-\t-" if number else line)
        write(raw / name, "\n".join(lines))
    script.prepare(raw, tmp_path / "gsd_zh")
    for part in script.PARTS:
        expected = (DATA / f"{part}.iob").read_bytes()
        assert (tmp_path / "gsd_zh" / f"{part}.iob").read_bytes() == expected
