"""Text files of word vectors as they are on disk: words with spaces, tabs, byte order marks, lines that cannot be read."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from helpers import refused

from model.data.labeled_text import SkipCounts
from model.prepare.builder import PrepareConfig, prepare
from model.prepare.vectors import read_vectors

GLOVE = "rain 1 2 3\n. . . 4 5 6\nat me@here.org 7 8 9\n2008 -1e-1 .5 0\n"


def file(folder: Path, content: str | bytes, name: str = "vectors.txt") -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def read(path: str) -> tuple[dict[str, list[float]], dict[str, list[str]]]:
    """The vector of each word, and the places of the lines that were left out."""
    skips = SkipCounts()
    vectors = read_vectors(path, skips)
    return {word: vectors[word].tolist() for word in vectors.index_to_key}, skips.places


@pytest.mark.parametrize(
    "content",
    [
        GLOVE,
        "\ufeff" + GLOVE,
        GLOVE.replace("\n", "\r\n"),
        GLOVE.replace("\n", " \n"),
        "4 3\n" + GLOVE,
        "\ufeff4\t3\r\n" + GLOVE,
        GLOVE.replace("rain ", "rain\t").replace(" 2 3", "\t2\t3"),
        GLOVE + "rain 9 9 9\n",
    ],
)
def test_words_may_contain_spaces(tmp_path: Path, content: str):
    vectors = {"rain": [1, 2, 3], ". . .": [4, 5, 6], "at me@here.org": [7, 8, 9], "2008": [np.float32(-0.1), 0.5, 0]}
    assert read(file(tmp_path, content)) == (vectors, {})


def test_compressed_vectors_and_words_of_any_letters(tmp_path: Path):
    content = gzip.compress("café 1 2\na\xa0b 3 4\n東京 5 6\n".encode())
    assert read(file(tmp_path, content, "vectors.txt.gz"))[0] == {"café": [1, 2], "a\xa0b": [3, 4], "東京": [5, 6]}


def test_lines_that_cannot_be_read_are_counted_and_named(tmp_path: Path):
    path = file(tmp_path, "rain 1 2 3\nsnow 1 2\nwind 1 x 3\n\nsun 1 nan 3\nfog 3 2 1\nice 1 1 1\na 1 2 1\nb 1 2 1\n")
    vectors, places = read(path)
    assert list(vectors) == ["rain", "fog", "ice", "a", "b"]
    assert places == {"bad line: is not a word and 3 finite numbers": [f"{path}:{line}" for line in (2, 3, 4, 5)]}
    refused(lambda: read_vectors(path), f"{path}:2: is not a word and 3 finite numbers")


def test_a_number_beyond_32_bits_is_not_finite(tmp_path: Path):
    vectors, places = read(file(tmp_path, "rain 1 2\nsnow 1 -1e39\nfog 3.4e38 3.4e38\n"))
    assert list(vectors) == ["rain", "fog"] and [len(each) for each in places.values()] == [1]


def test_the_dataset_knows_the_lines_that_were_left_out(tmp_path: Path):
    texts = file(tmp_path, "".join(f"rain and fog {i}\train\n" for i in range(30)), "a.tsv")
    path = file(tmp_path, "rain 1 2 3\nsnow 1 2\nfog 3 2 1\n")
    config = PrepareConfig([texts], str(tmp_path / "d"), vectors=path)
    vectors = prepare(config)["vectors"]
    assert vectors is not None and (vectors["size"], vectors["words_covered"]) == (3, 2)
    assert vectors["skipped_places"] == {"bad line: is not a word and 3 finite numbers": [f"{path}:2"]}
    refused(lambda: prepare(PrepareConfig([texts], str(tmp_path / "e"), vectors=path, strict=True)), f"{path}:2: ")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"PK\x03\x04\x14\x00\x00\x00glove.txt", "is a ZIP archive; unpack it"),
        ("", "is empty"),
        (b"\xff\xfe", "its lines do not end with numbers"),
        (" \n0 0\n", "its lines do not end with numbers"),
        (b"55555555553 3\nrain \x80\x80\x80\x80", "cannot be read as word2vec"),
        ("a text\tkeyphrase\nmore text\tmore\n", "its lines do not end with numbers"),
        ("3 3\nrain 1 2 3\nsnow 1 2 3\n", "line 1 promises 3 words, but 2 lines follow"),
        ("rain 1 2 3\nsnow 1 x\nfog 1\n", "2 of 3 lines are not a word and 3 finite numbers"),
        (
            b"2 1\nfog \x00\x00\x80\x3f\nrain \x00\x00\xc0\x7f\n",
            "1 vectors are not finite numbers, the first that of 'rain'",
        ),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str | bytes, problem: str):
    path = file(tmp_path, content)
    refused(lambda: read(path), path, problem)


def test_a_fasttext_file_that_was_cut_off_is_refused(tmp_path: Path):
    from gensim.models.fasttext import FastText, save_facebook_model

    model = FastText([["rain", "in", "bern"], ["no", "rain"]], vector_size=2, min_count=1, bucket=10, epochs=1)
    save_facebook_model(model, str(tmp_path / "whole.bin"))
    content = (tmp_path / "whole.bin").read_bytes()
    assert set(read(str(tmp_path / "whole.bin"))[0]) == {"rain", "in", "bern", "no"}
    for end in range(4, 260, 3):
        path = file(tmp_path, content[:end], "cut.bin")
        refused(lambda path=path: read(path), path, "cannot be read")  # type: ignore[misc]
