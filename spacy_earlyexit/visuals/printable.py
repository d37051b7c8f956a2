"""Text that is safe to print."""

import re
from typing import Any

# What steers a terminal or can't stand in XML, and what turns the direction of the text behind it.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def printable(value: Any) -> str:
    """RETURNS (str): The value as text that cannot steer a terminal."""
    return _UNSAFE.sub("\ufffd", str(value))
