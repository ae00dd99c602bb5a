import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT, refused
from safetensors.numpy import load_file

from model import filesystems, storage
from model.data.dataset import Dataset
from model.errors import UserError
from model.prepare.advice import pins
from model.prepare.builder import PrepareConfig, prepare


def tsv(path: Path, texts: int, word: str = "rain") -> str:
    path.write_text("".join(f"text {i} of {word}\t{word}\n" for i in range(texts)))
    return str(path)


def test_a_row_keeps_its_text_ids_and_spans(tmp_path: Path):
    source = tmp_path / "a.jsonl"
    source.write_text(
        '{"text": "Red  car, big dog", "spans": [[0, 8], [10, 17]]}\n{"text": "nothing", "spans": []}\n' * 2
    )
    prepare(PrepareConfig([str(source)], str(tmp_path / "d"), [str(source)]))
    dataset = Dataset(str(tmp_path / "d"))
    assert [(text.text, text.spans) for text in dataset.texts("train")][:2] == [
        ("Red  car, big dog", ((0, 8), (10, 17))),
        ("nothing", ()),
    ]
    split = dataset.load("train")
    words = dataset.tokenizer()
    assert [words.id_to_token(i) for i in split.ids[:5]] == ["red", "car", ",", "big", "dog"]
    assert split.tags[:6].tolist() == [1, 3, 0, 1, 3, 0] and split.begins.tolist() == [0, 5, 6, 11, 12]


def test_texts_have_their_row_number_in_a_part_of_any_size(tmp_path: Path):
    rows = 66_000  # more than are read at once
    prepare(PrepareConfig([tsv(tmp_path / "a.tsv", rows)], str(tmp_path / "d"), [tsv(tmp_path / "b.tsv", 10)]))
    numbers = [int(text.place.rpartition(":")[2]) for text in Dataset(str(tmp_path / "d")).texts("train")]
    assert numbers == list(range(1, rows + 1))


def test_splits_that_are_not_given_are_split_off_and_stay_the_same(tmp_path: Path):
    source = tsv(tmp_path / "a.tsv", 1000)
    info = prepare(PrepareConfig([source], str(tmp_path / "d1")))
    rows = {split: counts["rows"] for split, counts in info["splits"].items()}
    assert sum(rows.values()) == 1000 and 60 < rows["valid"] < 140 and 60 < rows["test"] < 140
    assert prepare(PrepareConfig([source], str(tmp_path / "d2"))) == info
    texts = [{text.text for text in Dataset(str(tmp_path / "d1")).texts(split)} for split in rows]
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])
    given = prepare(PrepareConfig([source], str(tmp_path / "d3"), [tsv(tmp_path / "v.tsv", 5)]))
    assert {split: counts["rows"] for split, counts in given["splits"].items()} == {"train": 1000, "valid": 5}


def test_what_a_reader_skips_in_a_file_is_counted_once(tmp_path: Path):
    source = tmp_path / "raw.txt"
    source.write_text("".join(f"text {i} of #rain today\n" for i in range(100)) + "RT @ann: so #good it is\n" * 3)
    info = prepare(PrepareConfig([str(source)], str(tmp_path / "d")))
    assert info["splits"]["train"]["skipped"] == {"a retweet": 3}
    assert info["splits"]["valid"]["skipped"] == info["splits"]["test"]["skipped"] == {}


def test_the_vocabulary_comes_from_training_alone(tmp_path: Path):
    prepare(PrepareConfig([tsv(tmp_path / "a.tsv", 5)], str(tmp_path / "d"), [tsv(tmp_path / "v.tsv", 5, "snow")]))
    words = Dataset(str(tmp_path / "d")).tokenizer().get_vocab()
    assert "rain" in words and "snow" not in words


def test_dataset_json_contains_the_sources_and_what_was_skipped(tmp_path: Path):
    source = tmp_path / "a.tsv"
    source.write_text("red car\tcar\nred car\tdog\n")
    info = prepare(PrepareConfig([str(source)], str(tmp_path / "d"), [tsv(tmp_path / "v.tsv", 2)]))
    assert info == json.loads((tmp_path / "d" / "dataset.json").read_text())
    assert info["splits"]["train"]["skipped_places"]["keyphrase not in its text"] == [f"{source}:2"]
    [source_info] = info["sources"]["train"]
    assert source_info["lines"] == 2 and len(source_info["sha256"]) == 64


def test_what_cannot_be_prepared_leaves_nothing_behind(tmp_path: Path):
    good, bad = tsv(tmp_path / "a.tsv", 20), tmp_path / "bad.tsv"
    bad.write_text("red car\tcar\nred car\tdog\ntwo\ttabs\there\n")
    out = str(tmp_path / "out" / "d")
    before = sorted(tmp_path.iterdir())
    refused(lambda: prepare(PrepareConfig([good], out, [str(bad)])), "bad.tsv:3", "2 tabs")
    bad.write_text("red car\tcar\nred car\tdog\n")
    refused(lambda: prepare(PrepareConfig([good], out, [str(bad)], strict=True)), "--strict", "bad.tsv:2")
    bad.write_text("red car\tdog\n")
    refused(lambda: prepare(PrepareConfig([good], out, [str(bad)])), "no text is left", "keyphrase not in its text")
    refused(lambda: prepare(PrepareConfig([tsv(tmp_path / "one.tsv", 1)], out)), "no text is left", "too few different")
    bad.write_text("text\tkeyphrases\n")
    refused(lambda: prepare(PrepareConfig([str(bad)], out)), "train: no text is left: the files hold no text")
    refused(lambda: prepare(PrepareConfig([good], out, [str(bad)])), "valid: no text is left: the files hold no text")
    (tmp_path / "one.tsv").unlink()
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "out").rmdir()
    assert sorted(tmp_path.iterdir()) == before


def test_an_existing_directory_is_replaced_only_when_asked(tmp_path: Path):
    source, out = tsv(tmp_path / "a.tsv", 50), str(tmp_path / "d")
    prepare(PrepareConfig([source], out))
    refused(lambda: prepare(PrepareConfig([source], out)), "exists already", "--overwrite")
    refused(lambda: prepare(PrepareConfig([source], str(tmp_path), overwrite=True)), "no dataset", "another --out")
    refused(lambda: prepare(PrepareConfig([source], source, overwrite=True)), "no dataset", "another --out")
    own = tsv(tmp_path / "d" / "mine.tsv", 50)
    refused(lambda: prepare(PrepareConfig([own], out, overwrite=True)), "would delete mine.tsv", "move it")
    Path(own).unlink()
    prepare(PrepareConfig([tsv(tmp_path / "b.tsv", 80)], out, overwrite=True))
    assert sum(Dataset(out).rows(split) for split in ("train", "valid", "test")) == 80
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tsv", "b.tsv", "d"]


def test_a_directory_that_appears_meanwhile_is_replaced_only_when_asked(tmp_path: Path):
    source, out = tsv(tmp_path / "a.tsv", 50), tmp_path / "d"

    def appear(_: int) -> None:
        out.mkdir(exist_ok=True)
        (out / "other").touch()

    refused(lambda: prepare(PrepareConfig([source], str(out)), progress=appear), "exists already", "--overwrite")
    assert [path.name for path in out.iterdir()] == ["other"] and len(list(tmp_path.iterdir())) == 2
    (out / "other").rename(out / "dataset.json")
    prepare(PrepareConfig([source], str(out), overwrite=True), progress=appear)
    assert Dataset(str(out)).rows("train") and len(list(tmp_path.iterdir())) == 2


def test_what_is_no_dataset_is_refused(tmp_path: Path, small_dataset: str):
    refused(lambda: Dataset(str(tmp_path / "none")), "no such directory", "prepare")
    refused(lambda: Dataset(str(tmp_path)), "no dataset.json")
    file = tmp_path / "file"
    file.write_text("x")
    refused(lambda: Dataset(str(file)), "no dataset")
    (tmp_path / "dataset.json").write_text('{"format_version": 99}')
    refused(lambda: Dataset(str(tmp_path)), "format 99", "update Tandem")
    (tmp_path / "dataset.json").write_text('{"format_')
    refused(lambda: Dataset(str(tmp_path)), "damaged")
    refused(lambda: Dataset(small_dataset).load("dev"), "no dev split")


def test_a_damaged_dataset_is_refused(tmp_path: Path):
    prepare(PrepareConfig([tsv(tmp_path / "a.tsv", 100)], str(tmp_path / "d")))
    part = tmp_path / "d" / "train" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    refused(lambda: Dataset(str(tmp_path / "d")).load("train"), "damaged", "prepare the dataset again")
    (tmp_path / "d" / "tokenizer.json").unlink()
    refused(lambda: Dataset(str(tmp_path / "d")).tokenizer(), "tokenizer.json: is missing")


def test_a_changed_byte_is_noticed(tmp_path: Path):
    prepare(PrepareConfig([tsv(tmp_path / "a.tsv", 100)], str(tmp_path / "d")))

    def read() -> list[Any]:
        dataset = Dataset(str(tmp_path / "d"))
        return [dataset.load("train").ids.tolist(), list(dataset.texts("train"))]

    whole, part, about = read(), tmp_path / "d" / "train" / "part-00000.parquet", tmp_path / "d" / "dataset.json"
    content, noticed = part.read_bytes(), 0
    pages = len(content) - 8 - int.from_bytes(content[-8:-4], "little")  # behind them is the footer
    places = range(4, pages, pages // 50)
    for at in places:
        part.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        try:
            assert read() == whole  # of no account, as in the header of a page
        except UserError:
            noticed += 1
    assert noticed > 0.7 * len(places)
    tokenizer = tmp_path / "d" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("text", "test"))
    refused(lambda: Dataset(str(tmp_path / "d")).tokenizer(), "tokenizer.json: does not match its digest")
    about.write_text(about.read_text().replace('"parts"', '"party"'))
    refused(lambda: Dataset(str(tmp_path / "d")), "dataset.json: is damaged ('parts')")


def test_a_dataset_on_other_storage(tmp_path: Path):
    out = "memory://bucket/d"
    info = prepare(PrepareConfig([tsv(tmp_path / "a.tsv", 100)], out))
    dataset = Dataset(out)
    assert len(dataset.load("train")) == info["splits"]["train"]["rows"] == len(list(dataset.texts("train")))


WORDS = {"rain": [1.0, 2.0, 3.0], "Text": [4.0, 5.0, 6.0], "OF": [7.0, 8.0, 9.0], "unused": [0.5, 0.5, 0.5]}


def vectors_file(path: Path, kind: str) -> Path:
    from gensim.models import FastText, KeyedVectors

    known = KeyedVectors(3)
    known.add_vectors(list(WORDS), list(map(np.float32, WORDS.values())))
    if kind == "fasttext":
        model = FastText([["rain", "Text", "OF"]] * 5, vector_size=3, min_count=1, bucket=50, epochs=1)
        from gensim.models.fasttext import save_facebook_model

        save_facebook_model(model, str(path))
    else:
        known.save_word2vec_format(str(path), binary=kind == "word2vec-binary", write_header=kind != "glove")
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["word2vec", "word2vec-binary", "glove", "fasttext"])
def test_pretrained_vectors_of_every_kind(tmp_path: Path, kind: str):
    path = vectors_file(tmp_path / "vectors", kind)
    info = prepare(PrepareConfig([tsv(tmp_path / "a.tsv", 30)], str(tmp_path / "d"), vectors=str(path)))
    table = load_file(tmp_path / "d" / "vectors.safetensors")["vectors"]
    words = Dataset(str(tmp_path / "d")).tokenizer().get_vocab()
    assert table.shape == (len(words), 3) and not table[0].any()
    assert np.array_equal(Dataset(str(tmp_path / "d")).vectors(), table)
    if kind == "fasttext":
        assert info["vectors"]["words_covered"] >= 3
    else:
        assert info["vectors"]["words_covered"] == 3  # rain; text and of by their other spellings
        assert table[words["rain"]].tolist() == WORDS["rain"] and table[words["of"]].tolist() == WORDS["OF"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("content", ["rain 1 2 3\ntext 1 2\nof 1\n", "2 3\nrain 1 2 3\n", "no numbers here\n", ""])
def test_bad_vectors_are_refused(tmp_path: Path, content: str):
    path = tmp_path / "vectors.txt"
    path.write_text(content)
    refused(
        lambda: prepare(PrepareConfig([tsv(tmp_path / "a.tsv", 30)], str(tmp_path / "d"), vectors=str(path))),
        "vectors.txt",
    )
    assert not (tmp_path / "d").exists()
    refused(
        lambda: prepare(PrepareConfig([str(tmp_path / "a.tsv")], str(tmp_path / "d"), vectors="none.vec")), "none.vec"
    )


@pytest.mark.parametrize(
    "location",
    [
        "s3://AKIA123:sEcReT@bucket/runs",
        "s3://bucket/runs?access_key=AKIA123&secret_key=sEcReT",
        "s3://bucket/runs?region=x&session_token=sEcReT",
    ],
)
def test_a_location_with_a_credential_is_refused_without_showing_it(location: str):
    with pytest.raises(UserError, match="contains a credential") as caught:
        storage.resolve(location)
    assert "sEcReT" not in str(caught.value) and "AKIA" not in str(caught.value)


def test_a_location_with_other_options_is_no_credential(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(filesystems, "_answered", {"s3://bucket"})
    location = "s3://bucket/runs?endpoint_override=127.0.0.1:5055&scheme=http&region=x"
    assert storage.resolve(location)[1] == "bucket/runs"


@pytest.mark.parametrize("texts", [3, 4, 7, 25])
@pytest.mark.parametrize("word", ["rain", "snow", "fog"])
def test_from_three_texts_on_no_split_is_empty(tmp_path: Path, texts: int, word: str):
    source = tsv(tmp_path / "a.tsv", texts, word)
    info = prepare(PrepareConfig([source], str(tmp_path / "d")))
    rows = [counts["rows"] for counts in info["splits"].values()]
    assert sum(rows) == texts and len(rows) == 3 and min(rows) > 0
    assert prepare(PrepareConfig([source], str(tmp_path / "e"))) == info
    (tmp_path / "same.tsv").write_text("same text\ttext\n" * 40)
    refused(
        lambda: prepare(PrepareConfig([str(tmp_path / "same.tsv")], str(tmp_path / "f"))), "too few different", "--"
    )


def test_a_text_that_moves_to_an_empty_split_leaves_none_empty():
    names = ["train", "valid", "test"]
    subsets = [{i for i in range(3) if number >> i & 1} for number in range(8)]
    for own in product(subsets, repeat=3):  # digests, which texts of two splits share where they differ in case
        moved = pins(dict(zip(names, own, strict=True)), names)
        after = [
            {*texts.difference(moved), *(i for i in moved if moved[i] == name)}
            for name, texts in zip(names, own, strict=True)
        ]
        assert all(after) or len(set().union(*own)) < 3, own


def test_data_that_cannot_teach_or_measure_is_said(tmp_path: Path):
    def warnings(train: str, valid: str) -> list[str]:
        (tmp_path / "train.tsv").write_text(train)
        (tmp_path / "valid.tsv").write_text(valid)
        files = [str(tmp_path / "train.tsv")], str(tmp_path / "d"), [str(tmp_path / "valid.tsv")]
        return prepare(PrepareConfig(*files, overwrite=True)).get("warnings", [])

    good = "".join(f"text {i} of rain\train\n" for i in range(40))
    other = good.replace("text", "note")
    assert warnings(good, other) == []
    [shared] = warnings(good, other + "Text 7 of rain\train\n")
    assert shared.startswith("valid: 1 of 41 texts are in train too")
    [contradiction] = warnings(good + "text 3 of rain\ttext\n", other)
    assert contradiction.startswith("texts that are labeled in different ways: 1;")
    [few] = warnings(good, other[:60])
    assert few.startswith("valid: too few texts (3)")
    [unlabeled, unmeasured] = warnings(good.replace("\train", "\t"), other.replace("\train", "\t"))
    assert unlabeled.startswith("train: no text has a keyphrase") and unmeasured.startswith("valid: no text has")


def test_prepare_does_not_load_torch(tmp_path: Path):
    """It takes longer to import than a small file takes to prepare."""
    source = tsv(tmp_path / "a.tsv", 40, "rain")
    program = "import runpy, sys; sys.modules['torch'] = None; runpy.run_module('jobs', run_name='__main__')"
    command = [sys.executable, "-c", program, "prepare", source, "--out", str(tmp_path / "d")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
