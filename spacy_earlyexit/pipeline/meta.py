"""What a pipeline's meta.json says of its transformers: an id of what was saved, the version that
saved it, operating points with their figures, and a table in the notes, which `spacy package` puts
on the model card.
"""

import copy
from collections.abc import Mapping
from typing import Any

from spacy.language import Language

KEY = "earlyexit"
_BEGIN, _END = "<!-- operating points -->", "<!-- operating points: end -->"


def write_meta(nlp: Language, transformers: Mapping[str, Mapping[str, Any]]) -> None:
    """Bring nlp.meta up to date.

    nlp (Language): The pipeline.
    transformers (Mapping[str, Mapping[str, Any]]): Of each transformer that has weights its id,
        version, exit setting and points.
    """
    if not transformers and KEY not in nlp.meta:
        return
    meta = nlp.meta
    before, _, rest = (meta.get("notes") or "").partition(_BEGIN)
    notes = [before.strip(), rest.partition(_END)[2].strip()]
    if transformers:
        meta[KEY] = copy.deepcopy(dict(transformers))
        tables = [_table(name, found) for name, found in meta[KEY].items() if found["points"]]
        if tables:
            notes.append("\n".join([_BEGIN, *tables, _END]))
    else:
        del meta[KEY]
    meta["notes"] = "\n\n".join(note for note in notes if note)
    # spaCy's card shows all of these as per cent.
    for key in [key for key in meta.get("performance", {}) if key.startswith("exit_")]:
        del meta["performance"][key]


def _table(name: str, found: Mapping[str, Any]) -> str:
    lines = [
        f"### Operating points of `{name}`",
        "",
        f"In force: {found['exit'] or 'full depth'}. Another one: "
        f'`nlp.get_pipe("{name}").exit = "…"`. Speed-ups and scores are those on dev.',
        "",
        "| point | MAC speed-up | mean exit layer | score |",
        "| --- | ---: | ---: | ---: |",
    ]
    for point, figures in found["points"].items():
        cells = [
            f"{figures[key]:{shape}}" if key in figures else ""
            for key, shape in (
                ("dev_speedup", ".2f"),
                ("dev_mean_depth", ".2f"),
                ("dev_score", ".2%"),
            )
        ]
        lines.append(f"| `{point}` | {' | '.join(cells)} |")
    return "\n".join(lines)
