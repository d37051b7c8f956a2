"""torch and tokenizers in forked processes."""

import os

import torch

_fork_hook_installed = False
# The tokenizers library would print a warning about threads after the fork otherwise.
_TOKENIZER_THREADS = "TOKENIZERS_PARALLELISM"
_before: str | None = None


def one_thread_in_forks() -> None:
    """torch's thread pool does not survive a fork: a forked worker that uses it hangs. So a worker
    has one thread, and the tokenizers library none of its own.
    """
    global _fork_hook_installed
    if not _fork_hook_installed and hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child
        )
        _fork_hook_installed = True


def _before_fork() -> None:
    global _before
    _before = os.environ.get(_TOKENIZER_THREADS)
    os.environ[_TOKENIZER_THREADS] = "false"


def _after_in_parent() -> None:
    if _before is None:
        os.environ.pop(_TOKENIZER_THREADS, None)
    else:
        os.environ[_TOKENIZER_THREADS] = _before


def _after_in_child() -> None:
    torch.set_num_threads(1)
