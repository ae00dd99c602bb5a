"""Random numbers of a training step."""

import numpy as np
import torch


def seed_dropout(seed: int, epoch: int, step: int, rank: int, device: torch.device) -> None:
    """Make the dropout of a step depend on nothing before it: a resumed run draws what an uninterrupted one draws.

    Args:
        seed: of the training.
        epoch, step: from 0.
        rank: of this worker.
        device: whose generator is seeded, besides the CPU's.
    """
    step_seed = int(np.random.SeedSequence([seed, epoch, step, rank]).generate_state(1)[0])
    torch.default_generator.manual_seed(step_seed)  # torch.manual_seed looks for every kind of device at each call
    if device.type == "cuda":
        torch.cuda.manual_seed(step_seed)
