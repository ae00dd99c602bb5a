import gzip
import hashlib
import json
from pathlib import Path

import pytest
from helpers import refused, trained_tokenizer

from model.data.examples import examples
from model.data.labeled_text import LabeledText, SkipCounts
from model.readers.formats import FORMATS, Format
from model.readers.hashtags import label_by_hashtag, words
from model.readers.head import Head, read_head
from model.readers.options import ReadOptions
from model.readers.readers import Reader, detect_layout, resolve_inputs
from model.shards import Layout, checksum


def read(path: Path, format: str = "auto", **options: bool) -> tuple[list[LabeledText], SkipCounts]:
    skips = SkipCounts()
    return [
        text
        for part in resolve_inputs([str(path)], ReadOptions(format))
        for text in Reader(part, **options).read(skips)
    ], skips


def file(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def marked(path: Path, **options: bool) -> tuple[list[list[str]], dict[str, int]]:
    """The keyphrases of each text as they stand in it, and what was counted."""
    texts, skips = read(path, **options)
    tokenizer = trained_tokenizer(text.text for text in texts)
    found = examples(texts, tokenizer, skips, 1000)
    return [[e.text[e.offsets[a][0] : e.offsets[b - 1][1]] for a, b in e.spans] for e in found], skips.counts


def test_tsv_marks_the_first_occurrence(tmp_path: Path):
    path = file(
        tmp_path, "a.tsv", "Storm now, storm later\tstorm\nred car and big dog\tbig dog; red car\nnothing here\t\n"
    )
    assert marked(path) == ([["Storm"], ["red car", "big dog"], []], {})


def test_jsonl_keyphrases_mark_every_occurrence(tmp_path: Path):
    path = file(tmp_path, "a.jsonl", '{"text": "Storm now,\\nstorm  later", "keyphrases": ["storm", "storm  later"]}\n')
    found, counts = marked(path)
    assert found == [["Storm", "storm  later"]] and counts == {"span inside or across a longer one": 1}


def test_jsonl_spans_win_and_are_widened_to_tokens(tmp_path: Path):
    line = {"text": "anti-spam acts now", "spans": [[5, 9], [10, 14]], "keyphrases": ["now"]}
    found, counts = marked(file(tmp_path, "a.jsonl", json.dumps(line)))
    assert found == [["anti-spam", "acts"]] and counts == {"span widened to whole tokens": 1}


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("O B-x I-x O B", ["b c", "e"]),
        ("S O B I E", ["a", "c d e"]),
        ("I O I I B-y", ["a", "c d", "e"]),  # IOB1: a phrase may begin with I
        ("U-x O B-x L-x O", ["a", "c d"]),
        ("B E B E S", ["a b", "c d", "e"]),
    ],
)
def test_conll(tmp_path: Path, tags: str, spans: list[str]):
    rows = "\n".join(f"{token}\t{tag}" for token, tag in zip("abcde", tags.split(), strict=True))
    found, _ = marked(file(tmp_path, "a.conll", f"-DOCSTART-\tO\n\n{rows}\n\n{rows}"))
    assert found == [spans, spans]


def test_conll_tokens_keep_their_places(tmp_path: Path):
    [text], _ = read(file(tmp_path, "a.conll", "vodka\tB\n's\tO\ngood\tO\n"))
    assert (text.text, text.spans) == ("vodka 's good", ((0, 5),))


def test_what_is_left_out_is_counted_with_its_lines(tmp_path: Path):
    lines = ["one two\ttwo", "one two\tthree", "one two\ttwo;four", "x " * 1001 + "end\tend"]
    path = file(tmp_path, "a.tsv", "\n".join(lines))
    texts, skips = read(path)
    found = list(examples(texts, trained_tokenizer(["one"]), skips, 1000))
    assert [e.place for e in found] == [f"{path}:1", f"{path}:3"]
    assert skips.counts == {
        "keyphrase not in its text": 2,
        "text with no keyphrase left": 1,
        "text longer than 1000 tokens": 1,
    }
    assert skips.places["keyphrase not in its text"] == [f"{path}:2", f"{path}:3"]


def test_a_keyphrase_must_be_whole_words(tmp_path: Path):
    found, counts = marked(file(tmp_path, "a.tsv", "the database\tbase\n"))
    assert found == [] and counts["keyphrase not in its text"] == 1


@pytest.mark.parametrize(
    ("content", "format"),
    [
        ("a text\tphrase\nother\tx\n", "tsv"),
        ("a text without a tab\na text\tx\nother\tx\n", "tsv"),
        ('{"text": "a", "keyphrases": []}', "jsonl"),
        ('{"text": "a", "spans": []}', "jsonl"),
        ('{"text": "a #b c"}', "raw"),
        ("a #b c\n", "raw"),
        ("a\tO\nb\tB-x\n\nc\tQ\n", "conll"),
        ("a O\nb B\n", "conll"),
        ("\ufeffa text\tphrase\r\n", "tsv"),
    ],
)
def test_the_format_is_detected_from_the_content(tmp_path: Path, content: str, format: str):
    assert detect_layout(read_head(str(file(tmp_path, "a.txt", content)))).format == format


def test_a_format_is_added_by_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def detect(head: Head, options: ReadOptions) -> Layout | None:
        return head.layout._replace(format="triple", blocks=True) if head.lines[1] == "==" else None

    def parse(lines: list[tuple[str, str]], place: str, layout: Layout, skips: SkipCounts) -> LabeledText:
        text, _, phrase = (line for _, line in lines)
        return LabeledText(text, place, keyphrases=(phrase,))

    monkeypatch.setitem(FORMATS, "triple", Format("triple", detect, parse))
    content = "a red car\n==\nred car\n\nbig dog\n==\ndog\n"
    assert marked(file(tmp_path, "a.txt", content)) == ([["red car"], ["dog"]], {})


def test_gzip_globs_bom_and_windows_line_ends(tmp_path: Path):
    (tmp_path / "1.tsv.gz").write_bytes(gzip.compress("\ufeffred car\tcar\r\n".encode()))
    (tmp_path / "2.tsv.gz").write_bytes(gzip.compress(b"big dog\tdog\r\n\r\n"))
    found = [text for part in resolve_inputs([f"{tmp_path}/*.gz"]) for text in Reader(part).read(SkipCounts())]
    assert [(text.text, text.keyphrases) for text in found] == [("red car", ("car",)), ("big dog", ("dog",))]


def test_a_checksum_is_of_the_unpacked_content(tmp_path: Path):
    content = b"a b\tb\n\nc d\td\n"
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(content))
    file(tmp_path, "a.tsv", content)
    for part in resolve_inputs([f"{tmp_path}/a.*"]):
        assert checksum(part) == (13, hashlib.sha256(content).hexdigest())


BAD_LINES = [
    ("tsv", "good\tgood\ntwo\ttabs\there\nfine\tfine\n", 2, "2 tabs"),
    ("tsv", "a\tb\tc\nx y\ty\n", 1, "2 tabs"),
    ("tsv", "x y\ty\n\ty\n", 2, "empty"),
    ("tsv", b"x y\ty\n\xff\xfe y\ty\n", 2, "not UTF-8"),
    ("tsv", "x y\ty\nx \x00 y\ty\n", 2, "NUL"),
    ("jsonl", '{"text": "a", "keyphrases": []}\n{"text": "a", \n', 2, "not JSON"),
    ("jsonl", '{"text": "a", "keyphrases": []}\n[1]\n', 2, "not a JSON object"),
    ("jsonl", '{"text": "a", "keyphrases": [{}]}\n', 1, "keyphrases"),
    ("jsonl", '{"text": "a", "keyphrases": []}\n{text: "a"}\n', 2, "not JSON"),
    ("jsonl", '{"keyphrases": ["a"]}\n', 1, "text"),
    ("jsonl", '{"text": "", "keyphrases": ["a"]}\n', 1, "empty"),
    ("jsonl", '{"text": "abc", "spans": [[1, 4]]}\n', 1, "out of range"),
    ("jsonl", '{"text": "abc", "spans": [[2, 2]]}\n', 1, "out of range"),
    ("jsonl", '{"text": "abc", "spans": [[-1, 2]]}\n', 1, "out of range"),
    ("jsonl", '{"text": "abc", "spans": [["0", 2]]}\n', 1, "whole numbers"),
    ("jsonl", '{"text": "abc", "spans": {}}\n', 1, "not a list"),
    ("jsonl", '{"text": "a\\ud800b", "keyphrases": []}\n', 1, "surrogate"),
    ("jsonl", '{"text": "a", "keyphrases": []}\n{"text": "a", "keyphrases": ["a", "\\ud83d"]}\n', 2, "surrogate"),
    ("jsonl", '{"text": "a", "keyphrases": "a;\\ud83d"}\n', 1, "surrogate"),
    ("csv", 'text,keyphrases\na b,b\na,"[""\\ud83d""]"\nc d,d\n', 3, "surrogate"),
    ("csv", b"text,keyphrases\na b,b\n\xff,b\nc d,d\n", 3, "not UTF-8"),
    ("csv", 'text,keyphrases\na b,b\n"a" b,b\nc d,d\n', 3, "mend its quotes"),
    ("conll", "a\tO\nb\tB\n\nc\tX-y\nd\tO\n", 4, "'X-y'"),
    ("conll", "a\tO\nb\tB\nc\nd\tO\n", 3, "no token and tag"),
]


@pytest.mark.parametrize(("format", "content", "line", "problem"), BAD_LINES)
def test_a_bad_line_is_named_with_its_place(tmp_path: Path, format: str, content: str | bytes, line: int, problem: str):
    path = file(tmp_path, "bad.txt", content)
    refused(lambda: read(path), f"{path}:{line}: ", problem)


@pytest.mark.parametrize("format", ["csv", "jsonl", "tsv", "conll"])
@pytest.mark.parametrize("content", [b"PAR1abc", b"ARROW1\0\0", b"\xff\xff\xff\xff\rI"])
def test_a_binary_table_is_not_read_as_lines(tmp_path: Path, format: str, content: bytes):
    path = str(file(tmp_path, "table", content))
    refused(lambda: resolve_inputs([path], ReadOptions(format)), path, "Parquet or Arrow", "leave --format out")


@pytest.mark.parametrize(("format", "content", "line", "problem"), BAD_LINES)
def test_bad_lines_can_be_skipped_and_are_counted(
    tmp_path: Path, format: str, content: str | bytes, line: int, problem: str
):
    path = file(tmp_path, "bad.txt", content)
    found, skips = read(path, skip_bad_lines=True)
    assert format != "csv" or [labeled.text for labeled in found] == ["a b", "c d"]
    [(reason, count)] = skips.counts.items()
    assert problem in reason and count == 1 and skips.places[reason] == [f"{path}:{line}"]


def test_what_is_almost_json_is_refused_rather_than_read_as_text(tmp_path: Path):
    for line in ("{'text': 'a #tag b', 'keyphrases': []}", '{text: "a #tag b"}'):
        refused(lambda line=line: read(file(tmp_path, "a", f"{line}\n" * 2)), "a:1: ", "not JSON")  # type: ignore[misc]


def test_missing_empty_mixed_and_strange_files_are_refused(tmp_path: Path):
    tsv, jsonl = file(tmp_path, "a.tsv", "x y\ty\n"), file(tmp_path, "b.jsonl", '{"text": "a", "keyphrases": []}\n')
    refused(lambda: read(tmp_path / "none.tsv"), "none.tsv", "no such file")
    refused(lambda: read(tmp_path / "*.nothing"), "no file matches")
    refused(lambda: resolve_inputs([""]), "is empty", "variable")
    refused(lambda: read(tmp_path), "is a directory")
    refused(lambda: read(file(tmp_path, "empty", "\n \n")), "is empty")
    refused(lambda: read(file(tmp_path, "prose", "just words\nand more\n")), "prose:1", "--format")
    refused(lambda: resolve_inputs([str(tsv), str(jsonl)]), "a.tsv is tsv", "b.jsonl is jsonl")
    refused(lambda: resolve_inputs([str(tsv)], ReadOptions("xml")), "xml", "tsv")
    refused(lambda: read(file(tmp_path, "bad.tsv.gz", b"no gzip at all")), "bad.tsv.gz:1", "none of the formats")
    whole = gzip.compress(b"red car\tcar\n" * 5000)
    refused(lambda: read(file(tmp_path, "cut.tsv.gz", whole[: len(whole) // 2]), "tsv"), "cut.tsv.gz", "cannot be read")
    refused(lambda: read("nothing://x/y"), "nothing://")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tweet", "text", "phrase"),
    [
        ("What a day at #Coachella2015 with @ann", "What a day at Coachella 2015 with @ann", "Coachella 2015"),
        ("so #nevertrump again &amp; again", "so never trump again & again", "never trump"),
        ("the #COVID19 rules", "the COVID19 rules", "COVID19"),
        ("big #health_care plan", "big health care plan", "health care"),
    ],
)
def test_a_tweet_with_one_hashtag_inside_is_an_example(tweet: str, text: str, phrase: str):
    made = label_by_hashtag(tweet)
    assert not isinstance(made, str)
    assert (made[0], made[0][slice(*made[1])]) == (text, phrase)


@pytest.mark.parametrize(
    ("tweet", "reason"),
    [
        ("no tag here", "no hashtag"),
        ("a sign in a#word is none", "no hashtag"),
        ("one #a two #b three", "more than one hashtag"),
        ("#first of all", "the hashtag is not inside the text"),
        ("at the #end http://t.co/x @ann", "the hashtag is not inside the text"),
        ("RT @ann: so #good it is", "a retweet"),
        ("we are #1 again", "the hashtag is a number"),
    ],
)
def test_other_tweets_are_not(tweet: str, reason: str):
    assert label_by_hashtag(tweet) == reason


def test_words_of_hashtags():
    assert words("NFLDraft2016") == ["NFL", "Draft", "2016"]
    assert words("Café_Life") == ["Café", "Life"]
    assert words("brexit") == ["brexit"]  # `br exit` would hold a scrap that is no word
    assert words("日本語") == ["日本語"]
