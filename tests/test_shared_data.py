"""Public collections as they lie: every format prepares without a file being edited. Skipped where they are absent."""

import json
from pathlib import Path

import pytest
from helpers import SHARED, SMALL

from model.config import TaggerConfig
from model.data.dataset import Dataset
from model.inference.extractor import Extractor
from model.network.tagger import new_tagger
from model.prepare.builder import PrepareConfig, prepare

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the collections are not at {SHARED}")

SETS = {
    "tweets": ("train.tsv", "valid.tsv", "test.tsv", 10722),
    "inspec": ("train.jsonl", "valid.jsonl", "test.jsonl", 997),
    "semeval2017": ("train.jsonl", "valid.jsonl", "test.jsonl", 345),
    "wnut17": ("train.conll", "dev.conll", "test.conll", 3394),
}


def info_count(info: dict, reason: str) -> int:
    return sum(split["skipped"].get(reason, 0) for split in info["splits"].values())


def dataset_of(name: str, out: Path) -> Dataset:
    train, valid, test, _ = SETS[name]
    prepare(
        PrepareConfig([str(SHARED / name / train)], str(out), [str(SHARED / name / valid)], [str(SHARED / name / test)])
    )
    return Dataset(str(out))


@pytest.mark.parametrize("name", SETS)
def test_a_collection_prepares_as_it_lies(name: str, tmp_path: Path):
    dataset = dataset_of(name, tmp_path / "d")
    assert dataset.rows("train") == SETS[name][3]
    if name in ("tweets", "wnut17"):
        assert dataset.info["splits"]["train"]["skipped"] == {}


def test_tags_as_keyphrases_are_mostly_not_in_their_texts(tmp_path: Path):
    info = prepare(PrepareConfig([str(SHARED / "stackexchange" / "train.jsonl")], str(tmp_path / "d")))
    assert sum(split["rows"] for split in info["splits"].values()) == 4945 - info_count(
        info, "text with no keyphrase left"
    )
    assert info_count(info, "keyphrase not in its text") > 6000


def test_raw_tweets_become_examples_by_the_papers_rule(tmp_path: Path):
    info = prepare(PrepareConfig([str(SHARED / "tweets" / "raw_sample.jsonl")], str(tmp_path / "d")))
    assert sum(split["rows"] for split in info["splits"].values()) == 499
    assert info["splits"]["train"]["skipped"]["more than one hashtag"] == 1097


def test_extraction_from_real_tweets_gives_substrings(tmp_path: Path):
    dataset = dataset_of("tweets", tmp_path / "d")
    extractor = Extractor(new_tagger(TaggerConfig(**SMALL), dataset.info["words"], 0), dataset.tokenizer())
    raw = (
        (SHARED / "tweets" / "raw_sample.jsonl").read_text("utf-8").strip().split("\n")
    )  # a tweet may hold U+2028, a line end to splitlines
    texts = [json.loads(line)["text"] for line in raw]
    found = list(extractor.pipe(texts))
    assert sum(map(len, found)) > 1000  # untrained, it finds much and wrongly: all the better for this
    for text, keyphrases in zip(texts, found, strict=True):
        assert all(text[each.start : each.end] == each.text for each in keyphrases)
