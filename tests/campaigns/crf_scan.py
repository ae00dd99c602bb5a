"""The CRF's forward-backward algorithm by loop and by scan: milliseconds on this CPU, and calls of the scan (on a GPU, kernels).

PYTHONPATH=.:tests python tests/campaigns/crf_scan.py
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model.network import forward_backward
from model.network.crf import CrfTransitions, crf_nll

TEXTS, ROUNDS = 32, 9
_VIEWS = ("view", "transpose", "t.", "slice", "select", "unsqueeze", "expand", "detach", "split", "alias", "permute")


class Calls(TorchDispatchMode):
    """Counts operations that compute; views cost nothing on a device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not any(view in str(function) for view in _VIEWS)
        return function(*args, **(kwargs or {}))


def loss_and_gradients(steps: int) -> Callable[[], None]:
    """The loss of some texts of as many tokens, forward and backward."""
    logits, crf = torch.randn(TEXTS, steps, 5, requires_grad=True), CrfTransitions()
    tags, lengths = torch.zeros(TEXTS, steps, dtype=torch.long), torch.full((TEXTS,), steps)
    return lambda: crf_nll(logits, crf(), tags, lengths).backward()


def main() -> None:
    """Print a row for each number of tokens."""
    algorithms = {"loop": forward_backward.by_loop, "scan": forward_backward.by_scan}
    print(f"{TEXTS} texts, {torch.get_num_threads()} threads\ntokens  ms loop  ms scan  calls of the scan")
    for steps in (20, 40, 64, 128, 256, 512):
        work, taken = loss_and_gradients(steps), {name: [] for name in algorithms}  # type: ignore[var-annotated]
        for _ in range(ROUNDS + 1):
            for name, algorithm in algorithms.items():
                forward_backward.by_loop = algorithm
                began = time.perf_counter()
                work()
                taken[name].append(1000 * (time.perf_counter() - began))
        forward_backward.by_loop = algorithms["scan"]
        with Calls() as calls:
            work()
        loop, scan = (statistics.median(values[1:]) for values in taken.values())
        print(f"{steps:6}  {loop:7.2f}  {scan:7.2f}  {calls.count:17}")


if __name__ == "__main__":
    main()
