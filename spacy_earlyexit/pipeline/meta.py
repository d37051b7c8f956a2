"""What a pipeline's meta.json says of its operating points, for who reads no pipeline: the figures,
and a table in the notes, which `spacy package` puts on the model card.
"""

import copy
from typing import TYPE_CHECKING, Any

from spacy.language import Language

if TYPE_CHECKING:
    from .exit_setting import ExitSetting

_BEGIN, _END = "<!-- operating points -->", "<!-- operating points: end -->"


def tell_meta(nlp: Language, transformers: dict[str, "ExitSetting"]) -> None:
    """Bring nlp.meta up to date.

    nlp (Language): The pipeline.
    transformers (Dict[str, ExitSetting]): All that it has, by name.
    """
    told = {
        name: {"exit": pipe.stored_exit, "points": copy.deepcopy(pipe.points)}
        for name, pipe in transformers.items()
        if pipe.points
    }
    if not told and "earlyexit" not in nlp.meta:
        return
    meta = nlp.meta
    before, _, rest = (meta.get("notes") or "").partition(_BEGIN)
    notes = [before.strip(), rest.partition(_END)[2].strip()]
    if told:
        meta["earlyexit"] = told
        notes.append("\n".join([_BEGIN, *map(_table, told, told.values()), _END]))
    else:
        del meta["earlyexit"]
    meta["notes"] = "\n\n".join(note for note in notes if note)
    # spaCy's card shows all of these as per cent.
    for key in [key for key in meta.get("performance", {}) if key.startswith("exit_")]:
        del meta["performance"][key]


def _table(name: str, told: dict[str, Any]) -> str:
    lines = [
        f"### Operating points of `{name}`",
        "",
        f"In force: {told['exit'] or 'full depth'}. Another one: "
        f'`nlp.get_pipe("{name}").exit = "…"`. Speed-ups and scores are those on dev.',
        "",
        "| point | MAC speed-up | mean exit layer | score |",
        "| --- | ---: | ---: | ---: |",
    ]
    for point, found in told["points"].items():
        cells = [
            f"{found[key]:{shape}}" if key in found else ""
            for key, shape in (
                ("dev_speedup", ".2f"),
                ("dev_mean_depth", ".2f"),
                ("dev_score", ".2%"),
            )
        ]
        lines.append(f"| `{point}` | {' | '.join(cells)} |")
    return "\n".join(lines)
