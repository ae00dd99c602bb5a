import random

import pytest
from helpers import any_texts, trained_tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.data.characters import is_ignorable
from model.data.tokenizer import PAD, UNKNOWN, CachedTokenizer, encode, new_tokenizer, parse_tokenizer
from model.errors import UserError


def split(text: str) -> list[str]:
    [tokens] = encode(new_tokenizer(), [text])
    return [text[start:end] for start, end in tokens.offsets]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "What a match by Roger Federer tonight!!!",
            ["What", "a", "match", "by", "Roger", "Federer", "tonight", "!!!"],
        ),
        ("don't anti-spam q&a d’accord", ["don't", "anti-spam", "q&a", "d’accord"]),
        ("see https://t.co/a?b=c @rog_f www.x.org now", ["see", "https://t.co/a?b=c", "@rog_f", "www.x.org", "now"]),
        ("HTTP://X.org/y @A", ["HTTP://X.org/y", "@A"]),
        (
            "$AAPL up 3.5m, U.S. 10:30 ... :) note:please",
            ["$AAPL", "up", "3.5m", ",", "U.S.", "10:30", "...", ":)", "note", ":", "please"],
        ),
        ("<url> <user> #NFL", ["<url>", "<user>", "#", "NFL"]),
        ("👨‍👩‍👧‍👦 go 😀😀", ["👨‍👩‍👧‍👦", "go", "😀😀"]),
        ("שלום עולם", ["שלום", "עולם"]),
        ("e\u0301cole İstanbul", ["e\u0301cole", "İstanbul"]),
        ("mail me@x.org", ["mail", "me", "@", "x", ".", "org"]),
        ("ᩕ@0", ["ᩕ", "@", "0"]),
        ("今日はPythonを学ぶ。2024年", ["今", "日", "は", "Python", "を", "学", "ぶ", "。", "2024", "年"]),
        ("スーパー 𠮷野家", ["ス", "ー", "パ", "ー", "𠮷", "野", "家"]),
        ("กำลังที่ ๑๒๓ข", ["กำ", "ลั", "ง", "ที่", "๑๒๓", "ข"]),
        ("ຂ້ອຍ ខ្ញុំ မြန်မာ", ["ຂ້", "ອ", "ຍ", "ខ្", "ញុំ", "မြ", "န်", "မ", "ာ"]),
        (
            "대한민국은 \u1112\u1161\u11ab \u1112\u1161\u11ab글",
            ["대한민국은", "\u1112\u1161\u11ab", "\u1112\u1161\u11ab글"],
        ),
        ("か\u3099くせい cafe\u0301 e\u0301@ann", ["か\u3099", "く", "せ", "い", "cafe\u0301", "e\u0301", "@", "ann"]),
        ("谢谢@ann的票 谢谢@小明 你", ["谢", "谢", "@ann", "的", "票", "谢", "谢", "@小明", "你"]),
        (
            "key\xadphrase\xad می\u200cخواهم state‑of‑the‑art",
            ["key\xadphrase\xad", "می\u200cخواهم", "state‑of‑the‑art"],
        ),
        ("<@ann> << .\u200d@ann <http://x.org>", ["<", "@ann", ">", "<<", ".", "\u200d", "@ann", "<", "http://x.org>"]),
        ("http://x.org/cafe\u0301 हिन्दी", ["http://x.org/cafe\u0301", "हिन्दी"]),
        ("", []),
        ("  \t \xad", []),
    ],
)
def test_words_and_their_places(text: str, words: list[str]):
    assert split(text) == words


RULES = new_tokenizer()


@settings(deadline=None)
@given(any_texts())
@example("’İ and $İ")
def test_tokens_cover_the_text_in_order(text: str):
    [tokens] = encode(RULES, [text])
    end_before = 0
    for start, end in [*tokens.offsets, (len(text), len(text))]:
        assert end_before <= start <= end <= len(text)
        assert all(char.isspace() or is_ignorable(char) for char in text[end_before:start])
        assert start == end == len(text) or text[start:end].strip(" \t\r\n")
        end_before = end


def test_vocabulary_is_lower_case_counts_frequency_and_rewrites_links():
    texts = ["Storm storm STORM rain", "rain https://t.co/x @ann", "once http://y @bob"]
    tokenizer = trained_tokenizer(texts, min_frequency=2)
    vocabulary = tokenizer.get_vocab()
    assert set(vocabulary) == {"<pad>", "<unk>", "storm", "rain", "<url>", "<user>"}
    assert sorted(vocabulary.values()) == list(range(6))
    [tokens] = encode(tokenizer, ["Rain once https://other @carl"])
    assert tokens.ids == [vocabulary["rain"], UNKNOWN, vocabulary["<url>"], vocabulary["<user>"]]


def test_the_special_words_of_a_text_are_no_special_words():
    tokenizer = trained_tokenizer(["a <pad> <unk> b <url>"] * 3)
    ids = tokenizer.get_vocab()
    assert ids["<pad>"] == PAD and ids["<unk>"] == UNKNOWN and len(set(ids.values())) == len(ids)
    [tokens] = encode(tokenizer, ["<pad> <unk>"])
    assert PAD not in tokens.ids and len(tokens.ids) == 6


NASTY = [
    *"aBz09_ .,!#$%&'()*-/:;<=>@[]^`{|}~\t\r\x1c\x85\xa0\u2028\u3000",
    *"ΣσςßẞİıſKÅéﬁǅ½²٣अ\u094d한ᄒ\u1161\u11ab\u0301\u0323\u0327\u200d\ufe0f👨👩😀🇩🇪’‘שא",
    *["http://", "HTTPS://x", "httpſ://x", "www.", "t.co/x", "@a", "@Ann_b", "<url>", "<user>", "<pad>", "<unk>", "<<"],
    *["u.s.", "U.S.", "$a", ":)", ":d", "...", "3.5m", "10:30", "don't", "ΟΔΟΣ", " ", " ", "  "],
]


def same_as_the_library(texts: list[str]) -> None:
    """Check that the cached tokenizer finds the words and offsets that `encode` finds, when every word is known."""
    words: dict[str, int] = {"<pad>": 0, "<unk>": 1}
    tokenized = CachedTokenizer(lambda word: words.setdefault(word, len(words)))(texts)
    assert tokenized.begins[0] == 0 and tokenized.begins[-1] == len(tokenized.ids) == len(tokenized.starts) == len(
        tokenized.ends
    )
    for i, tokens in enumerate(encode(new_tokenizer(words), texts)):
        of_text = slice(tokenized.begins[i], tokenized.begins[i + 1])
        found = list(zip(tokenized.starts[of_text].tolist(), tokenized.ends[of_text].tolist(), strict=True))
        assert (tokenized.ids[of_text].tolist(), found) == (tokens.ids, tokens.offsets), texts[i]
        assert UNKNOWN not in tokens.ids


def test_the_cached_tokenizer_equals_the_library_on_nasty_texts():
    rng = random.Random(0)
    same_as_the_library(["".join(rng.choices(NASTY, k=rng.randrange(14))) for _ in range(10_000)])


@settings(deadline=None)
@given(st.lists(any_texts(), min_size=1, max_size=4))
def test_the_cached_tokenizer_equals_the_library_on_any_texts(texts: list[str]):
    same_as_the_library(texts)


@pytest.mark.parametrize(("name", "limit"), [("CHUNKS", 4), ("CHARACTERS", 14)])
def test_the_cached_tokenizer_clears_its_cache(monkeypatch: pytest.MonkeyPatch, name: str, limit: int):
    monkeypatch.setattr(f"model.data.tokenizer._CACHED_{name}", limit)
    words: dict[str, int] = {}
    tokenize = CachedTokenizer(lambda word: words.setdefault(word, len(words)))
    first = tokenize(["one two", "three  four"])
    assert len(tokenize._chunk_ids) == 5
    again = tokenize(["four", "one two"])
    assert len(tokenize._chunk_ids) == 3
    assert words == {"one": 0, "two": 1, "three": 2, "four": 3}
    assert first.ids.tolist() == [0, 1, 2, 3] and again.ids.tolist() == [3, 0, 1] and again.begins.tolist() == [0, 1, 3]


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"version": "1.0"'])
def test_a_damaged_tokenizer_is_refused(content: bytes):
    with pytest.raises(UserError, match=r"here\.json"):
        parse_tokenizer(content, "here.json")
