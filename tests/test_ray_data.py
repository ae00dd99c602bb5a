"""Work in shards: the result is the same for every shard size and on any number of processes."""

import errno
import gzip
import json
import os
import random
import signal
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from helpers import call, disk_of, last_json, refused, trained_tokenizer

from distributed.cluster.ray_data import parallel_map
from model import storage
from model.data.dataset import Dataset
from model.inference.batch_inference import ExtractionConfig, extract
from model.prepare.builder import PrepareConfig, prepare
from model.prepare.vocabulary import BUCKETS, BucketCounts, save_tokenizer, vocabulary
from model.readers.options import ReadOptions
from model.readers.readers import resolve_inputs
from model.shards import SHARD_BYTES, make_shards, serial_map

DIVISIBLE = ("tsv", "jsonl", "conll", "raw")  # formats whose records are found from any byte of a file

WORDS = (
    "Storm storm rain RAIN red car, big dog! Ünïcode ΟΔΟΣ don't 3.5m <url> https://t.co/x @ann e\u0301cole 😀".split()
)


def content(format: str, texts: int, end: str = "\n") -> bytes:
    """Texts in a format, with blank lines and what is left out here and there."""
    rng = random.Random(texts)
    lines = []
    for number in range(texts):
        words = [*rng.choices(WORDS, k=rng.randrange(1, 9)), f"fresh{number}"]
        text, phrase = " ".join(words), rng.choice([*words, "absent"])
        if format == "tsv":
            lines.append(f"{text}\t{phrase};{words[0]}")
        elif format == "jsonl":
            labels: dict[str, Any] = {"keyphrases": [phrase]} if number % 2 else {"spans": [[0, len(words[0])]]}
            lines.append(json.dumps({"text": text, **labels}, ensure_ascii=bool(number % 3)))
        elif format == "raw":
            lines.append(f"{text} #rain today" if number % 4 else text)
        else:
            lines += [f"{word}\t{'B-x' if word == phrase else 'O'}" for word in words] + [""]
        lines += [""] * rng.choice([0, 0, 0, 1, 2])
    return end.join(lines).encode()


def files(folder: Path, format: str) -> list[str]:
    """Files of a format: large, small, compressed, with Windows line ends, with and without a line end at the end."""
    made = {
        "a": content(format, 40),
        "b": content(format, 3) + b"\n",
        "c.gz": gzip.compress(content(format, 20), mtime=0),
    }
    made |= {"d": content(format, 15, "\r\n"), "e": b"\n" * 30 + content(format, 5) + b"\n\n"}
    for name, data in made.items():
        (folder / name).write_bytes(data)
    return [str(folder / name) for name in made]


def set_shard_bytes(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr("model.prepare.builder.make_shards", partial(make_shards, shard_bytes=size))
    monkeypatch.setattr("model.inference.batch_inference.make_shards", partial(make_shards, shard_bytes=size))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(out: Path) -> dict[str, list[Any]]:
    """All columns of all splits."""
    columns = ["text", "ids", "starts", "ends", "span_starts", "span_ends"]
    dataset = Dataset(str(out))
    return {split: dataset._table(split, columns).to_pylist() for split in dataset.info["splits"]}


def without_parts(info: dict[str, Any]) -> dict[str, Any]:
    splits = {
        split: {name: value for name, value in counts.items() if name != "parts"}
        for split, counts in info["splits"].items()
    }
    return info | {"splits": splits}


@pytest.mark.parametrize("format", DIVISIBLE)
@pytest.mark.parametrize("size", [150, 700])
def test_rows_words_and_skips_do_not_depend_on_the_size_of_the_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, size: int
):
    paths = files(tmp_path, format)
    whole = prepare(PrepareConfig(paths, str(tmp_path / "whole"), reading=ReadOptions(format)))
    assert whole["splits"]["train"]["parts"] == 1
    set_shard_bytes(monkeypatch, size)
    sharded = prepare(PrepareConfig(paths, str(tmp_path / "sharded"), reading=ReadOptions(format)))
    assert sharded["splits"]["train"]["parts"] > 5
    assert without_parts(sharded) == without_parts(whole)
    assert rows(tmp_path / "sharded") == rows(tmp_path / "whole")
    names = "tokenizer.json"
    assert (tmp_path / "sharded" / names).read_bytes() == (tmp_path / "whole" / names).read_bytes()


@pytest.mark.parametrize("format", DIVISIBLE)
def test_every_line_belongs_to_one_range(tmp_path: Path, format: str):
    [file] = resolve_inputs(files(tmp_path, format)[:1], ReadOptions(format))
    lines = list(file.lines())
    for size in (1, 2, 3, 7, 20, 50, 99, 100, 101, 250, 400, 1500):
        shards = make_shards([file], size)
        parts = [list(part.lines()) for ranges in shards for part in ranges]
        assert [line for each in parts for line in each] == lines, size
        if file.layout.blocks:  # no text is torn
            full = [each for each in parts if each]
            assert not any(each[-1].strip() for each in full[:-1])
    assert make_shards([file], SHARD_BYTES)[0][0].end is None


def test_small_files_share_a_shard_and_compressed_ones_are_not_divided(tmp_path: Path):
    paths = files(tmp_path, "tsv")
    inputs = resolve_inputs(paths)
    small = make_shards(inputs, 10**6)
    assert [[Path(part.path).name for part in ranges] for ranges in small] == [["a", "b", "c.gz", "d", "e"]]
    large = make_shards(inputs, 100)
    assert sum(part.path.endswith(".gz") for ranges in large for part in ranges) == 1


@pytest.mark.parametrize("size", [150, SHARD_BYTES])
def test_a_bad_line_is_named_by_its_place_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int):
    set_shard_bytes(monkeypatch, size)
    path, out = tmp_path / "a.tsv", str(tmp_path / "d")
    good = [f"text {i} of rain\train" for i in range(60)]
    path.write_text("\n".join([*good[:45], "two\ttabs\there", *good, "and\there\ttoo"]))
    refused(lambda: prepare(PrepareConfig([str(path)], out)), f"{path}:46: ", "2 tabs")
    skipped = prepare(PrepareConfig([str(path)], out, skip_bad_lines=True))["splits"]["train"]["skipped_places"]
    assert list(skipped.values()) == [[f"{path}:46", f"{path}:107"]]


def test_texts_that_occur_in_several_shards_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    set_shard_bytes(monkeypatch, 150)
    train = [f"text {i} of rain\train" for i in range(60)]
    paths = [tmp_path / name for name in ("train.tsv", "valid.tsv", "test.tsv")]
    own = [f"note {i} of rain\train" for i in range(40)]
    rows = ([*train, "text 3 of rain\ttext", "text 3 of rain\tof", "text 9 of rain\ttext"], [*own, *train[:2]])
    for path, lines in zip(paths, (*rows, [*train[5:50], own[7]]), strict=True):
        path.write_text("\n".join(lines))
    info = prepare(PrepareConfig([str(paths[0])], str(tmp_path / "d"), [str(paths[1])], [str(paths[2])]))
    assert all(split["parts"] > 3 for split in info["splits"].values())
    assert [line.split(";")[0] for line in info["warnings"]] == [
        "valid: 2 of 42 texts are in train too",
        "test: 45 of 46 texts are in train too",
        "test: 1 of 46 texts are in valid too",
        "texts that are labeled in different ways: 2",
    ]


def test_the_vocabulary_is_that_of_the_tokenizers_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    set_shard_bytes(monkeypatch, 400)
    [path, *_] = files(tmp_path, "tsv")
    lines = Path(path).read_text("utf-8").split("\n")
    texts = [line.split("\t")[0] for line in lines if line]  # of those too that have no keyphrase left
    for min_frequency, max_words in [(1, 1_000_000), (2, 1_000_000), (1, 12), (1, 3)]:
        limits = {"min_frequency": min_frequency, "max_words": max_words}
        info = prepare(PrepareConfig([path], str(tmp_path / "out"), [path], [path], overwrite=True, **limits))
        trained = trained_tokenizer(texts, **limits)
        assert Dataset(str(tmp_path / "out")).tokenizer().get_vocab() == trained.get_vocab()
        assert info["words"] == trained.get_vocab_size()


def test_a_tokenizer_is_saved_as_the_library_saves_it(tmp_path: Path):
    words = ["storm", '"\\', "\x01\x7f\t", "œ", "😀", "\u2028"]
    save_tokenizer(pa.chunked_array([words]), str(tmp_path / "ours.json"))
    trained_tokenizer([]).save(str(tmp_path / "none.json"))
    save_tokenizer(pa.chunked_array([[]], pa.string()), str(tmp_path / "our_none.json"))
    from model.data.tokenizer import new_tokenizer

    known = {word: i for i, word in enumerate(["<pad>", "<unk>", *words])}
    new_tokenizer(known).save(str(tmp_path / "library.json"))
    assert (tmp_path / "ours.json").read_bytes() == (tmp_path / "library.json").read_bytes()
    assert (tmp_path / "our_none.json").read_bytes() == (tmp_path / "none.json").read_bytes()


def test_beyond_the_words_that_are_counted_the_rarest_are_forgotten(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("model.prepare.vocabulary._MIN_PENDING_WORDS", BUCKETS)
    tables = [
        pa.table({"word": ["a", "b", "c", "d"], "count": [9, 5, 1, 1]}),
        pa.table({"word": ["e", "b"], "count": [4, 1]}),
        pa.table({"word": ["c", "a"], "count": [2, 1]}),
        pa.table({"word": ["g", "c"], "count": [1, 2]}),
    ]
    exact, bounded = BucketCounts(), BucketCounts(limit=4)
    for words in tables:
        exact.add(words)
        bounded.add(words)
    counts = [dict(zip(*each.counted().to_pydict().values(), strict=True)) for each in (exact, bounded)]
    assert counts == [{"a": 10, "b": 6, "c": 5, "e": 4, "d": 1, "g": 1}, {"a": 10, "b": 6, "c": 4, "g": 1}]
    assert vocabulary(exact.counted(), 1, 100).to_pylist() == list("abcedg")
    assert vocabulary(exact.counted(), 4, 5).to_pylist() == list("abc")


def test_a_file_that_another_machine_does_not_see_is_named(tmp_path: Path):
    path = tmp_path / "a.tsv"
    path.write_bytes(content("tsv", 20))

    def elsewhere(function: Callable[[Any], Any], items: list[Any]) -> Generator[Any, None, None]:
        path.unlink(missing_ok=True)
        yield from serial_map(function, items)

    refused(lambda: prepare(PrepareConfig([str(path)], str(tmp_path / "d")), elsewhere), str(path), "every node mounts")
    assert list(tmp_path.iterdir()) == []


def test_other_storage_keeps_the_old_dataset_until_the_new_one_is_read(tmp_path: Path):
    out = "memory://shards/d"
    good, bad = tmp_path / "good.tsv", tmp_path / "bad.tsv"
    good.write_bytes(content("tsv", 60))
    bad.write_text("two\ttabs\there\n")
    refused(lambda: prepare(PrepareConfig([str(bad)], out, reading=ReadOptions("tsv"))), "2 tabs")
    assert not storage.exists(out)
    info = prepare(PrepareConfig([str(good)], out))
    refused(lambda: prepare(PrepareConfig([str(bad)], out, reading=ReadOptions("tsv"), overwrite=True)), "2 tabs")
    assert len(Dataset(out).load("train")) == info["splits"]["train"]["rows"]
    good.write_bytes(content("tsv", 90))
    prepare(PrepareConfig([str(good)], out, overwrite=True))
    assert storage.list_directory(out) == ["dataset.json", "test", "tokenizer.json", "train", "valid"]

    def full(function: Callable[[Any], Any], items: list[Any]) -> Generator[Any, None, None]:
        for result in serial_map(function, items):
            yield result or OSError(errno.ENOSPC, "full")  # the second pass returns nothing else

    with pytest.raises(OSError, match="full"):
        prepare(PrepareConfig([str(good)], out, overwrite=True), full)
    assert not storage.exists(out)


def unlabeled(folder: Path) -> list[str]:
    """Files of texts, plain and JSON lines, one of them without a line end and one compressed."""
    texts = [f"cheering for Giants {i} at the #game" if i % 7 else "" for i in range(90)]
    (folder / "a.txt").write_text("\n".join(texts))
    (folder / "b.txt").write_text("one\r\ntwo\r\n")
    (folder / "c.jsonl").write_text("".join(json.dumps({"text": f"{text} again"}) + "\n" for text in texts))
    (folder / "d.txt.gz").write_bytes(gzip.compress("\n".join(texts).encode()))
    return [str(path) for path in sorted(folder.iterdir())]


def joined(out: Path) -> str:
    return "".join(path.read_text("utf-8") for path in sorted(out.glob("part-*")))


def test_extract_to_parts_is_extract_to_stdout(small_bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "in").mkdir()
    paths, out = unlabeled(tmp_path / "in"), tmp_path / "out"
    set_shard_bytes(monkeypatch, 500)
    printed = call("extract", small_bundle, *paths, "--json")
    done = call("extract", small_bundle, f"{tmp_path}/in/*", "--out", str(out), "--json")
    assert done.exit_code == 0, done.output
    assert joined(out) == printed.stdout and len(printed.stdout.splitlines()) == 272
    result = last_json(done.stdout)
    assert result == {"out": str(out), **json.loads((out / "extraction.json").read_text())}
    assert result["texts"] == 272 and result["parts"] == len(list(out.glob("part-*"))) > 5
    assert result["keyphrases"] == sum(len(json.loads(line)["keyphrases"]) for line in printed.stdout.splitlines())
    assert [(source["path"], source["lines"]) for source in result["sources"]] == list(
        zip(paths, [90, 2, 90, 90], strict=True)
    )
    plain = call("extract", small_bundle, *paths).stdout.splitlines()
    assert [line.split("\t")[0] for line in plain] == [str(number) for number in range(1, 273)]


def test_what_cannot_be_extracted_leaves_nothing(small_bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    set_shard_bytes(monkeypatch, 100)
    path, out = tmp_path / "a.txt", str(tmp_path / "out")
    path.write_bytes(b"a line of text\n" * 30 + b"\xff\n" + b"a line of text\n" * 30)
    for arguments in (["--json"], ["--out", out]):
        done = call("extract", small_bundle, str(path), *arguments)
        assert done.exit_code == 2 and f"{path}:31: is not UTF-8" in done.stderr
    assert call("extract", str(tmp_path / "none"), str(path), "--out", out).exit_code == 2
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]
    for arguments in (
        [str(path), "--workers", "2"],
        ["--out", out, "-"],
        ["-", str(path)],
        [str(path), "--out", str(path)],
    ):
        assert call("extract", small_bundle, *arguments).exit_code == 2
    path.write_text("a line\n")
    assert call("extract", small_bundle, str(path), "--out", out).exit_code == 0
    assert call("extract", small_bundle, str(path), "--out", out).exit_code == 2
    assert call("extract", small_bundle, str(path), "--out", out, "--overwrite").exit_code == 0


def test_an_extraction_replaces_nothing_that_appears_meanwhile(small_bundle: str, tmp_path: Path):
    path, out = tmp_path / "a.txt", tmp_path / "out"
    path.write_text("a line\n")
    config = ExtractionConfig(small_bundle, [str(path)], str(out))
    refused(lambda: extract(config, on_progress=lambda _: out.mkdir()), "exists already", "--overwrite")
    assert sorted(tmp_path.iterdir()) == [path, out] and not list(out.iterdir())
    out.rmdir()
    extract(config)
    extract(replace(config, overwrite=True))


@pytest.mark.ray
def test_a_dataset_made_on_ray_is_the_same_byte_for_byte(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    set_shard_bytes(monkeypatch, 1000)
    paths = files(tmp_path, "conll")
    alone = prepare(PrepareConfig(paths, str(tmp_path / "alone"), [paths[0]]))
    monkeypatch.chdir(tmp_path)  # what is named from here is found there
    on_ray = prepare(PrepareConfig([Path(path).name for path in paths], "ray", ["a"]), parallel_map("ray", 3))
    assert on_ray["splits"] == alone["splits"] and on_ray["splits"]["train"]["parts"] > 5
    files_alone, files_on_ray = contents(tmp_path / "alone"), contents(tmp_path / "ray")
    del files_alone["dataset.json"], files_on_ray["dataset.json"]  # the paths in it are as they were given
    assert files_on_ray == files_alone
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["alone", "ray"]


@pytest.mark.ray
def test_extract_on_ray_is_extract_to_stdout(
    cluster: Any, small_bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "in").mkdir()
    paths, out = unlabeled(tmp_path / "in"), tmp_path / "out"
    set_shard_bytes(monkeypatch, 2000)
    done = call("extract", small_bundle, *paths, "--out", str(out), "--workers", "2")
    assert done.exit_code == 0, done.output
    assert joined(out) == call("extract", small_bundle, *paths, "--json").stdout


@pytest.mark.ray
@pytest.mark.long
def test_the_first_bad_line_is_reported_whichever_worker_met_one_first(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    set_shard_bytes(monkeypatch, 2000)
    path = tmp_path / "a.tsv"
    good = [f"text {i} of rain\train" for i in range(500)]
    path.write_text("\n".join([*good, "two\ttabs\there", "x\ty", *good, "a\tb\tc"]))
    done = call("prepare", str(path), "--out", str(tmp_path / "d"), "--workers", "2")
    assert done.exit_code == 2 and f"error: {path}:501: " in done.stderr and "Traceback" not in done.output
    assert not done.stdout and [each.name for each in tmp_path.iterdir()] == ["a.tsv"]


@pytest.mark.ray
@pytest.mark.long
def test_a_disk_that_fills_under_workers_is_reported_and_leaves_nothing(
    cluster: Any, tmp_path: Path, small_dataset: str
):
    with disk_of("64k", tmp_path / "disk") as disk:
        source = str(Path(small_dataset).parent / "train.jsonl")
        done = call("prepare", source, "--out", str(disk / "d"), "--workers", "2")
        assert done.exit_code == 2 and "No space left" in done.stderr and "Traceback" not in done.output
        assert list(disk.iterdir()) == []


@pytest.mark.ray
def test_a_shard_whose_worker_was_killed_is_done_again(cluster: Any, tmp_path: Path):
    def dies_once(number: int) -> int:
        mark = tmp_path / str(number)
        if number == 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return 2 * number

    for actors in (False, True):
        (tmp_path / "1").unlink(missing_ok=True)
        results = parallel_map(str(tmp_path / "d"), 2, actors=actors)(dies_once, [0, 1, 2])
        assert list(results) == [0, 2, 4] and (tmp_path / "1").exists()


def test_an_extraction_on_gpus_that_nobody_has_is_refused_before_ray_starts(
    small_bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def connect(*_: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("distributed.cluster.ray_data.connect", connect)
    texts, out = tmp_path / "texts.txt", tmp_path / "out"
    texts.write_text("some rain\n")
    done = call("extract", small_bundle, str(texts), "--out", str(out), "--device", "cuda", "--workers", "2")
    assert done.exit_code == 2 and "--device cuda: no node of the cluster" in done.stderr and not out.exists()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    for command in ("extract", "label"):
        done = call(command, small_bundle, str(texts), "--out", str(out), "--device", "cuda:1")
        assert done.exit_code == 2 and "--device cuda:1: on a cluster" in done.stderr and not out.exists()
