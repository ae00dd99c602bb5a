from itertools import pairwise, product

import numpy as np
import pytest
import torch

from model.data.labels import LEGAL, MAY_END, MAY_START, B, E, I, O, S, spans_to_tags
from model.network.decoding import tags_to_spans, viterbi_decode

LEGAL_PAIRS = {(O, O), (O, B), (O, S), (B, I), (B, E), (I, I), (I, E), (E, O), (E, B), (E, S), (S, O), (S, B), (S, S)}


def is_legal(tags: list[int]) -> bool:
    return tags[0] in (O, B, S) and tags[-1] in (O, E, S) and all(p in LEGAL_PAIRS for p in pairwise(tags))


def test_the_legal_steps_are_those_of_bioes():
    assert {(i, j) for i, j in product(range(5), repeat=2) if LEGAL[i, j]} == LEGAL_PAIRS
    assert MAY_START.tolist() == [True, True, False, False, True]
    assert MAY_END.tolist() == [True, False, False, True, True]


def test_spans_become_tags_and_come_back():
    spans = np.array([[0, 1], [2, 4], [4, 7], [9, 10]])
    tags = spans_to_tags(spans, 10)
    assert tags.tolist() == [S, O, B, E, B, I, E, O, O, S]
    assert tags_to_spans(torch.tensor(tags)[None]).tolist() == [[0, start, end] for start, end in spans]


def test_no_spans_are_all_o():
    assert spans_to_tags(np.zeros((0, 2), np.int64), 3).tolist() == [O, O, O]
    assert tags_to_spans(torch.zeros(2, 3, dtype=torch.long)).tolist() == []


@pytest.mark.parametrize("seed", range(5))
def test_decode_finds_the_likeliest_legal_sequence(seed: int):
    logits = torch.randn(3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 3
    lengths = torch.tensor([5, 3, 1])
    found = viterbi_decode(logits, lengths)
    scores = torch.log_softmax(logits, -1)
    for row, length in enumerate(lengths.tolist()):
        sequences = [tags for tags in product(range(5), repeat=length) if is_legal(list(tags))]
        best = max(sequences, key=lambda tags: sum(float(scores[row, t, tag]) for t, tag in enumerate(tags)))
        assert found[row, :length].tolist() == list(best)
        assert found[row, length:].tolist() == [O] * (5 - length)


def test_decode_never_emits_i_after_o():
    logits = torch.full((1, 4, 5), -5.0)
    logits[0, :, I] = 5.0  # the head wants I everywhere, with no beginning and no end
    assert is_legal(viterbi_decode(logits, torch.tensor([4]))[0].tolist())


def test_decode_of_random_logits_is_always_legal():
    logits = torch.randn(200, 12, 5, generator=torch.Generator().manual_seed(1)) * 4
    lengths = torch.randint(1, 13, (200,), generator=torch.Generator().manual_seed(2))
    for tags, length in zip(viterbi_decode(logits, lengths).tolist(), lengths.tolist(), strict=True):
        assert is_legal(tags[:length])
