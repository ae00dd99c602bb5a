"""The recurrence in few products, beside torch's own."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model.config import TaggerConfig
from model.network import tagger as tagger_module
from model.network.cells import CELLS, Cell
from model.network.cpu.dropout import dropout_mask
from model.network.cpu.layer import packed_rnn_from_ids, packed_rnn_with_head
from model.network.cpu.packing import PackedStep, gather_windows, pack
from model.network.tagger import Tagger, new_tagger

LENGTHS = torch.tensor([4, 9, 1, 9, 6])
MANY = torch.arange(70) * 7 % 9 + 1  # their steps are 80, 64, 64, 48, 48, 32, 32, 16, 16 columns wide
TIME, INPUTS, HIDDEN, CLASSES = 10, 30, 20, 5


def test_tokens_are_packed_by_step_with_the_longer_texts_first():
    positions, steps, reversal = pack(np.array([1, 3]), padded_to=4)
    assert steps == [PackedStep(2, 16), PackedStep(1, 16), PackedStep(1, 16)]
    filler = 8
    assert positions.tolist() == [4, 0, *[filler] * 14, 5, *[filler] * 15, 6, *[filler] * 15]
    # The second text has the first column of each step; what fills steps up stays where it is.
    assert reversal.tolist() == [32, *range(1, 32), 0, *range(33, 48)]
    alone = pack(np.array([3]), padded_to=4)
    assert alone.steps == [PackedStep(1, 1)] * 3 and alone.reversal.tolist() == [2, 1, 0]
    wide = pack(np.array([2] * 17 + [1] * 3), padded_to=2).steps
    assert wide == [PackedStep(20, 32), PackedStep(17, 32)]


def packed(padded: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The rows (N, ...) of a padded tensor (B, T, ...), zeros where a step is filled up."""
    flat = padded.flatten(0, 1)
    return torch.cat([flat, flat.new_zeros(1, *flat.shape[1:])])[positions]


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
@pytest.mark.parametrize("lengths", [LENGTHS, MANY, torch.tensor([7])], ids=["few", "many", "one"])
def test_values_and_gradients_are_those_of_torch(lengths: torch.Tensor, cell: Cell, directions: int):
    torch.manual_seed(0)
    own = [cell.module(INPUTS, HIDDEN, batch_first=True) for _ in range(directions)]
    theirs = cell.module(INPUTS, HIDDEN, batch_first=True, bidirectional=directions == 2)
    for rnn, suffix in zip(own, ("", "_reverse"), strict=False):
        for name, value in rnn.named_parameters():
            getattr(theirs, name + suffix).data = value.detach().clone()
    head = nn.Linear(directions * HIDDEN, CLASSES)
    inputs = torch.randn(len(lengths), TIME, INPUTS)
    real = (torch.arange(TIME) < lengths[:, None])[..., None]
    of_states, of_logits = (torch.randn(len(lengths), TIME, size) * real for size in (directions * HIDDEN, CLASSES))

    ours = inputs.clone().requires_grad_()
    packing = pack(lengths.numpy(), TIME)
    positions = packing.positions
    states, logits = packed_rnn_with_head(packed(ours, positions), packing, cell.kernel, own, head)
    ((states * packed(of_states, positions)).sum() + (logits * packed(of_logits, positions)).sum()).backward()
    gradients = [ours.grad, *(weight.grad for rnn in own for weight in rnn.parameters()), head.weight.grad]
    head.zero_grad()

    reference = inputs.clone().requires_grad_()
    sequence = nn.utils.rnn.pack_padded_sequence(reference, lengths, batch_first=True, enforce_sorted=False)
    expected, _ = nn.utils.rnn.pad_packed_sequence(theirs(sequence)[0], batch_first=True, total_length=TIME)
    ((expected * of_states).sum() + (head(expected) * of_logits).sum()).backward()
    wanted = [reference.grad, *(weight.grad for weight in theirs.parameters()), head.weight.grad]

    here = positions < len(lengths) * TIME
    assert torch.allclose(states[here], packed(expected, positions)[here], atol=1e-5)
    assert torch.allclose(logits[here], packed(head(expected), positions)[here], atol=1e-5)
    for one, other in zip(gradients, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-5 * max(1.0, float(other.abs().max())))  # sums of many texts


def test_rows_and_their_gradient_are_those_of_an_embedding():
    table = torch.randn(50, 6)
    table[0] = 0
    ids, mask, of_rows = torch.randint(0, 50, (40, 3)), torch.rand(40, 18), torch.randn(40, 18)
    ids[3] = 0
    ours, theirs = (table.clone().requires_grad_() for _ in range(2))
    rows = gather_windows(ours, ids, mask.clone())
    expected = F.embedding(ids, theirs, padding_idx=0).flatten(1) * mask
    for result in (rows, expected):
        (result * of_rows).sum().backward()
    assert torch.equal(rows, expected)
    assert not ours.grad[0].any() and torch.allclose(ours.grad, theirs.grad, atol=1e-6)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_going_over_distinct_words_gives_what_going_over_tokens_gives(cell: Cell, directions: int):
    tables = torch.randn(30, 7), torch.randn(20, 4)
    ids = [torch.randint(0, len(table), (len(LENGTHS), TIME, 3)) for table in tables]
    layers = [cell.module(3 * (7 + 4), HIDDEN, batch_first=True) for _ in range(directions)]
    head = nn.Linear(directions * HIDDEN, CLASSES)
    packing = pack(LENGTHS.numpy(), TIME)
    lookups = [(table, packed(each, packing.positions)) for table, each in zip(tables, ids, strict=True)]
    with torch.no_grad():
        by_word = packed_rnn_from_ids(lookups, packing, cell.kernel, layers, head)
        vectors = torch.cat([gather_windows(*lookup, None) for lookup in lookups], dim=1)
        by_token = packed_rnn_with_head(vectors, packing, cell.kernel, layers, head)
    for one, other in zip(by_word, by_token, strict=True):
        assert torch.allclose(one, other, atol=1e-5 * max(1.0, float(other.abs().max())))  # sums of many texts


@pytest.mark.parametrize(
    ("cell", "window", "both"),
    [("rnn", 1, False), ("rnn", 3, False), ("rnn", 3, True), ("rnn", 5, True), ("lstm", 1, True), ("gru", 3, True)],
)
def test_a_tagger_says_the_same_and_learns_the_same_without_it(
    cell: str, window: int, both: bool, monkeypatch: pytest.MonkeyPatch
):
    ids, lengths = torch.randint(2, 40, (len(LENGTHS), TIME)), LENGTHS
    ids[torch.arange(TIME) >= lengths[:, None]] = 0
    real = (torch.arange(TIME) < lengths[:, None])[..., None]
    taggers = []
    for fast in (True, False):
        config = TaggerConfig(
            cell=cell,
            embedding_dim=8,
            keyword_hidden=12,
            keyphrase_hidden=9,
            window=window,
            bidirectional=both,
            dropout=0,
            cpu_kernels=fast,
        )
        taggers.append(new_tagger(config, 40, seed=0))
    said = [tagger(ids, lengths)[:2] for tagger in taggers]
    for one, other in zip(*said, strict=True):
        assert torch.allclose(one * real, other * real, atol=1e-5)
    for logits in said:
        sum((head * real).square().sum() for head in logits).backward()
    for one, other in zip(*(tagger.parameters() for tagger in taggers), strict=True):
        gradients = [each.grad.to_dense() if each.grad.is_sparse else each.grad for each in (one, other)]
        assert torch.allclose(*gradients, atol=1e-5)
    for few in (1, 10**9):  # without gradients, as a large batch and as a small one
        monkeypatch.setattr(tagger_module, "_FEW_TOKENS", few)
        with torch.no_grad():
            found = taggers[0].eval()(ids, lengths)[:2]
        for one, other in zip(found, said[0], strict=True):
            assert torch.allclose(one * real, other * real, atol=1e-5) and not (one * ~real).any()


@pytest.mark.parametrize("share", [0.5, 0.25, 0.3, 0.9])
def test_a_dropout_mask_drops_its_share_and_keeps_the_mean(share: float):
    torch.manual_seed(1)
    mask = dropout_mask((300, 900), share)
    assert mask.dtype == torch.float32 and len(mask.unique()) == 2
    assert float((mask == 0).float().mean()) == pytest.approx(share, abs=0.005)
    assert float(mask.max()) == pytest.approx(1 / (1 - share), rel=1e-4)
    # Neighbours, rows and columns know nothing of one another.
    centred = (mask != 0).float() - (1 - share)
    for shift in ((1, 0), (0, 1), (0, 300), (0, 64)):
        assert abs(float((centred * centred.roll(shift, (0, 1))).mean())) < 0.005


def test_a_dropout_mask_depends_on_torchs_seed_alone():
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(dropout_mask((20, 30), 0.5))
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("cell", CELLS)
def test_other_devices_and_precisions_go_torchs_way(cell: str):
    tagger, ids = Tagger(TaggerConfig(cell=cell), 10), torch.ones(1, 1, dtype=torch.long)
    assert tagger._uses_cpu_kernels(ids)
    assert not tagger._uses_cpu_kernels(ids.to("meta"))
    assert not Tagger(TaggerConfig(cell=cell, cpu_kernels=False), 10)._uses_cpu_kernels(ids)
    with torch.autocast("cpu", torch.bfloat16):
        assert not tagger._uses_cpu_kernels(ids)
    assert not tagger.to(torch.float64)._uses_cpu_kernels(ids)
