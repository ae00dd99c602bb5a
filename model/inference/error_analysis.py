"""The mistakes of a tagger, found and classified; the kinds are those of model/inference/mistakes.py."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import torch

from model.data.characters import Span
from model.data.dataset import Split, split_from_examples
from model.data.examples import CHUNK_TEXTS, Example
from model.data.labels import O
from model.data.subwords import SubwordTokenizer
from model.inference.keyphrase import Keyphrase
from model.inference.mistakes import HIGH_CONFIDENCE, KINDS, MIN_OCCURRENCES, Mistake
from model.inference.training_stats import Phrase, Rate, TrainingStats
from model.network.decoding import predict_spans, score_tags
from model.network.tagger import Tagger
from model.training.evaluation import predict_batches

ScoredSpan = tuple[int, int, float]  # first token, end token, score


class AnnotatedText(NamedTuple):
    """A text with the keyphrases of the data and of the tagger.

    Attributes:
        text: the text.
        place: `file:line` of the text.
        ids: vocabulary ids of its tokens.
        offsets: characters of its tokens.
        gold, predicted: keyphrases of the data and of the tagger, each with the tagger's score for its tags.
    """

    text: str
    place: str
    ids: list[int]
    offsets: list[Span]
    gold: list[ScoredSpan]
    predicted: list[ScoredSpan]


def classify_errors(texts: Iterable[AnnotatedText], train: Split) -> list[Mistake]:
    """Return the mistakes in texts, by kind in the order of KINDS, the most informative of each kind first.

    Args:
        texts: may include texts without a mistake.
        train: the training split, in ids of the same vocabulary.
    """
    wrong = [(text, *spans) for text in texts for spans in _apart(text.gold, text.predicted)]
    alone = [(text, (gold or predicted)[0]) for text, gold, predicted in wrong if not (gold and predicted)]
    seen = TrainingStats(train, {tuple(text.ids[start:end]) for text, (start, end, _) in alone})
    found = [_classify(text, gold, predicted, seen) for text, gold, predicted in wrong]
    roots: dict[tuple[str, str], list[float]] = {}
    for each in found:
        roots.setdefault((each.kind, each.about), []).append(_distance(each))
    kinds = list(KINDS)

    def place(mistake: Mistake) -> tuple[int, int, float, str, float]:
        of_root = roots[mistake.kind, mistake.about]
        return kinds.index(mistake.kind), -len(of_root), -max(of_root), mistake.about, -_distance(mistake)

    return sorted(found, key=place)


def _apart(gold: list[ScoredSpan], predicted: list[ScoredSpan]) -> list[tuple[list[ScoredSpan], list[ScoredSpan]]]:
    """Group the spans that only one side has: overlapping ones together."""
    right = {span[:2] for span in gold} & {span[:2] for span in predicted}
    spans = [(span, side) for side, spans in enumerate((gold, predicted)) for span in spans if span[:2] not in right]
    groups: list[tuple[list[ScoredSpan], list[ScoredSpan]]] = []
    reach = -1
    for span, side in sorted(spans):
        if span[0] >= reach:
            groups.append(([], []))
        groups[-1][side].append(span)
        reach = max(reach, span[1])
    return groups


def _classify(text: AnnotatedText, gold: list[ScoredSpan], predicted: list[ScoredSpan], seen: TrainingStats) -> Mistake:
    score = max(score for *_, score in predicted or gold)
    start, end, _ = (gold or predicted)[0]
    words = [text.text[first:last].lower() for first, last in text.offsets[start:end]]
    if gold and predicted:
        kind, about = "wrong boundary", " ".join(words)
        reason = f"the data has {_quoted(text, gold)}, the tagger {_quoted(text, predicted)}"
    else:
        kind, about, reason = _reason(words, tuple(text.ids[start:end]), score, bool(gold), seen)
    wanted, has = ([_keyphrase(text, span) for span in side] for side in (gold, predicted))
    return Mistake(kind, text.text, text.place, wanted, has, score, reason, about)


def _reason(words: list[str], ids: Phrase, score: float, missed: bool, seen: TrainingStats) -> tuple[str, str, str]:
    """Return the kind, the word or phrase, and the reason of a miss or a false positive."""
    phrase, whole = " ".join(words), seen.phrase(ids)
    share = whole.marked / max(whole.all, 1)
    if whole.all >= MIN_OCCURRENCES and (1 - share if missed else share) >= HIGH_CONFIDENCE:
        here = "marked here" if missed else "not marked here"
        return "label noise suspected", phrase, f"{here}, but in training {_frequency(phrase, whole)}"
    if not missed and score >= HIGH_CONFIDENCE:
        return "label noise suspected", phrase, f"not marked, but the tagger is sure of it ({score:.2f})"
    shares = [(word, seen.word(id)) for word, id in zip(words, ids, strict=True)]
    for word, each in shares:
        if not each.all:
            return "unseen word", word, f"`{word}` is not known from training"
    never = [(word, each) for word, each in shares if not each.marked]
    if never:
        word, each = max(never, key=lambda pair: pair[1].all)
        return "never a keyphrase", word, _frequency(word, each)
    mixed = [(word, each) for word, each in shares if each.marked < each.all]
    if mixed:
        word, each = min(mixed, key=lambda pair: abs(pair[1].marked / pair[1].all - 0.5))
        return "ambiguous word", word, _frequency(word, each)
    return "other", phrase, "; ".join(_frequency(word, each) for word, each in dict(shares).items())


def _frequency(what: str, share: Rate) -> str:
    return f"`{what}`: keyphrase in {share.marked:,} of {share.all:,}"


def _quoted(text: AnnotatedText, spans: list[ScoredSpan]) -> str:
    return " and ".join(f"`{_keyphrase(text, span).text}`" for span in spans)


def _keyphrase(text: AnnotatedText, span: ScoredSpan) -> Keyphrase:
    start, end = text.offsets[span[0]][0], text.offsets[span[1] - 1][1]
    return Keyphrase(text.text[start:end], start, end, span[2])


def _distance(mistake: Mistake) -> float:
    """Return how far the tagger is from the data, in 0 to 1."""
    return mistake.score if mistake.predicted else 1 - mistake.score


def find_errors(
    tagger: Tagger,
    examples: Iterable[Example],
    train: Split,
    device: torch.device,
    subwords: SubwordTokenizer | None = None,
) -> list[Mistake]:
    """Return the mistakes of a tagger, by kind, the most informative of each kind first.

    Args:
        tagger: on the device.
        examples: labeled texts, tokenized by the tagger's tokenizer.
        train: the split that it was trained on.
        device: where to compute.
        subwords: for a tagger with an encoder.
    """
    return classify_errors(_annotated(tagger, examples, device, subwords), train)


def _annotated(
    tagger: Tagger, examples: Iterable[Example], device: torch.device, subwords: SubwordTokenizer | None
) -> Iterator[AnnotatedText]:
    """Yield the texts in which the tagger differs from the data."""
    examples = iter(examples)
    while chunk := list(islice(examples, CHUNK_TEXTS)):
        found: list[tuple[list[ScoredSpan], list[ScoredSpan]]] = [([], []) for _ in chunk]
        split = split_from_examples(chunk, tagger.config.uses_word_features, subwords)
        for rows, batch, logits in predict_batches(tagger, split, device):
            gold = score_tags(logits, batch.lengths, batch.keyphrase.clamp(min=O))
            for side, (spans, scores) in enumerate((gold, predict_spans(logits, batch.lengths))):
                for (row, start, end), score in zip(spans.tolist(), scores.tolist(), strict=True):
                    found[rows[row]][side].append((start, end, score))
        for example, (wanted, has) in zip(chunk, found, strict=True):
            if [span[:2] for span in wanted] != [span[:2] for span in has]:
                yield AnnotatedText(example.text, example.place, example.ids, example.offsets, wanted, has)
