"""What crosses workers, between two real processes over gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

# Each rank has gradients of its own; rank 0 touches one row at first and many later, so that the room for rows must grow.
SCRIPT = """
import json, torch, torch.distributed as dist
from torch import nn
from distributed.train.process_group import TorchCommunicator
dist.init_process_group("gloo")
module = nn.ModuleDict({"table": nn.Embedding(40, 5, sparse=True), "head": nn.Linear(5, 3)})
found = []
for kind in (torch.float32, torch.bfloat16):
    group = TorchCommunicator()
    for step, sizes in enumerate([(1, 2), (9, 3), (2, 30)]):
        generator = torch.Generator().manual_seed(step)
        whole = [torch.zeros(40, 5), torch.zeros(3, 5), torch.zeros(3)]
        for rank, size in enumerate(sizes):
            rows = torch.randperm(40, generator=generator)[:size]
            values, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((size, 5), (3, 5), (3,)))
            whole[0].index_add_(0, rows, values), whole[1].add_(weight), whole[2].add_(bias)
            if rank == group.rank:
                sparse = torch.sparse_coo_tensor(rows[None], values, (40, 5), check_invariants=False)
                module["table"].weight.grad, module["head"].weight.grad, module["head"].bias.grad = sparse, weight, bias
        group.all_reduce_gradients(module, 32, kind)
        summed = [each.grad for each in module.parameters()]
        touched = len(summed[0].indices()[0])
        off = max(float((one.to_dense() - other).abs().max()) for one, other in zip(summed, whole))
        wanted, room = int((whole[0] != 0).any(1).sum()), group._room[module["table"].weight] * 32
        found.append([off, touched, wanted, summed[0].is_coalesced(), room])
if group.rank == 0:
    print(json.dumps(found))
dist.destroy_process_group()
"""


def test_gradients_are_summed_over_two_processes(tmp_path: Path):
    script = tmp_path / "sum.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*launcher, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [room for *_, room in found] == pytest.approx(2 * [2, 9, 30])
    assert all(touched == wanted and coalesced for _, touched, wanted, coalesced, _ in found)
    exact, rounded = (max(off for off, *_ in some) for some in (found[:3], found[3:]))
    assert exact < 1e-6 < rounded < 0.05
