"""Two cards that are not there, as far as torch asks about them in Python; and a checkpointer for gpu_dry_scenarios.py."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch._dynamo  # before anything is replaced in torch
from gpu_dry_ledger import Ledger

from distributed.train.checkpoint import save_checkpoint


class SaveOnce:
    """A checkpointer that saves at the first check after some steps."""

    def __init__(self, folder: Path, ledger: Ledger) -> None:
        self.folder, self.ledger = folder, ledger
        self.saved = False

    def should_save(self) -> bool:
        """Return True at each check; `save` decides."""
        return not self.saved

    def save(self, training: Any) -> None:
        """Save the training unless it has just begun."""

        if training.step > 1:
            self.saved = True
            with self.ledger.in_phase("save"):
                save_checkpoint(self.folder, training.state())


@contextmanager
def pretended_card() -> Iterator[None]:
    """Replace what torch asks of a driver, so that two devices seem to be there."""
    nothing = lambda *_, **__: None  # noqa: E731
    properties = SimpleNamespace(name="pretended", major=9, minor=0, total_memory=80 * 2**30, multi_processor_count=132)
    replaced: dict[str, Any] = {
        "_lazy_init": nothing, "synchronize": nothing, "empty_cache": nothing, "manual_seed": nothing,
        "manual_seed_all": nothing, "reset_peak_memory_stats": nothing, "get_device_properties": lambda *_: properties,
        "get_device_name": lambda *_: properties.name, "get_device_capability": lambda *_: (9, 0),
        "max_memory_allocated": lambda *_: 0, "max_memory_reserved": lambda *_: 0, "memory_allocated": lambda *_: 0,
        "utilization": lambda *_: 0, "mem_get_info": lambda *_: (2**36, 2**36),
    }  # fmt: skip
    capturing = "_accelerator_graph_capture_health_check"
    with (
        patch.multiple(torch.cuda, **replaced),
        patch.object(torch.nn.RNNBase, "flatten_parameters", nothing),
        patch.object(torch.optim.Optimizer, capturing, nothing, create=True),
    ):
        # Without it `.to(device)` swaps tensors that autograd may hold, and fails for recurrent layers.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        yield
