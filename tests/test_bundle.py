import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, refused

from model.data.dataset import Dataset
from model.data.examples import MAX_TOKENS
from model.inference.bundle import load_bundle
from model.inference.extractor import Extractor


@pytest.fixture(scope="module")
def extractor(small_bundle: str) -> Extractor:
    return Extractor.load(small_bundle)


TEXTS = [
    "Sirens outside. Evacuated from Zorvalia, then a late goal by Brenwick Herons 😀 @ann https://t.co/x",
    "",
    "   ",
    "שלום עולם scored twice",
    "a" * 5000,
    "cheering for Xy\u0301z\x00 tonight \ufeff",
]


def test_a_bundle_is_loaded_by_a_path_object(small_bundle: str, extractor: Extractor):
    assert Extractor.load(Path(small_bundle))(TEXTS[0]) == extractor(TEXTS[0])


def test_a_batch_without_texts_is_refused(extractor: Extractor):
    with pytest.raises(ValueError, match="batch_size 0"):
        list(extractor.pipe(TEXTS, batch_size=0))


def test_keyphrases_are_substrings_of_the_text(extractor: Extractor):
    found = list(extractor.pipe(TEXTS))
    assert len(found) == len(TEXTS) and found[0]
    for text, keyphrases in zip(TEXTS, found, strict=True):
        for each in keyphrases:
            assert text[each.start : each.end] == each.text and each.text.strip() == each.text
            assert 0 < each.score <= 1
        assert keyphrases == sorted(keyphrases, key=lambda each: each.start)


def test_a_text_gets_the_same_keyphrases_in_any_company(extractor: Extractor, small_dataset: str):
    texts = [labeled.text for labeled in Dataset(small_dataset).texts("test")]
    together = [[each[:3] for each in found] for found in extractor.pipe(texts)]
    assert together == [[each[:3] for each in extractor(text)] for text in texts]
    assert together == [[each[:3] for each in found] for found in extractor.pipe(texts, batch_size=7)]
    assert sum(map(len, together)) > 20


def test_half_a_character_is_one_unknown_character(extractor: Extractor):
    text = "then a late goal by Brenwick \ud83d Herons \ud83d"
    [before, found, after] = extractor.pipe([TEXTS[0], text, TEXTS[0]])
    whole = extractor(text.replace("\ud83d", "\ufffd"))
    assert before == after and before
    assert [each[1:3] for each in found] == [each[1:3] for each in whole] != []
    assert all(text[each.start : each.end] == each.text for each in found)
    assert len(extractor.probabilities([text]).keyword) == 9


@pytest.mark.parametrize("value", [None, float("nan"), b"storm"])
def test_what_is_no_text_is_named(extractor: Extractor, value: Any):
    with pytest.raises(TypeError, match="not a string; leave it out"):
        list(extractor.pipe(["a storm", value]))


def test_a_very_long_text_is_read_in_pieces(extractor: Extractor, small_dataset: str):
    text = " ".join(each.text for each in Dataset(small_dataset).texts("test")) * 40
    found = extractor(text)
    assert all(text[each.start : each.end] == each.text for each in found)
    assert len(text.split()) > 50 * MAX_TOKENS and found[0].end < 1000 and found[-1].end > len(text) - 1000


def test_an_extractor_is_sent_to_another_process(extractor: Extractor):
    expected = extractor(TEXTS[0])  # which fills its caches
    assert expected and pickle.loads(pickle.dumps(extractor))(TEXTS[0]) == expected


def test_extraction_reads_as_it_goes(extractor: Extractor):
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield "cheering for Brenwick Herons"

    answers = extractor.pipe(endless(), batch_size=10)
    for _ in range(25):
        next(answers)
    assert read == 30


def test_a_bundle_is_whole_and_tells_what_it_is(small_bundle: str):
    assert sorted(path.name for path in Path(small_bundle).iterdir()) == [
        "README.md",
        "config.json",
        "metrics.json",
        "tokenizer.json",
        "weights.safetensors",
    ]
    bundle = load_bundle(small_bundle)
    assert bundle.config.training.lr == 0.01 and not bundle.tagger.training
    assert f"{bundle.metrics['keyphrase_f1']:.4f}" in (Path(small_bundle) / "README.md").read_text()


@pytest.mark.parametrize("name", ["config.json", "metrics.json", "tokenizer.json", "weights.safetensors"])
def test_a_missing_or_truncated_file_is_named(small_bundle: str, tmp_path: Path, name: str):
    copy = tmp_path / "bundle"
    shutil.copytree(small_bundle, copy)
    path, content = copy / name, (copy / name).read_bytes()
    for size in (0, 1, len(content) // 2, len(content) - 2):
        path.write_bytes(content[:size])
        refused(lambda: load_bundle(str(copy)), name)
    path.unlink()
    refused(lambda: load_bundle(str(copy)), f"{name} is missing")


def test_changed_words_are_noticed(small_bundle: str, tmp_path: Path):
    copy = tmp_path / "bundle"
    shutil.copytree(small_bundle, copy)
    words = (copy / "tokenizer.json").read_text("utf-8")
    (copy / "tokenizer.json").write_text(words.replace('"with"', '"wits"', 1), "utf-8")
    assert words != (copy / "tokenizer.json").read_text("utf-8")
    refused(lambda: load_bundle(str(copy)), "tokenizer.json: does not match its digest", "copy the bundle again")


def test_a_bundle_of_format_2_is_read(small_bundle: str, tmp_path: Path):
    """It has a digest of its weights alone."""
    copy = tmp_path / "bundle"
    shutil.copytree(small_bundle, copy)
    about = json.loads((copy / "config.json").read_text())
    digest = about.pop("sha256")["weights.safetensors"]
    (copy / "config.json").write_text(json.dumps(about | {"format_version": 2, "weights_sha256": digest}))
    assert load_bundle(str(copy)).weights_sha256 == digest
    (copy / "weights.safetensors").write_bytes((copy / "weights.safetensors").read_bytes()[:-1] + b"?")
    refused(lambda: load_bundle(str(copy)), "weights.safetensors: does not match its digest")


def test_a_bundle_of_a_newer_version_and_no_bundle_are_refused(small_bundle: str, tmp_path: Path):
    copy = tmp_path / "bundle"
    shutil.copytree(small_bundle, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"format_version": 7}))
    refused(lambda: load_bundle(str(copy)), "format 7", "update Tandem")
    refused(lambda: load_bundle(str(tmp_path / "none")), "no such bundle")
    (tmp_path / "texts.txt").write_text("one text\n")
    refused(lambda: load_bundle(str(tmp_path / "texts.txt")), "texts.txt: is a file, not a bundle", "folder")


def test_the_folder_of_a_run_is_refused_with_its_bundle(small_bundle: str, tmp_path: Path):
    (tmp_path / "config.json").write_text('{"tagger": {}}')
    refused(lambda: load_bundle(str(tmp_path)), f"{tmp_path}: is no bundle")
    shutil.copytree(small_bundle, tmp_path / "bundle")
    refused(lambda: load_bundle(str(tmp_path)), f"{tmp_path}: ", f"give {tmp_path}/bundle")


def test_a_bundle_and_the_client_work_where_ray_wandb_and_the_server_cannot_be_imported(small_bundle: str):
    program = f"""
import sys
for name in ("ray", "wandb", "typer", "fastapi", "starlette", "uvicorn", "prometheus_client"):
    sys.modules[name] = None  # an import of it raises ImportError
import model.serving.client
from model.inference.extractor import Extractor
text = "Sirens outside. Evacuated from Zorvalia, a late goal by Brenwick Herons"
found = Extractor.load({small_bundle!r})(text)
assert found and all(text[each.start:each.end] == each.text for each in found)
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=120)
