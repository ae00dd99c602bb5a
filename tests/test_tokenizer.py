import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import UserError
from model.tokenizer import PAD, UNKNOWN, encode, new_tokenizer, parse_tokenizer, train_tokenizer


def cut(text: str) -> list[str]:
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
        ("", []),
        ("  \t ", []),
    ],
)
def test_words_and_their_places(text: str, words: list[str]):
    assert cut(text) == words


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_offsets_cover_every_sign_in_order(text: str):
    [tokens] = encode(new_tokenizer(), [text])
    end_before = 0
    for start, end in tokens.offsets:
        assert end_before <= start < end <= len(text)
        assert text[start:end].strip(" \t\r\n")
        end_before = end


def test_vocabulary_is_lower_case_counts_frequency_and_rewrites_links():
    texts = ["Storm storm STORM rain", "rain https://t.co/x @ann", "once http://y @bob"]
    tokenizer = train_tokenizer(texts, min_frequency=2, max_words=100)
    vocabulary = tokenizer.get_vocab()
    assert set(vocabulary) == {"<pad>", "<unk>", "storm", "rain", "<url>", "<user>"}
    assert sorted(vocabulary.values()) == list(range(6))
    [tokens] = encode(tokenizer, ["Rain once https://other @carl"])
    assert tokens.ids == [vocabulary["rain"], UNKNOWN, vocabulary["<url>"], vocabulary["<user>"]]


def test_the_special_words_of_a_text_are_no_special_words():
    tokenizer = train_tokenizer(["a <pad> <unk> b <url>"] * 3, 1, 100)
    ids = tokenizer.get_vocab()
    assert ids["<pad>"] == PAD and ids["<unk>"] == UNKNOWN and len(set(ids.values())) == len(ids)
    [tokens] = encode(tokenizer, ["<pad> <unk>"])
    assert PAD not in tokens.ids and len(tokens.ids) == 6


def test_vocabulary_size_is_limited_to_the_most_frequent():
    tokenizer = train_tokenizer(["a a a b b c"], 1, 4)
    assert set(tokenizer.get_vocab()) == {"<pad>", "<unk>", "a", "b"}


def test_training_is_repeatable():
    texts = [f"word{i % 50} other{i % 7}" for i in range(500)]
    assert train_tokenizer(texts, 1, 1000).to_str() == train_tokenizer(texts, 1, 1000).to_str()


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"version": "1.0"'])
def test_a_damaged_tokenizer_is_refused(content: bytes):
    with pytest.raises(UserError, match=r"here\.json"):
        parse_tokenizer(content, "here.json")
