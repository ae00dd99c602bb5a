from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from model.config import TaggerConfig
from model.data.batching import Batch
from model.data.features import NUM_FEATURES
from model.data.labels import IGNORED
from model.data.tokenizer import UNKNOWN
from model.network.cells import CELLS
from model.network.layers import context_windows
from model.network.logits import Logits
from model.network.tagger import new_tagger
from model.training.loss import dual_loss

LAYERS = [(cell, both) for cell in CELLS for both in (False, True)]


def small(cell: str = "rnn", bidirectional: bool = False, **fields: float):
    config = TaggerConfig(
        cell=cell, bidirectional=bidirectional, embedding_dim=6, keyword_hidden=5, keyphrase_hidden=4, **fields
    )
    return new_tagger(config, 20, seed=0)


def test_every_cell_of_the_table_can_be_configured():
    assert get_args(TaggerConfig.model_fields["cell"].annotation) == (*CELLS, "none")


@pytest.mark.parametrize(("cell", "both"), LAYERS)
def test_shapes(cell: str, both: bool):
    logits = small(cell, both).eval()(torch.randint(1, 20, (3, 7)), torch.tensor([7, 5, 1]))
    assert logits.keyword.shape == (3, 7, 2) and logits.keyphrase.shape == (3, 7, 5)


@pytest.mark.parametrize(("cell", "both"), LAYERS)
def test_padding_never_reaches_a_real_token(cell: str, both: bool):
    tagger, ids = small(cell, both).eval(), torch.tensor([[3, 4, 5]])
    alone = tagger(ids, torch.tensor([3]))
    padded = tagger(F.pad(ids, (0, 6)), torch.tensor([3]))
    for one, other in zip(alone[:2], padded[:2], strict=True):
        assert torch.allclose(one, other[:, :3], atol=1e-6)


def test_a_bidirectional_layer_is_torchs_own():
    layer, own = small("lstm", True).keyword_rnn, torch.nn.LSTM(18, 5, batch_first=True, bidirectional=True)
    for name, value in layer.forward_rnn.named_parameters():
        getattr(own, name).data = value
        getattr(own, f"{name}_reverse").data = getattr(layer.backward_rnn, name)
    inputs, lengths = torch.randn(3, 6, 18), torch.tensor([6, 4, 2])
    packed = torch.nn.utils.rnn.pack_padded_sequence(inputs, lengths, batch_first=True)
    wanted, _ = torch.nn.utils.rnn.pad_packed_sequence(own(packed)[0], batch_first=True)
    real = (torch.arange(6) < lengths[:, None])[..., None]
    assert torch.allclose(layer(inputs, lengths) * real, wanted, atol=1e-6)


def test_windows_hold_each_token_between_its_neighbours():
    vectors = torch.arange(1.0, 5.0)[None, :, None]  # tokens 1 2 3 4
    assert context_windows(vectors, 1).tolist() == vectors.tolist()
    assert context_windows(vectors, 3).tolist() == [[[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 0]]]
    assert context_windows(vectors, 5)[0, 1].tolist() == [0, 1, 2, 3, 4]


def test_a_left_to_right_tagger_sees_one_token_ahead_and_no_more():
    tagger, lengths = small().eval(), torch.tensor([6])
    before = tagger(torch.tensor([[3, 4, 5, 6, 7, 8]]), lengths).keyphrase[0]
    after = tagger(torch.tensor([[3, 4, 5, 9, 7, 8]]), lengths).keyphrase[0]
    changed = (before - after).abs().sum(-1) > 1e-7
    assert changed.tolist() == [False, False, True, True, True, True]


def test_the_keyphrase_head_stands_on_the_second_layer():
    tagger = small().eval()
    ids, lengths = torch.tensor([[3, 4, 5]]), torch.tensor([3])
    before = tagger(ids, lengths)
    with torch.no_grad():
        tagger.keyphrase_rnn.forward_rnn.weight_ih_l0.mul_(-1)
    after = tagger(ids, lengths)
    assert torch.equal(before.keyword, after.keyword) and not torch.allclose(before.keyphrase, after.keyphrase)


def test_dropouts_work_in_training_alone():
    ids, lengths = torch.randint(2, 20, (4, 9)), torch.full((4,), 9)
    tagger = small(dropout=0.5)
    assert not torch.equal(tagger.train()(ids, lengths).keyword, tagger(ids, lengths).keyword)
    assert torch.equal(tagger.eval()(ids, lengths).keyword, tagger(ids, lengths).keyword)


def test_a_tagger_that_does_not_look_at_spelling_tells_no_words_apart_by_it():
    tagger, ids = small(decoding="spans").eval(), torch.full((1, 2), UNKNOWN)
    views = torch.arange(2)[None, :, None].expand(1, 2, NUM_FEATURES)  # one table of texts serves all trials of a sweep
    for given in (None, views):
        decoding = tagger(ids, torch.tensor([2]), given).decoding
        assert decoding is not None and torch.equal(decoding.word_ids, ids)


def test_first_weights_depend_on_the_seed_alone():
    config = TaggerConfig(embedding_dim=6, keyword_hidden=5, keyphrase_hidden=4)
    weights = [torch.cat([p.flatten() for p in new_tagger(config, 20, seed).parameters()]) for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def batch_of(keyword: list[list[int]], keyphrase: list[list[int]]) -> Batch:
    return Batch(
        torch.ones(len(keyword), len(keyword[0])).long(),
        torch.ones(len(keyword)),
        *map(torch.tensor, (keyword, keyphrase)),
    )


def test_alpha_weighs_the_keyword_head():
    # The keyword head is sure and right, the keyphrase head knows nothing: only 1 - alpha of ln 5 is left.
    logits = Logits(torch.tensor([[[50.0, 0.0]]]), torch.zeros(1, 1, 5))
    sums = dual_loss(logits, batch_of([[0]], [[0]]))
    assert float(sums.keyword) == pytest.approx(0, abs=1e-6)
    assert float(sums.keyphrase) == pytest.approx(1.6094, abs=1e-4)
    assert float(sums.total(0.3)) == pytest.approx(0.7 * 1.6094, abs=1e-4)
    assert float(sums.total(1.0)) == pytest.approx(0, abs=1e-6)


def test_padding_counts_for_nothing_in_the_loss():
    logits = Logits(torch.randn(1, 3, 2), torch.randn(1, 3, 5))
    short = Logits(logits.keyword[:, :2], logits.keyphrase[:, :2])
    with_padding = dual_loss(logits, batch_of([[1, 0, IGNORED]], [[4, 0, IGNORED]]))
    without = dual_loss(short, batch_of([[1, 0]], [[4, 0]]))
    assert torch.allclose(torch.stack(with_padding), torch.stack(without))


def test_losses_are_sums_over_tokens():
    logits = Logits(torch.zeros(2, 3, 2), torch.zeros(2, 3, 5))
    sums = dual_loss(logits, batch_of([[0, 0, 0], [1, 0, IGNORED]], [[0, 0, 0], [4, 0, IGNORED]]))
    assert float(sums.keyword) == pytest.approx(5 * 0.6931, abs=1e-3)
    assert float(sums.keyphrase) == pytest.approx(5 * 1.6094, abs=1e-3)
