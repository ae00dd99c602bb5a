"""Label unlabeled texts with a teacher: shard by shard into the parts of a label folder, see label_files.py.

A shard is processed independently of all others, by one thread, so the parts are the same on any number of processes. A
part that is there already is kept if its teacher and its texts are the same: a command that was cut off goes on.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pyarrow.fs import FileType

from model import staging, storage
from model.distillation import label_files
from model.distillation.label_files import LABELS_FORMAT, MANIFEST, LabelsInfo, PartInfo, part_name, rules_digest
from model.errors import UserError
from model.inference.batch_inference import (
    ExtractionShard,
    ShardResult,
    SourceLines,
    add_lines,
    input_files,
    texts_of_shard,
)
from model.inference.bundle import bundle_digest
from model.inference.extractor import PIPE_BATCH_SIZE, Extractor
from model.shards import ParallelMap, make_shards, serial_map

SHARD_BYTES = 2**20  # of texts: a tenth of what `extract` takes, since less is lost when a slow teacher is cut off
_SOURCE, _COUNTS = b"source", b"counts"  # in the metadata of each part


@dataclass(frozen=True)
class LabelConfig:
    """The teacher, the input and the output.

    Attributes:
        teacher: path or URI of a bundle.
        files: paths, URIs or globs of unlabeled texts, as `extract` reads them.
        out: path or URI of the label folder.
        device: `cpu`, `cuda` or `cuda:N`.
        overwrite: whether to replace what is at `out`.
    """

    teacher: str
    files: list[str]
    out: str
    device: str = "cpu"
    overwrite: bool = False


@dataclass
class LabeledPart(ShardResult):
    """The result of a shard, with the part in the manifest."""

    info: PartInfo = field(default_factory=lambda: PartInfo(texts=0, words=0, bytes=0, sha256=""))


def label(
    config: LabelConfig,
    parallel_map: ParallelMap = serial_map,
    on_progress: Callable[[int], None] = lambda texts: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> LabelsInfo:
    """Write a label folder, or finish one that was cut off, and return the content of its labels.json.

    Args:
        config: the teacher, the input and the output.
        parallel_map: applies a function to the shards, in this process or elsewhere.
        on_progress: called with the number of texts that are done.
        on_note: called with what may surprise in how a file is read.

    Raises:
        UserError: the teacher, the input or the output cannot be used; finished parts remain.
        OSError: the storage is full or cannot be written; likewise.
    """
    digest = bundle_digest(config.teacher)
    tokenizer = storage.read(storage.join(config.teacher, "tokenizer.json"))
    files = input_files(config.files, on_note)
    shards = [ExtractionShard(*each) for each in enumerate(make_shards(files, SHARD_BYTES))]
    _prepare_folder(config)
    write = partial(_label_shard, storage.absolute(config.teacher), digest, config.device, storage.absolute(config.out))
    sources: list[SourceLines] = []
    parts: list[PartInfo] = []
    texts = 0
    with closing(parallel_map(write, shards)) as results:
        for shard, part in zip(shards, results, strict=True):
            add_lines(sources, shard.ranges, part)
            parts.append(part.info)
            texts += part.info["texts"]
            on_progress(texts)
    for name in label_files.part_names(config.out)[len(parts) :]:  # of an earlier command on more texts
        storage.remove(storage.join(config.out, name))
    info: LabelsInfo = {
        "format_version": LABELS_FORMAT,
        "texts": texts,
        "words": sum(part["words"] for part in parts),
        "bytes": sum(part["bytes"] for part in parts),
        "teacher": config.teacher,
        "teacher_digest": digest,
        "tokenizer_digest": hashlib.sha256(tokenizer).hexdigest(),
        "rules_digest": rules_digest(tokenizer),
        "sources": sources,
        "parts": parts,
    }
    storage.write(storage.join(config.out, MANIFEST), json.dumps(info, indent=2, ensure_ascii=False).encode())
    return info


def _prepare_folder(config: LabelConfig) -> None:
    """Make the folder; what a cut-off command left there remains. Raises UserError where something else is there."""
    out = config.out
    if storage.exists(storage.join(out, MANIFEST)) and not config.overwrite:
        raise staging.exists_already(out)
    if storage.file_type(out) == FileType.File:
        raise UserError(f"{out}: is a file; give --out a folder")
    if others := label_files.other_names(out):
        raise UserError(f"{out}: is no folder of labels alone: it has {others[0]}; move it, or choose another --out")
    names = storage.list_directory(out)
    if MANIFEST in names:
        storage.remove(storage.join(out, MANIFEST))  # first: without it the folder is not taken for finished
        names.remove(MANIFEST)
    parts = label_files.part_names(out) if names else []
    for name in names:
        if config.overwrite or name not in parts:  # the beginning of a file whose writing was cut off
            storage.remove(storage.join(out, name))
    storage.make_directory(out)


@cache
def _loaded(teacher: str, device: str) -> Extractor:
    return Extractor.load(teacher, device)


def _label_shard(teacher: str, digest: str, device: str, folder: str, shard: ExtractionShard) -> LabeledPart:
    """Write the part of a shard, unless it is there already."""
    place, part = storage.join(folder, part_name(shard.number)), LabeledPart()
    try:
        source = _source(shard, part)
        found = _existing(place, digest, source)
        if found is None:
            _write(place, digest, source, _loaded(teacher, device), shard, part)
            found = _existing(place, digest, source)
            assert found is not None
        return found
    except (UserError, OSError) as error:
        part.error = error
        return part


def _source(shard: ExtractionShard, part: LabeledPart) -> str:
    """Return what tells the texts of a shard from others: its ranges, and a digest of its texts. Counts the part's lines."""
    digest = hashlib.sha256()
    for text in texts_of_shard(shard.ranges, part.lines):
        digest.update(json.dumps(text).encode())
    return json.dumps([[[*each[2:4], each.path] for each in shard.ranges], digest.hexdigest()])


def _existing(place: str, digest: str, source: str) -> LabeledPart | None:
    """Return the part at a location, or None where it has to be written. Raises UserError if another teacher wrote it."""
    try:
        content = storage.read(place)
        pq.read_table(io.BytesIO(content), page_checksum_verification=True)
    except (OSError, pa.ArrowException):
        return None
    metadata = label_files.part_metadata(content)
    teacher = metadata.get(label_files.TEACHER, b"").decode()
    if teacher != digest:
        raise UserError(
            f"{place}: was labeled by another teacher ({teacher[:12]}...); choose another --out, or replace the labels with "
            f"--overwrite"
        )
    if metadata[_SOURCE].decode() != source:
        return None
    counts = json.loads(metadata[_COUNTS])
    info = PartInfo(
        texts=counts["texts"],
        words=counts["words"],
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    return LabeledPart(counts["lines"], None, info)


def _write(
    place: str, digest: str, source: str, extractor: Extractor, shard: ExtractionShard, part: LabeledPart
) -> None:
    """Label the texts of a shard, and write them with what `_existing` reads; `_source` has counted the part's lines."""
    texts = texts_of_shard(shard.ranges, [])
    with (
        _one_thread(),
        storage.open_atomic(place) as file,
        pq.ParquetWriter(file, label_files.SCHEMA, compression="zstd", write_page_checksum=True) as writer,
    ):
        while batch := list(islice(texts, PIPE_BATCH_SIZE)):
            found = extractor.probabilities(batch)
            scores = (each.astype(np.float16) for each in (found.keyword, found.keyphrase))
            writer.write_table(label_files.to_table(batch, found.begins, *scores))
            part.info["texts"] += len(batch)
            part.info["words"] += len(found.keyword)
        counts = {"texts": part.info["texts"], "words": part.info["words"], "lines": part.lines}
        about = {label_files.TEACHER: digest, _SOURCE: source, _COUNTS: json.dumps(counts)}
        writer.add_key_value_metadata(about)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread: with more, sums are added in another order, and the last bits differ."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
