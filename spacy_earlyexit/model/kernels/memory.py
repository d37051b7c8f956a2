"""What prediction on a CPU frees stays with the process, for the next layer to take.

The GNU C library gives blocks of many megabytes back to the system when they are freed. A layer
makes several of them, and the system hands out each one anew, page by page, which takes as long as
a good part of the arithmetic where pages are dear, as on a virtual machine.
"""

import ctypes
import os
from functools import cache

from .choice import logger, setting

# Parameters of mallopt (malloc.h), and bytes: larger blocks go back to the system as before, and so
# does what more than that would lie free at the end of the heap.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
KEPT_BLOCK, KEPT_IN_ALL = 2**28, 2**29
# 0 switches it off.
ENVIRONMENT = "SPACY_EARLYEXIT_KEEP_MEMORY"
# Those who have set up malloc themselves know better.
_OWN_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")


@cache
def keep_freed_memory() -> bool:
    """Tell malloc to keep freed blocks, once per process. Nothing happens where it is another
    malloc, has settings in the environment (MALLOC_TRIM_THRESHOLD_ and others, GLIBC_TUNABLES), or
    SPACY_EARLYEXIT_KEEP_MEMORY is 0.

    RETURNS (bool): Whether it does so now.
    """
    if not setting(ENVIRONMENT, 1):
        return False
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc" in tunables or any(name in os.environ for name in _OWN_SETTINGS):
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018, other libraries that have a mallopt lack it
        mallopt = libc.mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # Old versions take no larger threshold than 32 MB.
    kept = mallopt(_MMAP_THRESHOLD, KEPT_BLOCK) or mallopt(_MMAP_THRESHOLD, 2**25)
    kept = bool(kept and mallopt(_TRIM_THRESHOLD, KEPT_IN_ALL))
    logger.info("malloc keeps up to %d MB of freed memory: %s", KEPT_IN_ALL >> 20, kept)
    return kept
