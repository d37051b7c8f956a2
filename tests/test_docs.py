"""The pages: links lead somewhere, and code uses what people may import."""

import ast
import re
import shutil

import pytest
from conftest import ROOT
from weasel.cli.document import project_document

import spacy_earlyexit

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("assets/*/*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")


def page_id(page):
    return str(page.relative_to(ROOT))


def prose(page):
    """The text of a page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text("utf8"), flags=re.M | re.S)


def python_blocks(page):
    return re.findall(r"^```python\n(.*?)^```$", page.read_text("utf8"), re.M | re.S)


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_to_files_and_headings(page):
    for link in LINK.findall(prose(page)):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: there is no such file"
        if anchor:
            assert anchor in anchors(target), f"{link}: {path or 'the page'} has no such heading"


def test_links_are_found_and_missing_ones_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A heading, here\n\n[x](#a-heading-here) [y](other.md)\n```\n[z](no.md)\n```\n"
    )
    assert anchors(page) == {"a-heading-here"}
    assert LINK.findall(prose(page)) == ["#a-heading-here", "other.md"]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_code_imports_public_names_only(page):
    for block in python_blocks(page):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                "spacy_earlyexit"
            ):
                assert node.module == "spacy_earlyexit", f"{node.module} is internal"
                assert {name.name for name in node.names} <= set(spacy_earlyexit.__all__)


def test_every_page_of_docs_is_linked():
    linked = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in PAGES
        for link in LINK.findall(prose(page))
    }
    assert set(ROOT.glob("docs/*.md")) <= linked


def test_the_readme_has_the_commands_of_the_project(tmp_path):
    """`spacy project run readme` was run after the last change of project.yml."""
    page = tmp_path / "README.md"
    shutil.copy(ROOT / "README.md", page)
    project_document(ROOT, page)
    assert page.read_text("utf8") == (ROOT / "README.md").read_text("utf8")


def test_the_readmes_code_runs_as_it_stands(calibrated, tmp_path, monkeypatch, capsys):
    """In turns, in one session, with a pipeline where the README has one."""
    _, pipeline = calibrated
    folder = tmp_path / "training" / "sample" / "self_sampling"
    folder.mkdir(parents=True)
    (folder / "calibrated").symlink_to(pipeline)
    monkeypatch.chdir(tmp_path)
    session = {"path": pipeline}
    blocks = python_blocks(ROOT / "README.md")
    assert len(blocks) == 3
    for block in blocks:
        exec(block, session)
    out = capsys.readouterr().out
    assert "'2x'" in out and "Maria" in out
