"""Word vectors trained on unlabeled texts, and the words that join the vocabulary with vectors."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from helpers import call, refused

from model.config import TaggerConfig
from model.data.dataset import Dataset
from model.prepare.builder import PrepareConfig, prepare
from model.prepare.vectors import extra_words
from model.prepare.word2vec import PASSES, train_word2vec
from model.readers.readers import unlabeled_inputs

UNLABELED = ["Storms close schools in Leeds", "storms close roads in york", "see http://a.b/c @ann", "", "rare"]


def labeled_file(path: Path) -> str:
    path.write_text("".join(f"rain closes schools in leeds {i}\tleeds\n" for i in range(30)))
    return str(path)


def texts_file(path: Path, times: int = 6) -> str:
    path.write_text("".join(f"{text}\n" for text in UNLABELED[:-1] * times) + UNLABELED[-1] + "\n")
    return str(path)


def prepared(folder: Path, **settings) -> tuple[dict, Dataset, dict[str, int]]:
    """A dataset of a few labeled texts with the settings given: its dataset.json, itself and its words."""
    config = PrepareConfig([labeled_file(folder / "a.tsv")], str(folder / "d"), overwrite=True, **settings)
    info, dataset = prepare(config), Dataset(str(folder / "d"))
    return info, dataset, dataset.tokenizer().get_vocab()


def test_frequent_words_of_unlabeled_texts_join_the_vocabulary_with_vectors(tmp_path: Path):
    path = texts_file(tmp_path / "texts.txt")
    _, _, before = prepared(tmp_path)
    info, dataset, words = prepared(tmp_path, pretrain=[path], vector_size=8)
    table = dataset.vectors()
    assert table is not None and table.shape == (len(words), 8) == (info["words"], 8) and not table[0].any()
    assert {word: words[word] for word in before} == before  # those of training keep their ids
    joined = sorted(set(words) - set(before), key=words.__getitem__)
    assert set(joined[:2]) == {"storms", "close"}  # twice as often as the others; leeds and schools are there already
    assert set(joined[2:]) == {"roads", "york", "see", "<url>", "<user>"}
    vectors = info["vectors"]
    assert vectors["words_joined"] == 7 and vectors["words_covered"] == 10 and vectors["size"] == 8
    train = dataset.load("train")
    assert train.ids.max() < len(before) and 1 not in train.ids


def test_words_that_the_texts_do_not_have_keep_a_random_start(tmp_path: Path):
    path = texts_file(tmp_path / "texts.txt")
    info, dataset, words = prepared(tmp_path, pretrain=[path], vector_size=8, join=0)
    assert "storms" not in words and info["vectors"]["words_joined"] == 0 and info["vectors"]["words_covered"] == 3
    table, trained = dataset.vectors(), train_word2vec(unlabeled_inputs([path]), 8).vectors
    assert table is not None and np.array_equal(table[words["leeds"]], trained["leeds"])
    assert "rain" not in trained and table[words["rain"]].any()
    assert not np.array_equal(table[words["rain"]], table[words["closes"]])


def test_join_and_max_words_bound_the_words_that_join(tmp_path: Path):
    path = texts_file(tmp_path / "texts.txt")
    _, _, words = prepared(tmp_path, pretrain=[path], vector_size=4, join=2)
    assert {"storms", "close"} <= set(words) and "roads" not in words
    _, _, before = prepared(tmp_path)
    _, _, words = prepared(tmp_path, pretrain=[path], vector_size=4, max_words=len(before) + 1)
    assert set(words) - set(before) < {"storms", "close"} and len(words) == len(before) + 1
    _, _, words = prepared(tmp_path, pretrain=[path], vector_size=4, pretrain_frequency=1)
    assert "rare" in words


def test_words_of_a_vectors_file_join_where_they_are_asked_to(tmp_path: Path):
    path = tmp_path / "vectors.txt"
    path.write_text("rain 1 2\nStorm 3 4\nNew_York's 5 6\nstorm 7 8\nnew-york! 1 1\n</s> 1 1\nsnow 9 9\n")
    _, _, words = prepared(tmp_path, vectors=str(path))
    assert "storm" not in words
    info, dataset, words = prepared(tmp_path, vectors=str(path), join=3)
    table = dataset.vectors()
    last = sorted(words, key=words.__getitem__)[-3:]
    assert last == ["storm", "new_york's", "snow"] and info["vectors"]["words_joined"] == 3
    assert table is not None and table[words["storm"]].tolist() == [7, 8] and table[words["snow"]].tolist() == [9, 9]
    assert table[words["rain"]].tolist() == [1, 2]
    assert table[words["new_york's"]].tolist() == [5, 6]  # in the spelling of the file


def test_what_joins_is_what_the_tokenizer_finds():
    class Known:
        index_to_key = ("Red", "two words", "red", "a.b", "U.S.", "@ann", "café", "")

    assert extra_words(Known, ["café"], 10) == {"red": "Red", "u.s.": "U.S.", "<user>": "@ann"}
    assert list(extra_words(Known, ["café"], 2)) == ["red", "u.s."]


def test_the_files_of_every_format_give_their_texts_and_are_recorded(tmp_path: Path):
    contents = {
        "plain.txt": ("red car\nno # mark at all\n", "text"),
        "a.tsv": ("red car\tcar;blue\n", "text"),
        "a.jsonl": ('{"text": "red car", "keyphrases": ["car", "blue"]}\n', "jsonl"),
        "b.jsonl": ('{"text": "red car"}\n', "jsonl"),
        "a.conll": ("red\tO\ncar\tS\n\nred\tO\n", "conll"),
    }
    for name, (content, format) in contents.items():
        path = tmp_path / name
        path.write_text(content * 3)
        done: list[int] = []
        vectors, about = train_word2vec(unlabeled_inputs([str(path)]), 4, min_frequency=1, progress=done.append)
        assert "red" in vectors and "car" in vectors and "blue" not in vectors, name
        [source] = about["sources"]
        assert source["format"] == format and source["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert about["texts"] == source["texts"] and done[0] == about["texts"]
    [first, second] = unlabeled_inputs([str(tmp_path / "*.jsonl")])
    assert first.path.endswith("a.jsonl") and second.path.endswith("b.jsonl")


def test_progress_goes_through_all_passes(tmp_path: Path):
    path = tmp_path / "texts.txt"
    path.write_text("red car\n" * 5000)
    done: list[int] = []
    train_word2vec(unlabeled_inputs([str(path)]), 4, progress=done.append)
    assert done == sorted(done) and 6 * 5000 < done[-1] <= PASSES * 5000


def test_dataset_json_contains_the_pretraining(tmp_path: Path):
    paths = [texts_file(tmp_path / "one.txt"), texts_file(tmp_path / "two.txt", 2)]
    info, _, _ = prepared(tmp_path, pretrain=[str(tmp_path / "*.txt")], vector_size=4)
    assert info == json.loads((tmp_path / "d" / "dataset.json").read_text())
    about = info["vectors"]["pretrained"]
    assert [source["path"] for source in about["sources"]] == paths
    assert about["texts"] == 26 and about["frequency"] == 5 and about["skipped"] == {}
    assert about["tokens"] == 8 * (5 + 5 + 3) + 2


def test_bad_lines_are_refused_or_skipped(tmp_path: Path):
    path = tmp_path / "texts.txt"
    path.write_bytes(b"red car\n" * 5 + b"\xff\xff\n" + b"red car\n")
    refused(lambda: prepared(tmp_path, pretrain=[str(path)]), f"{path}:6", "not UTF-8")
    assert not (tmp_path / "d").exists()
    info, _, _ = prepared(tmp_path, pretrain=[str(path)], vector_size=4, skip_bad_lines=True)
    about = info["vectors"]["pretrained"]
    assert about["texts"] == 6 and list(about["skipped"].values()) == [1]
    assert list(about["skipped_places"].values()) == [[f"{path}:6"]]


def test_what_contradicts_itself_is_refused_before_anything_is_read(tmp_path: Path):
    path, out = texts_file(tmp_path / "texts.txt"), str(tmp_path / "d")

    def config(**settings) -> PrepareConfig:
        return PrepareConfig([labeled_file(tmp_path / "a.tsv")], out, **settings)

    never = pytest.fail
    for settings, parts in (
        ({"pretrain": [path], "vectors": "glove.txt"}, ("--pretrain and --vectors", "leave one")),
        ({"vector_size": 8}, ("--vector-size 8", "--pretrain")),
        ({"vectors": path, "pretrain_frequency": 3}, ("--pretrain-frequency 3", "--pretrain")),
        ({"join": 5}, ("--join 5", "--vectors")),
        ({"pretrain": [str(tmp_path / "none")]}, ("none", "no such file")),
        ({"vectors": str(tmp_path / "none")}, ("none", "no such file")),
    ):
        refused(lambda settings=settings: prepare(config(**settings), never), *parts)  # type: ignore[misc]
    (tmp_path / "empty.txt").write_text("\n\n")
    refused(lambda: prepare(config(pretrain=[str(tmp_path / "empty.txt")]), never), "empty.txt: is empty")
    (tmp_path / "seldom.txt").write_text("all words once\n")
    refused(lambda: prepare(config(pretrain=[str(tmp_path / "seldom.txt")])), "no word occurs 5 times")
    assert not Path(out).exists()


def test_the_vectors_have_the_size_of_the_taggers_embedding(tmp_path: Path):
    info, _, _ = prepared(tmp_path, pretrain=[texts_file(tmp_path / "texts.txt")])
    assert info["vectors"]["size"] == TaggerConfig().embedding_dim


def test_two_processes_prepare_the_same_bytes(command, tmp_path: Path):
    path, source = texts_file(tmp_path / "texts.txt", 50), labeled_file(tmp_path / "a.tsv")
    contents = []
    for name, seed in (("one", "1"), ("two", "2")):
        out = tmp_path / name
        given = ["--pretrain", path, "--vector-size", "16", "--out", str(out)]
        done = command("prepare", source, *given, PYTHONHASHSEED=seed)
        assert done.returncode == 0 and "7 words joined" in done.stderr, done.stderr
        contents.append({file.relative_to(out): file.read_bytes() for file in out.rglob("*") if file.is_file()})
    assert contents[0] == contents[1] and len(contents[0]) == 6
    refusal = call("train", "--data", str(tmp_path / "one"), "--storage", str(tmp_path / "runs"))
    assert refusal.exit_code == 2 and "16 values" in refusal.stderr and "tagger.embedding_dim=16" in refusal.stderr
