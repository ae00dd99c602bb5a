"""Words as sub-words: alignment, windows over long texts, characters that a tokenizer drops."""

import pickle
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from encoders import KINDS, tiny_encoder
from tokenizers import Tokenizer

from model.data.batching import padded
from model.data.subword_batches import subword_batch
from model.data.subwords import Subwords, SubwordTokenizer
from model.data.tokenizer import CachedTokenizer

TEXTS = [
    "What a match by Roger Federer tonight!!!",
    "don't #StopTheWar @user1 https://t.co/abc, 3.5m",
    "Grüße aus São Paulo 🙏🏽 日本語テスト",
    "[SEP] <s> [MASK] as text",
    "word " * 150,
]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SubwordTokenizer:
    folder = tiny_encoder(tmp_path_factory.mktemp("encoder") / request.param, request.param)
    return SubwordTokenizer(Tokenizer.from_file(f"{folder}/tokenizer.json"), 40, 0)


def tokenized(tokenizer: SubwordTokenizer, texts: list[str]) -> tuple[Subwords, CachedTokenizer]:
    words = CachedTokenizer(lambda word: len(word) + 2)(texts)
    return tokenizer(texts, words.starts, words.ends, words.begins), words


def batch_of(subwords: Subwords, words: CachedTokenizer):
    lengths = np.diff(words.begins)
    ids = padded(words.ids, words.begins[:-1], lengths, 0)
    return subword_batch(subwords, ids, lengths), ids


def test_each_word_has_the_subwords_that_share_a_character_with_it(tokenizer: SubwordTokenizer):
    subwords, words = tokenized(tokenizer, TEXTS)
    for text in range(len(TEXTS)):
        encoding = tokenizer._tokenizer.encode(TEXTS[text], add_special_tokens=False)
        read = subwords.ids[subwords.begins[text] : subwords.ends[text]].tolist()
        assert read == encoding.ids[: len(read)] and len(read) >= len(encoding.ids) - TEXTS[text].endswith(" ")
        for word in range(words.begins[text], words.begins[text + 1]):
            wanted = {
                i
                for i, (start, end) in enumerate(encoding.offsets)
                if start < words.ends[word] and end > words.starts[word]
            }
            first, last = subwords.firsts[word] - subwords.begins[text], subwords.lasts[word] - subwords.begins[text]
            assert set(range(first, last)) >= wanted and last > first
            # Where sub-words of one character have the same offsets, no search can leave some of them out.
            assert set(range(first, last)) == wanted


def test_a_dropped_character_has_the_placeholder(tmp_path: Path):
    folder = tiny_encoder(tmp_path / "bert", "bert")
    tokenizer = SubwordTokenizer(Tokenizer.from_file(f"{folder}/tokenizer.json"), 40, 0)
    texts = ["storm \x01 \x02 in Paris", "\x01", "fine"]
    subwords, words = tokenized(tokenizer, texts)
    unknown = tokenizer._tokenizer.token_to_id("[UNK]")
    assert len(words.ids) == 7 and (subwords.lasts > subwords.firsts).all()
    for word in (1, 2, 5):
        assert subwords.ids[subwords.firsts[word] : subwords.lasts[word]].tolist() == [unknown]
    assert subwords.begins.tolist() == [0, *subwords.ends[:-1]] and subwords.ends[-1] == len(subwords.ids)
    storm = tokenizer._tokenizer.encode("in", add_special_tokens=False).ids
    assert subwords.ids[subwords.firsts[3] : subwords.lasts[3]].tolist() == storm


def test_spaces_around_a_text_are_no_part_of_it(tokenizer: SubwordTokenizer):
    subwords, _ = tokenized(tokenizer, ["", "  storm in Leeds \n", " "])
    assert subwords.begins[1] == subwords.firsts[0] and subwords.ends[1] == subwords.lasts[2]
    assert subwords.lengths.tolist() == [0, subwords.lasts[2] - subwords.firsts[0], 0]


def test_every_subword_is_read_once_from_a_window_with_context(tokenizer: SubwordTokenizer):
    subwords, words = tokenized(tokenizer, TEXTS)
    batch, _ = batch_of(subwords, words)
    layout = tokenizer.layout
    assert batch.ids.shape[1] <= 40 and len(batch.ids) > len(TEXTS)  # the longest text has several windows
    flat, row, column = batch.ids.flatten(), batch.places // batch.ids.shape[1], batch.places % batch.ids.shape[1]
    pieces = np.concatenate([np.arange(a, b) for a, b in zip(subwords.firsts, subwords.lasts, strict=True)])
    assert flat[batch.places].tolist() == subwords.ids[pieces].tolist()
    assert (batch.mask.flatten()[batch.places] == 1).all()
    # In the middle of a long text each sub-word has neighbours on both sides.
    long = [i for i, piece in enumerate(pieces) if subwords.begins[-1] + 12 < piece < subwords.ends[-1] - 12]
    reach = layout.overlap // 2 - 1
    assert min(column[long]) >= len(layout.prefix) + reach
    assert max(column[long]) <= len(layout.prefix) + layout.size - 1 - reach
    assert len(set(row[long].tolist())) > 2
    sizes = batch.mask.sum(1)
    for i in range(len(batch.ids)):
        assert tuple(batch.ids[i, : len(layout.prefix)].tolist()) == layout.prefix
        assert tuple(batch.ids[i, sizes[i] - len(layout.suffix) : sizes[i]].tolist()) == layout.suffix


def test_some_texts_of_a_split_have_the_same_subwords(tokenizer: SubwordTokenizer):
    subwords, words = tokenized(tokenizer, TEXTS)
    rows = np.array([2, 0])
    begins, lengths = words.begins[rows], np.diff(words.begins)[rows]
    ids = padded(words.ids, begins, lengths, 0)
    some = subword_batch(subwords.of_rows(rows, begins, lengths), ids, lengths)
    alone, other = tokenized(tokenizer, [TEXTS[2], TEXTS[0]])
    expected, _ = batch_of(alone, other)
    assert all(torch.equal(one, two) for one, two in zip(some, expected, strict=True))


def test_words_outside_the_vocabulary_have_keys_of_their_own(tokenizer: SubwordTokenizer):
    words = CachedTokenizer(lambda word: 5 if word == "storm" else 1)(["storm Zyx storm Qwv Zyx"])
    subwords = tokenizer(["storm Zyx storm Qwv Zyx"], words.starts, words.ends, words.begins)
    [keys] = batch_of(subwords, words)[0].word_keys.tolist()
    assert keys[0] == keys[2] == 5 and keys[1] == keys[4] != keys[3] and keys[3] > 2**62


def test_words_of_other_subwords_have_other_keys(tokenizer: SubwordTokenizer):
    text = " ".join(map("".join, product("abcdefghij", repeat=3)))
    words = CachedTokenizer(lambda word: 1)([text])
    subwords = tokenizer([text], words.starts, words.ends, words.begins)
    of_words = {subwords.ids[a:b].tobytes() for a, b in zip(subwords.firsts, subwords.lasts, strict=True)}
    assert batch_of(subwords, words)[0].word_keys.unique().numel() == len(of_words) > 900


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_special_tokens_in_a_text_are_text(kind: str, tmp_path: Path):
    folder = tiny_encoder(tmp_path / kind, kind)
    tokenizer = SubwordTokenizer(Tokenizer.from_file(f"{folder}/tokenizer.json"), 40, 0)
    special = {tokenizer._tokenizer.token_to_id(each) for each in ("[SEP]", "</s>", "[MASK]", "[CLS]")} - {None}
    for each in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):  # the copy of a worker
        subwords, _ = tokenized(each, ["[SEP] </s> [MASK]"])
        assert special and not special & set(subwords.ids.tolist())
