"""Which of two ways a kernel takes: what the environment pins, else the faster one, tried out once.

The two ways differ in the last bits of a number. Processes that have to give the same numbers take
the same way: what one has chosen is in the environment of those that it starts.
"""

import logging
import os
from collections.abc import Callable
from functools import cache

ENVIRONMENT = "SPACY_EARLYEXIT_KERNELS"
# The way that torch takes by itself, and the other one.
WAYS = {"products": ("mkl", "onednn"), "attention": ("fused", "batched")}

logger = logging.getLogger("spacy_earlyexit")
_chosen: dict[str, str] = {}


def takes_other_way(kernel: str, is_faster: Callable[[], bool]) -> bool:
    """Whether a kernel takes the second of its ways.

    kernel (str): One of WAYS.
    is_faster (Callable[[], bool]): Tries out whether it is faster.
    RETURNS (bool): Whether it does.
    RAISES (ValueError): If the environment pins what is no way.
    """
    first, other = WAYS[kernel]
    way = pinned().get(kernel)
    reason = f"pinned by {ENVIRONMENT}"
    if way is None:
        way, reason = (other if is_faster() else first), "tried out"
    if _chosen.get(kernel) != way:
        _chosen[kernel] = way
        logger.info("%s of this processor by %s (%s)", kernel, way, reason)
        os.environ[ENVIRONMENT] = ",".join(f"{name}={own}" for name, own in chosen().items())
    return way == other


def chosen() -> dict[str, str]:
    """RETURNS (Dict[str, str]): The way of each kernel that was used or pinned, as the environment
    takes it.
    """
    return {**pinned(), **_chosen}


@cache
def pinned() -> dict[str, str]:
    """What the environment pinned when this process began to predict, by kernel.

    RAISES (ValueError): If it is no list such as "products=mkl,attention=fused".
    """
    found = {}
    for part in os.environ.get(ENVIRONMENT, "").split(","):
        kernel, _, way = part.strip().partition("=")
        if kernel and way not in WAYS.get(kernel, ()):
            known = " and ".join(f"{name}={'|'.join(ways)}" for name, ways in WAYS.items())
            raise ValueError(
                f"The environment variable {ENVIRONMENT} has to be some of {known}, with commas "
                f"between them, but has {part.strip()!r}."
            )
        if kernel:
            found[kernel] = way
    return found


def setting(name: str, default: int) -> int:
    """A number of the environment.

    name (str): Of the variable.
    default (int): Where it is not set.
    RAISES (ValueError): If it is no whole number >= 0.
    """
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise ValueError(
            f"The environment variable {name} has to be a whole number >= 0, but is {text!r}."
        )
    return int(text)
