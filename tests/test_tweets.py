"""The built-in corpus has the promised shape and cannot be solved by remembering its training keyphrases."""

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter

import pytest
from helpers import trained_tokenizer

from jobs.corpora.english import DOMAINS
from jobs.corpora.tweets import TOKEN, GeneratedText, generate
from model.config import TaggerConfig, TrainingConfig
from model.data.dataset import split_from_examples
from model.data.examples import examples
from model.data.labeled_text import LabeledText, SkipCounts
from model.network.tagger import new_tagger
from model.training.evaluation import evaluate
from model.training.loop import Training
from model.training.metrics import summarize

Run = tuple[str, ...]  # lower-case tokens in a row


@pytest.fixture(scope="module")
def corpus() -> dict[str, list[GeneratedText]]:
    return generate()


def tokens(text: str) -> Run:
    return tuple(TOKEN.findall(text.lower()))


def keyphrases(texts: list[GeneratedText]) -> list[Run]:
    return [tokens(one.text[start:end]) for one in texts for start, end in one.spans]


def gold_runs(labeled: GeneratedText) -> set[tuple[int, int]]:
    """The keyphrases as half-open token positions."""
    found = list(TOKEN.finditer(labeled.text))
    starts = {token.start(): at for at, token in enumerate(found)}
    ends = {token.end(): at + 1 for at, token in enumerate(found)}
    return {(starts[start], ends[end]) for start, end in labeled.spans}


def longest_matches(text: Run, known: set[Run]) -> list[tuple[int, int]]:
    """Token positions of known keyphrases, left to right, the longest first, without overlap."""
    longest = max(map(len, known))
    matches, at = [], 0
    while at < len(text):
        lengths = (n for n in range(min(longest, len(text) - at), 0, -1) if text[at : at + n] in known)
        length = next(lengths, 0)
        if length:
            matches.append((at, at + length))
        at += length or 1
    return matches


def lookup_f1(known: set[Run], test: list[GeneratedText]) -> float:
    """Exact-span micro F1 of marking every known keyphrase."""
    hits = marked = gold = 0
    for one in test:
        predicted, wanted = set(longest_matches(tokens(one.text), known)), gold_runs(one)
        hits, marked, gold = hits + len(predicted & wanted), marked + len(predicted), gold + len(wanted)
    return 2 * hits / (marked + gold)


def test_same_seed_gives_the_same_texts() -> None:
    assert generate(500, seed=3) == generate(500, seed=3)
    assert generate(500, seed=3) != generate(500, seed=4)


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_texts_do_not_depend_on_the_hash_seed(hash_seed: str) -> None:
    code = "import hashlib; from jobs.corpora.tweets import generate; "
    code += "print(hashlib.sha256(repr(generate(300, 5)).encode()).hexdigest())"
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == hashlib.sha256(repr(generate(300, 5)).encode()).hexdigest()


def test_splits_have_their_shares_and_no_text_twice(corpus: dict[str, list[GeneratedText]]) -> None:
    sizes = {split: len(texts) for split, texts in corpus.items()}
    assert sizes == {"train": 16_800, "valid": 2_400, "test": 4_800}
    assert sum(sizes.values()) >= 20_000
    assert len({one.text.lower() for texts in corpus.values() for one in texts}) > 0.999 * sum(sizes.values())


def test_spans_are_sorted_and_on_token_boundaries(corpus: dict[str, list[GeneratedText]]) -> None:
    for one in (one for texts in corpus.values() for one in texts):
        assert len(gold_runs(one)) == len(one.spans)  # a KeyError here is a span off the token boundaries
        edges = [edge for span in one.spans for edge in span]
        assert edges == sorted(edges)
        assert all(start < end <= len(one.text) for start, end in one.spans)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_texts_are_shaped_like_tweets(corpus: dict[str, list[GeneratedText]], split: str) -> None:
    texts = corpus[split]
    lengths = sorted(len(tokens(one.text)) for one in texts)
    assert sum(lengths) / len(lengths) == pytest.approx(21, abs=1)
    assert 9 <= lengths[len(lengths) // 20] <= 13
    assert 34 <= lengths[-len(lengths) // 20] <= 42
    phrases = keyphrases(texts)
    assert sum(len(phrase) == 1 for phrase in phrases) / len(phrases) == pytest.approx(0.55, abs=0.03)
    counts = Counter(len(one.spans) for one in texts)
    assert set(counts) == {0, 1, 2}
    assert 0 < counts[0] / len(texts) < 0.02  # dropped by the label noise
    assert 0.3 < counts[2] / len(texts) < 0.5


def test_nearly_half_of_the_test_keyphrases_are_unseen(corpus: dict[str, list[GeneratedText]]) -> None:
    known = set(keyphrases(corpus["train"]))
    wanted = keyphrases(corpus["test"])
    assert sum(phrase not in known for phrase in wanted) / len(wanted) == pytest.approx(0.45, abs=0.03)


def test_ambiguous_words_are_keyphrases_in_some_texts_only(corpus: dict[str, list[GeneratedText]]) -> None:
    labeled, all_words = Counter[str](), Counter[str]()
    for one in corpus["train"]:
        all_words.update(tokens(one.text))
        labeled.update(tokens(" ".join(one.text[start:end] for start, end in one.spans)))
    for word in re.findall(r"\w+", " ".join(domain.ambiguous for domain in DOMAINS.values())):
        assert labeled[word] >= 5
        assert all_words[word] - labeled[word] >= 5


def test_lookup_of_training_keyphrases_fails(corpus: dict[str, list[GeneratedText]]) -> None:
    known = Counter(keyphrases(corpus["train"]))
    assert lookup_f1(set(known), corpus["test"][:1200]) < 0.60


def test_lookup_of_the_mostly_labeled_training_keyphrases_fails(corpus: dict[str, list[GeneratedText]]) -> None:
    known = Counter(keyphrases(corpus["train"]))
    longest = max(map(len, known))
    seen: Counter[Run] = Counter()
    for text in (tokens(one.text) for one in corpus["train"]):
        runs = (text[at : at + n] for at in range(len(text)) for n in range(1, min(longest, len(text) - at) + 1))
        seen.update(run for run in runs if run in known)
    reliable = {phrase for phrase in known if known[phrase] >= 0.5 * seen[phrase]}
    assert lookup_f1(reliable, corpus["test"][:1200]) < 0.60


def test_a_good_model_passes_and_settings_matter(corpus: dict[str, list[GeneratedText]]) -> None:
    sizes = {"train": 2000, "valid": 100, "test": 600}
    config = TaggerConfig(
        embedding_dim=100, keyword_hidden=100, keyphrase_hidden=100
    )  # a third, and four times as fast

    def labeled(split: str) -> list[LabeledText]:
        return [LabeledText(text.text, "here:1", tuple(text.spans)) for text in corpus[split][: sizes[split]]]

    tokenizer = trained_tokenizer((text.text for text in labeled("train")), min_frequency=2)
    splits = {split: split_from_examples(examples(labeled(split), tokenizer, SkipCounts(), 1000)) for split in corpus}

    def f1(**settings: float) -> float:
        tagger = new_tagger(config, tokenizer.get_vocab_size(), seed=0)
        training = Training(TrainingConfig(**settings), tagger, splits["train"], splits["valid"])
        list(training.epochs())
        return summarize(evaluate(tagger, splits["test"], training.device).counts)["keyphrase_f1"]

    assert f1(epochs=3, lr=3e-3) > 0.70  # of 2,000 texts; 0.94 of all of them after five epochs, in full size
    assert f1(epochs=1, lr=1e-5) < 0.40
