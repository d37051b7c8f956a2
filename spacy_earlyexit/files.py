"""Writing files so that nothing half-written is left behind."""

import json
import os
from pathlib import Path
from typing import Any


def write_bytes(path: Path, data: bytes) -> None:
    """Write beside the path and rename, so that a failure leaves what was there before.

    path (Path): The file; its folder is made if need be.
    data (bytes): The content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_bytes(data)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """See write_bytes; data as indented JSON."""
    write_bytes(path, (json.dumps(data, indent=2) + "\n").encode("utf8"))
