"""Jinja2 templates that escape what is put into them."""

from functools import lru_cache

import jinja2

INK, GREY, HALTED, ACCENT = "#1f2328", "#59636e", "#eceff2", "#8250df"
FONTS = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"


@lru_cache
def template(name: str) -> jinja2.Template:
    """RETURNS (jinja2.Template): One of the folder `templates`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("spacy_earlyexit.visuals"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals |= {
        "ink": INK,
        "grey": GREY,
        "halted": HALTED,
        "accent": ACCENT,
        "fonts": FONTS,
    }
    return environment.get_template(name)
