from itertools import pairwise, product

import numpy as np
import pytest
import torch

from model.data.labels import IGNORED, LEGAL, MAY_END, MAY_START, B, E, I, O, S
from model.network import forward_backward
from model.network.crf import CrfTransitions, crf_nll, legality_only, span_marginals
from model.network.decoding import max_over_repeats, predict_spans, select_spans, tags_to_spans, viterbi_decode
from model.network.forward_backward import CrfScores, legality
from model.network.logits import Logits, SpanDecoding

LENGTHS = [5, 3, 1, 4]


def legal(tags: tuple[int, ...]) -> bool:
    return bool(MAY_START[tags[0]] and MAY_END[tags[-1]] and all(LEGAL[pair] for pair in pairwise(tags)))


class Case:
    """Random heads and transitions, and every legal sequence of each text with its score."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.logits = torch.randn(len(LENGTHS), max(LENGTHS), 5, requires_grad=True)
        self.transitions = CrfTransitions()
        for scores in self.transitions.parameters():
            torch.nn.init.normal_(scores)
        self.lengths = torch.tensor(LENGTHS)

    def sequences(self, row: int) -> tuple[list[tuple[int, ...]], torch.Tensor]:
        found = [tags for tags in product(range(5), repeat=LENGTHS[row]) if legal(tags)]
        return found, torch.stack([self._score(row, tags) for tags in found])

    def _score(self, row: int, tags: tuple[int, ...]) -> torch.Tensor:
        crf = self.transitions()
        head = sum(self.logits[row, t, tag] for t, tag in enumerate(tags))
        return head + crf.start[tags[0]] + sum(crf.transition[pair] for pair in pairwise(tags)) + crf.end[tags[-1]]

    def gold(self) -> torch.Tensor:
        tags = torch.full((len(LENGTHS), max(LENGTHS)), IGNORED)
        for row, length in enumerate(LENGTHS):
            found, _ = self.sequences(row)
            tags[row, :length] = torch.tensor(found[(7 * row + 3) % len(found)])
        return tags


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_and_its_gradients_are_those_of_all_sequences_added_up(seed: int):
    case = Case(seed)
    tags, wanted = case.gold(), torch.zeros(())
    for row, length in enumerate(LENGTHS):
        found, scores = case.sequences(row)
        wanted = wanted + scores.logsumexp(0) - scores[found.index(tuple(tags[row, :length].tolist()))]
    inputs = [case.logits, *case.transitions.parameters()]
    gradients = torch.autograd.grad(wanted, inputs)
    loss = crf_nll(case.logits, case.transitions(), tags, case.lengths)
    torch.testing.assert_close(loss, wanted)
    for one, other in zip(torch.autograd.grad(loss, inputs), gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_a_spans_probability_is_that_of_the_sequences_that_have_it(seed: int):
    case = Case(seed)
    marginals = span_marginals(case.logits, case.transitions(), case.lengths, 12)
    wanted = torch.zeros_like(marginals)
    for row in range(len(LENGTHS)):
        found, scores = case.sequences(row)
        for tags, share in zip(found, scores.softmax(0).tolist(), strict=True):
            for _, start, end in tags_to_spans(torch.tensor([tags])).tolist():
                wanted[row, end - 1, end - start - 1] += share
    torch.testing.assert_close(marginals, wanted)


@pytest.mark.parametrize("seed", range(3))
def test_decode_reads_the_likeliest_sequence_with_transitions(seed: int):
    case = Case(seed)
    tags = viterbi_decode(case.logits, case.lengths, case.transitions())
    for row, length in enumerate(LENGTHS):
        found, scores = case.sequences(row)
        assert tags[row].tolist() == [*found[int(scores.argmax())], *[O] * (max(LENGTHS) - length)]


def test_scores_far_apart_do_not_overflow():
    logits = torch.zeros(1, 400, 5)
    logits[..., I] = 300.0
    loss = crf_nll(logits, legality_only(logits.device), torch.full((1, 400), O), torch.tensor([400]))
    assert loss.item() == pytest.approx(398 * 300, rel=1e-3)  # the best sequence begins with B and ends with E


def disjoint(spans: list[tuple[int, int]]) -> bool:
    return all(one[1] <= other[0] for one, other in pairwise(sorted(spans)))


@pytest.mark.parametrize("seed", range(20))
def test_the_spans_read_are_the_best_of_all_disjoint_ones(seed: int):
    marginals = torch.rand(1, 5, 3, generator=torch.Generator().manual_seed(seed))
    spans = [(end + 1 - size, end + 1) for end in range(5) for size in (1, 2, 3) if end + 1 >= size]
    marginals[0, 0, 1:], marginals[0, 1, 2] = 0, 0  # would begin before the text
    gain = {span: float(marginals[0, span[1] - 1, span[1] - span[0] - 1]) - 0.4 for span in spans}
    chosen = [
        [span for span, take in zip(spans, bits, strict=True) if take] for bits in product((0, 1), repeat=len(spans))
    ]
    best = max(sum(gain[span] for span in each) for each in chosen if disjoint(each))
    found = [(start, end) for _, start, end in select_spans(marginals, torch.tensor(0.4)).tolist()]
    assert disjoint(found) and sum(gain[span] for span in found) == pytest.approx(best, abs=1e-6)


def span_decoding(threshold: float, tokens: int) -> SpanDecoding:
    return SpanDecoding(torch.tensor(threshold), torch.tensor(0.0), torch.arange(tokens), 12)


def test_equal_words_agree_within_their_text():
    marginals = torch.zeros(2, 5, 2)
    marginals[0, :, 0] = torch.tensor([0.1, 0.6, 0.2, 0.3, 0.4])
    marginals[0, 1:, 1] = torch.tensor([0.05, 0.01, 0.02, 0.5])
    marginals[1, :2, 0] = 0.9
    words = torch.tensor([[7, 8, 9, 7, 8], [7, 8, 0, 0, 0]])
    found = max_over_repeats(marginals, words)
    assert found[0, :, 0].tolist() == pytest.approx([0.3, 0.6, 0.2, 0.3, 0.6])
    assert found[0, 1:, 1].tolist() == pytest.approx([0.5, 0.01, 0.02, 0.5])
    assert torch.equal(found[1], marginals[1])


def test_words_agree_with_equal_words_of_their_text_alone():
    """Nothing that is told of a word reaches another word, another text, or the same words in another order."""
    rows, steps = 64, 12
    words = torch.arange(1, 17).repeat(rows, 1)[:, :steps] + 8 * torch.arange(rows)[:, None]
    words[:, 6:] = words[:, :6].flip(1)  # each pair of words stands the other way round as well
    marginals = torch.rand(rows, steps, 3, generator=torch.Generator().manual_seed(0))
    marginals[:, 0, 1:], marginals[:, 1, 2] = 0, 0  # would begin before the text
    found = max_over_repeats(marginals, words)
    spans = [(end - size, end) for end in range(1, steps + 1) for size in (1, 2, 3) if end >= size]
    for row in range(rows):
        highest: dict[tuple[int, ...], float] = {}
        for start, end in spans:
            alike, value = tuple(words[row, start:end].tolist()), marginals[row, end - 1, end - start - 1].item()
            highest[alike] = max(value, highest.get(alike, 0.0))
        wanted = [highest[tuple(words[row, start:end].tolist())] for start, end in spans]
        assert [found[row, end - 1, end - start - 1].item() for start, end in spans] == wanted


def test_a_span_below_one_half_is_found_where_the_threshold_lets_it():
    logits = torch.tensor([[[0.5, -5, -5, -5, 0.0], [5, -5, -5, -5, -5]]])
    lengths = torch.tensor([2])
    assert predict_spans(Logits(torch.zeros(1, 2, 2), logits), lengths).spans.tolist() == []
    found = predict_spans(Logits(torch.zeros(1, 2, 2), logits, None, span_decoding(0.3, 2)), lengths)
    assert found.spans.tolist() == [[0, 0, 1]]
    assert found.scores.item() == pytest.approx(1 / (1 + np.exp(0.5)), abs=1e-3)


def test_nothing_is_found_in_the_padding_and_no_span_is_longer_than_the_longest():
    logits = torch.zeros(2, 16, 5)
    logits[..., I], logits[..., O], logits[..., S] = 9.0, -9.0, -9.0
    logits[:, 0, B], logits[0, -1, E], logits[1, 2, E] = 99.0, 99.0, 99.0
    found = predict_spans(
        Logits(torch.zeros(2, 16, 2), logits, None, span_decoding(0.5, 16)),
        torch.tensor([16, 3]),
    )
    assert found.spans.tolist() == [[1, 0, 3]]


def random_chain(
    lengths: list[int], emissions: float, transitions: float
) -> tuple[torch.Tensor, CrfScores, torch.Tensor]:
    torch.manual_seed(len(lengths))
    crf = CrfScores(*(transitions * torch.randn(*shape) for shape in ((5,), (5, 5), (5,))))
    return emissions * torch.randn(len(lengths), max(lengths), 5), crf, torch.tensor(lengths)


def log_space(logits: torch.Tensor, crf: CrfScores, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """log Z(x) and the marginals of the tags, by log-sum-exp and autograd."""
    scores = logits.double().requires_grad_()
    start, transition, end = (
        score.double().masked_fill(~legal, float("-inf"))
        for score, legal in zip(crf, legality(logits.device), strict=True)
    )
    partitions = []
    for text, length in zip(scores, lengths.tolist(), strict=True):
        alpha = start + text[0]
        for emission in text[1:length]:
            alpha = (alpha[:, None] + transition).logsumexp(0) + emission
        partitions.append((alpha + end).logsumexp(0))
    partition = torch.stack(partitions)
    return partition.detach(), torch.autograd.grad(partition.sum(), scores)[0]


@pytest.mark.parametrize("algorithm", [forward_backward.by_loop, forward_backward.by_scan])
@pytest.mark.parametrize(
    ("lengths", "emissions", "transitions"),
    [([1], 1, 1), ([2, 1], 1, 1), ([7, 1, 4, 8], 3, 2), ([512, 3, 200], 1, 1), ([33, 32, 31], 17, 7)],
)
def test_the_scan_and_the_loop_give_what_log_sum_exp_gives(
    algorithm, lengths: list[int], emissions: float, transitions: float
):
    """Emissions up to about 50, transitions up to about 20; lengths about powers of two."""
    logits, crf, sizes = random_chain(lengths, emissions, transitions)
    partition, marginals = log_space(logits, crf, sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward_backward, "by_loop", algorithm)
        found = forward_backward.forward_backward(logits, crf, sizes)
    torch.testing.assert_close(found.log_partition, partition, atol=1e-5, rtol=1e-9)
    torch.testing.assert_close((found.alpha * found.beta).transpose(0, 1), marginals, atol=1e-5, rtol=0)


@pytest.mark.parametrize("lengths", [[1, 1], [20, 3, 11], [300, 1, 64]])
def test_the_scan_gives_the_losses_gradients_and_spans_of_the_loop(lengths: list[int], monkeypatch: pytest.MonkeyPatch):
    logits, crf, sizes = random_chain(lengths, 2, 1)
    inputs = [each.requires_grad_() for each in (logits, *crf)]
    tags = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    tags[:, 0] = S
    results = []
    for algorithm in (forward_backward.by_loop, forward_backward.by_scan):
        monkeypatch.setattr(forward_backward, "by_loop", algorithm)
        loss = crf_nll(logits, crf, tags, sizes)
        results.append([loss, *torch.autograd.grad(loss, inputs), span_marginals(logits, crf, sizes, 12)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-6)
