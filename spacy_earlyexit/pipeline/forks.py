"""torch in forked processes."""

import os

import torch

from ..model.kernels.attention import batched_is_faster
from ..model.kernels.choice import logger, setting
from ..model.kernels.products import onednn_is_faster

# Threads of a forked worker; 0: torch's setting is left as it is.
ENVIRONMENT = "SPACY_EARLYEXIT_FORK_THREADS"
_installed = False


def one_thread_in_forks() -> None:
    """torch's thread pool does not survive a fork: a forked worker that uses it hangs. So a worker
    has one thread, or as many as SPACY_EARLYEXIT_FORK_THREADS says. Which kernels it takes is
    chosen before the fork, so that all workers take the same.
    """
    global _installed
    threads = setting(ENVIRONMENT, 1)
    if not _installed and threads and hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=lambda: _choose_kernels(threads),
            after_in_child=lambda: torch.set_num_threads(threads),
        )
        _installed = True
        logger.info("forked processes have %d thread(s) of torch", threads)


def _choose_kernels(threads: int) -> None:
    onednn_is_faster()
    batched_is_faster(threads)
