"""Where words leave, as HTML in the manner of displaCy."""

from collections.abc import Iterable

import spacy.util
from spacy.displacy import get_doc_settings
from spacy.tokens import Doc

from ..errors import Errors
from .markup import template
from .words import RAMP, WHITE_FROM, chunks, color_number, read_words, shown_depth, summary


def depth_html(
    docs: Doc | Iterable[Doc],
    n_layers: int | None = None,
    *,
    page: bool = False,
    jupyter: bool | None = None,
) -> str | None:
    """Where words leave, as running text whose words are coloured by their exit layer.

    docs (Union[Doc, Iterable[Doc]]): One document or several, which then share their colours.
    n_layers (Optional[int]): As for depth_text; None: the deepest exit layer in all of them.
    page (bool): Return a full HTML page, not just its content.
    jupyter (Optional[bool]): Show it in the notebook. None: if this is run in one.
    RETURNS (Optional[str]): The markup, also well-formed as XML; None if it was shown.
    RAISES (ValueError): As for depth_text.
    """
    docs = [docs] if isinstance(docs, Doc) else list(docs)
    for doc in docs:
        if not isinstance(doc, Doc):
            expected = "a Doc or an iterable of Docs"
            raise ValueError(Errors.E018.format(setting="docs", expected=expected, value=doc))
    read = [read_words(doc) for doc in docs]
    depth = shown_depth(n_layers, [word for words in read for word in words])
    numbers = [color_number(layer, depth) for layer in range(1, depth + 1)]
    settings = [get_doc_settings(doc) for doc in docs]
    html = template("depth.html").render(
        docs=[
            {
                "lang": own["lang"],
                "direction": own["direction"],
                "chunks": [[words[i] for i in chunk] for chunk in chunks(words)],
                "summary": summary(doc, words, n_layers),
            }
            for doc, own, words in zip(docs, settings, read, strict=True)
        ],
        page=settings[0] if page and docs else {"lang": "en", "direction": "ltr"} if page else None,
        colors=[RAMP[number][1] for number in numbers],
        inks=["#ffffff" if number >= WHITE_FROM else "#000000" for number in numbers],
    )
    if jupyter or (jupyter is None and spacy.util.is_in_jupyter()):
        from IPython.display import HTML, display

        # as displaCy does: the class keeps MathJax away from the text
        display(HTML(f'<span class="tex2jax_ignore">{html}</span>'))
        return None
    return html
