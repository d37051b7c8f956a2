"""torch in forked processes."""

import os

import torch

_fork_hook_installed = False


def one_thread_in_forks() -> None:
    """torch's thread pool does not survive a fork: a forked worker that uses it hangs. So a worker
    has one thread.
    """
    global _fork_hook_installed
    if not _fork_hook_installed and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
        _fork_hook_installed = True
