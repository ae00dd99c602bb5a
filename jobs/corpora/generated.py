"""Generated texts with their keyphrases, and the files and the dataset of a corpus of them."""

import json
import re
from pathlib import Path
from typing import NamedTuple

MARKED = re.compile(r"\{([^}]*)\}")  # a keyphrase in braces, before its offsets are known


class GeneratedText(NamedTuple):
    """A text with its keyphrases as (start, end) in characters, half-open, sorted and disjoint."""

    text: str
    spans: list[tuple[int, int]]  # a keyphrase is text[start:end]


def unmark(marked: str) -> GeneratedText:
    """Return the text without the braces of its keyphrases, with their offsets instead."""
    spans = []
    for earlier, found in enumerate(MARKED.finditer(marked)):
        start = found.start() - 2 * earlier
        spans.append((start, start + len(found[1])))
    return GeneratedText(MARKED.sub(r"\1", marked), spans)


def split_corpus(texts: list[GeneratedText]) -> dict[str, list[GeneratedText]]:
    """Return the texts of the splits train (70 %), valid (10 %) and test (20 %)."""
    train, valid = len(texts) * 7 // 10, len(texts) * 8 // 10
    return {"train": texts[:train], "valid": texts[train:valid], "test": texts[valid:]}


def write_corpus(folder: Path, splits: dict[str, list[GeneratedText]]) -> dict[str, str]:
    """Write a corpus as JSONL files; return the path of each split. Raises OSError where they cannot be written."""
    from model import storage

    files = {}
    for split, texts in splits.items():
        lines = (json.dumps({"text": each.text, "spans": each.spans}, ensure_ascii=False) + "\n" for each in texts)
        files[split] = str(folder / f"{split}.jsonl")
        storage.write(files[split], "".join(lines).encode())
    return files


def prepare_corpus(files: dict[str, str], out: Path) -> str:
    """Prepare the dataset directory of the corpus, replacing it; return its absolute path."""
    from model.prepare.builder import PrepareConfig, prepare

    config = PrepareConfig(
        [files["train"]], str(out), [files["valid"]], [files["test"]], min_frequency=2, overwrite=True
    )
    prepare(config)
    return str(out.resolve())
