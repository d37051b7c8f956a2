"""Which of two ways to compute the same is faster on this machine."""

import time
from collections.abc import Callable
from typing import Any

import torch


def gain(new: Callable[..., Any], old: Callable[..., Any], *args: Any, rounds: int = 8) -> float:
    """Try two functions in turns, a few times.

    new, old (Callable): What is compared.
    args: What both get.
    rounds (int): Calls of each.
    RETURNS (float): How many times as fast the new one is, at its best and the old one's; 0 if it
        does not run here.
    """
    best: dict[Callable[..., Any], float] = {}
    with torch.inference_mode():
        for _ in range(rounds):
            for function in (old, new):
                start = time.perf_counter()
                try:
                    function(*args)
                except (AttributeError, RuntimeError):  # not in every torch
                    return 0.0
                seconds = time.perf_counter() - start
                best[function] = min(seconds, best.get(function, seconds))
    return best[old] / best[new]
