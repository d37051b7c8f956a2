"""Read the files of Universal NER: words and names, by the ids of Universal Dependencies."""

from pathlib import Path
from typing import NamedTuple

from conllu import find_sent_id, parse_comments, read_blocks
from corpora import CorpusError, check_label, read_lines

# What else was annotated (OTH, O) is in parts of the corpora only.
TYPES = ("PER", "ORG", "LOC")
COLUMNS = ("ID", "FORM", "label", "-", "annotator")


class Named(NamedTuple):
    line: int
    text: str | None
    words: list[str]
    labels: list[str]


def read_names(path: Path) -> dict[str, Named]:
    """RETURNS (Dict[str, Named]): The sentences by their ids, in the order of the file.

    RAISES (CorpusError): If the file is not what it should be.
    """
    sents: dict[str, Named] = {}
    for block in read_blocks(read_lines(path)):
        comments = parse_comments(block)
        sent_id = find_sent_id(path, block, comments, sents)
        words: list[str] = []
        labels: list[str] = []
        for number, content in block.rows:
            columns = content.split("\t")
            if len(columns) != len(COLUMNS):
                raise CorpusError(
                    path,
                    number,
                    f"expected the {len(COLUMNS)} columns {', '.join(COLUMNS)}, "
                    f"found {len(columns)}",
                )
            id_, word, label = columns[:3]
            if id_ != str(len(words) + 1):
                raise CorpusError(path, number, f"expected ID {len(words) + 1}, found {id_!r}")
            check_label(path, number, label, labels[-1] if labels else "O")
            words.append(word)
            labels.append(label)
        sents[sent_id] = Named(block.line, comments.get("text"), words, labels)
    return sents
