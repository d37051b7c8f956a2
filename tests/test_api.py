"""docs/api.md is what the docstrings say."""

from conftest import ROOT, load_script


def test_the_page_is_up_to_date():
    script = load_script("api")
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf8")
    assert page == script.make_page(), "run: python scripts/api.py"
    for name in ("TokenExit", "calibrate", "earlyexit_transformer", "use"):
        assert f"### `{name}`" in page
