"""Labels of a teacher: what they say, the same bytes on any number of processes, and what is refused."""

import json
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from encoders import tiny_encoder
from helpers import SMALL, call, last_json, refused

from distributed.cluster.ray_data import parallel_map
from model.config import TaggerConfig
from model.data.dataset import Dataset
from model.data.examples import MAX_TOKENS
from model.distillation.label_files import MANIFEST, TeacherLabels, part_name
from model.distillation.labeling import LabelConfig, label
from model.inference.bundle import bundle_digest
from model.inference.extractor import Extractor
from model.network.encoder_files import load_encoder
from model.network.tagger import Tagger, new_tagger
from model.shards import serial_map


@pytest.fixture
def texts(small_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of 90 texts, some of them blank, in several shards."""
    monkeypatch.setattr("model.distillation.labeling.SHARD_BYTES", 2000)
    lines = [labeled.text for labeled in Dataset(small_dataset).texts("valid")][:90]
    lines[3] = lines[40] = ""
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def labels_of(bundle: str, texts: Path, out: Path, **fields: Any) -> Path:
    label(LabelConfig(bundle, [str(texts)], str(out), **fields))
    return out


class Killed(BaseException):
    """Ends a command as a signal does."""


def cut_off(after: int) -> Any:
    """A map that ends the command after some shards."""

    def cut_map(function: Any, items: list[Any]) -> Generator[Any, None, None]:
        for number, result in enumerate(serial_map(function, items)):
            if number == after:
                raise Killed
            yield result

    return cut_map


def test_labels_are_the_probabilities_of_every_word(small_bundle: str, texts: Path, tmp_path: Path):
    done = call("label", small_bundle, str(texts), "--out", str(tmp_path / "labels"), "--json")
    assert done.exit_code == 0, done.output
    result = last_json(done.stdout)
    labels = TeacherLabels(str(tmp_path / "labels"))
    parts = list(labels.read())
    assert result["parts"] == len(parts) > 2 and result["texts"] == 90
    assert [text for part in parts for text in part.texts] == texts.read_text("utf-8").splitlines()
    assert result["words"] == sum(part.lengths.sum() for part in parts)
    assert result["sources"] == [{"path": str(texts), "lines": 90}]
    extractor = Extractor.load(small_bundle)
    text, part = parts[0].texts[0], parts[0]
    own = extractor.probabilities([text])
    assert part.lengths[0] == len(own.keyword) > 0 == part.lengths[3]
    assert np.allclose(part.keyword[: part.lengths[0]], own.keyword, atol=1e-3)
    assert np.allclose(part.keyphrase[: part.lengths[0]], own.keyphrase, atol=1e-3)
    assert np.allclose(own.keyphrase.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("crf", [False, True])
def test_the_probabilities_of_tags_are_the_shares_of_legal_sequences(crf: bool, small_dataset: str):
    """So what may end before a word is what may begin at it, and nothing goes on over the ends of a text."""
    dataset = Dataset(small_dataset)
    config = TaggerConfig(**SMALL, crf=crf, decoding="spans", max_span_tokens=40)
    extractor = Extractor(new_tagger(config, dataset.info["words"], 0), dataset.tokenizer())
    found = extractor.probabilities(["a match by roger federer tonight"])
    groups = found.keyphrase[:-1, [0, 3, 4]].sum(1), found.keyphrase[1:, [0, 1, 4]].sum(1)
    assert np.allclose(*groups, atol=1e-5)
    assert not found.keyphrase[0, [2, 3]].any() and not found.keyphrase[-1, [1, 2]].any()
    assert np.allclose(found.keyphrase.sum(1), 1, atol=1e-5)


def test_a_long_text_has_probabilities_for_all_of_its_words(small_bundle: str):
    words = 2 * MAX_TOKENS + 5
    found = Extractor.load(small_bundle).probabilities(["rain", "rain " * words, ""])
    assert found.begins.tolist() == [0, 1, words + 1, words + 1]
    assert (found.keyphrase.sum(1) > 0.99).all()


def test_labels_that_were_cut_off_are_finished_with_the_same_bytes(small_bundle: str, texts: Path, tmp_path: Path):
    whole, out = labels_of(small_bundle, texts, tmp_path / "whole"), tmp_path / "cut"
    config = LabelConfig(small_bundle, [str(texts)], str(out))
    with pytest.raises(Killed):
        label(config, cut_off(2))
    first = contents(out)
    assert 2 <= len(first) < len(contents(whole)) - 1
    refused(lambda: TeacherLabels(str(out)), str(out), "not finished", "`label` command goes on")
    (out / f"{part_name(0)}.0123abcd.part").write_bytes(b"the beginning of a part")
    (out / f"{MANIFEST}.0123abcd.part").write_bytes(b"{")
    (out / part_name(1)).write_bytes(first[part_name(1)][:-100])
    moment = (out / part_name(0)).stat().st_mtime_ns
    label(config)
    assert contents(out) == contents(whole)
    assert (out / part_name(0)).stat().st_mtime_ns == moment  # it was kept


def test_other_texts_are_labeled_again_and_another_teacher_is_refused(small_bundle: str, texts: Path, tmp_path: Path):
    other, out = tmp_path / "other", tmp_path / "cut"
    shutil.copytree(small_bundle, other)
    (other / "config.json").write_text((other / "config.json").read_text().replace('"seed": 0', '"seed": 1'))
    assert bundle_digest(str(other)) != bundle_digest(small_bundle)
    with pytest.raises(Killed):
        label(LabelConfig(small_bundle, [str(texts)], str(out)), cut_off(2))
    refused(lambda: labels_of(str(other), texts, out), part_name(0), "another teacher", "--overwrite")
    changed = texts.read_text("utf-8")
    texts.write_text(f"{changed[1:]}{changed[0]}", "utf-8")  # of the same size
    assert contents(labels_of(small_bundle, texts, out)) == contents(labels_of(small_bundle, texts, tmp_path / "whole"))
    refused(lambda: labels_of(small_bundle, texts, out), "exists already", "--overwrite")
    texts.write_text("only one\n")
    labels_of(str(other), texts, out, overwrite=True)
    assert sorted(contents(out)) == ["labels.json", part_name(0)]


def test_a_folder_that_is_not_as_it_was_written_is_refused_by_name(small_bundle: str, texts: Path, tmp_path: Path):
    out = labels_of(small_bundle, texts, tmp_path / "labels")
    teacher = shutil.copytree(small_bundle, tmp_path / "teacher")
    (teacher / "metrics.json").write_text("{}")
    (teacher / "config.json").write_text((teacher / "config.json").read_text().replace('"seed": 0', '"seed": 1'))
    foreign = labels_of(str(teacher), texts, tmp_path / "foreign")
    refused(lambda: TeacherLabels(str(tmp_path / "none")), "none", "no such folder")
    refused(lambda: TeacherLabels(small_bundle), small_bundle, "is no label folder")
    refused(lambda: labels_of(small_bundle, texts, teacher), str(teacher), "is no folder of labels")
    (foreign / "notes.txt").touch()
    refused(lambda: labels_of(str(teacher), texts, foreign, overwrite=True), "notes.txt", "another --out")
    assert TeacherLabels(str(foreign))
    for name in ("part-1.txt", "labels.json.bak"):  # which may be the texts that are to be labeled
        own = tmp_path / f"with-{name}"
        own.mkdir()
        shutil.copy(texts, own / name)
        refused(lambda: labels_of(small_bundle, own / name, own), name, "another --out")  # noqa: B023
        assert (own / name).read_bytes() == texts.read_bytes()
    labels = TeacherLabels(str(out))
    kept = (out / part_name(1)).read_bytes()
    (out / part_name(1)).write_bytes((foreign / part_name(1)).read_bytes())
    refused(lambda: list(labels.read()), part_name(1), "another teacher")
    (out / part_name(1)).write_bytes(kept[:-1])
    refused(lambda: list(labels.read()), part_name(1), "damaged")
    (out / part_name(1)).unlink()
    refused(lambda: TeacherLabels(str(out)), part_name(1), "is missing", "cut")
    (out / part_name(1)).write_bytes(kept)
    (out / part_name(90)).write_bytes(kept)
    refused(lambda: TeacherLabels(str(out)), part_name(90), "mixed")
    (out / part_name(90)).unlink()
    info = json.loads((out / "labels.json").read_text())
    (out / "labels.json").write_text(json.dumps(info | {"format_version": 99}))
    refused(lambda: TeacherLabels(str(out)), "label format 99", "update Tandem")
    (out / "labels.json").write_text("{")
    refused(lambda: TeacherLabels(str(out)), "labels.json", "damaged")


def test_a_bad_line_is_named_and_what_was_labeled_remains(small_bundle: str, texts: Path, tmp_path: Path):
    lines = texts.read_bytes().splitlines()
    lines[70] = b"\xff"
    texts.write_bytes(b"\n".join(lines))
    refused(lambda: labels_of(small_bundle, texts, tmp_path / "labels"), f"{texts}:71", "UTF-8")
    assert part_name(0) in contents(tmp_path / "labels") and "labels.json" not in contents(tmp_path / "labels")
    small = tmp_path / "small.txt"  # which shares a shard with the end of the larger file
    small.write_bytes(b"one\ntwo\n\xff\n")
    texts.write_bytes(b"\n".join(lines[:70]))
    both = LabelConfig(small_bundle, [str(texts), str(small)], str(tmp_path / "both"))
    refused(lambda: label(both), f"{small}:3", "UTF-8")
    done = call("label", str(tmp_path / "none"), str(texts), "--out", str(tmp_path / "x"))
    assert done.exit_code == 2 and "no such bundle" in done.stderr and not (tmp_path / "x").exists()


def test_labels_do_not_depend_on_the_threads_of_the_process(small_bundle: str, texts: Path, tmp_path: Path):
    one = contents(labels_of(small_bundle, texts, tmp_path / "one"))
    torch.set_num_threads(2)
    assert contents(labels_of(small_bundle, texts, tmp_path / "two")) == one
    assert torch.get_num_threads() == 2


def test_an_encoder_labels_as_it_extracts(small_dataset: str, tmp_path: Path):
    files = load_encoder(tiny_encoder(tmp_path / "bert", "bert"))
    dataset = Dataset(small_dataset)
    config = TaggerConfig(encoder=str(tmp_path / "bert"), cell="none", embedding_dim=0, crf=True)
    tagger: Tagger = new_tagger(config, dataset.info["words"], 0, encoder=files)
    extractor = Extractor(tagger, dataset.tokenizer(), subwords=files.subwords())
    texts = [labeled.text for labeled in dataset.texts("valid")][:20]
    together, alone = extractor.probabilities(texts), [extractor.probabilities([text]) for text in texts]
    assert np.allclose(together.keyphrase, np.concatenate([each.keyphrase for each in alone]), atol=1e-5)
    assert np.allclose(together.keyword, np.concatenate([each.keyword for each in alone]), atol=1e-5)


@pytest.mark.ray
def test_labels_made_on_ray_are_the_same_byte_for_byte(cluster: Any, small_bundle: str, texts: Path, tmp_path: Path):
    alone = labels_of(small_bundle, texts, tmp_path / "alone")
    out = str(tmp_path / "ray")
    label(LabelConfig(small_bundle, [str(texts)], out), parallel_map(out, 3, actors=True))
    assert contents(tmp_path / "ray") == contents(alone)
    assert pq.read_metadata(tmp_path / "ray" / part_name(0)).num_rows > 5
