"""From labelled files to a dataset directory, on one core and in bounded memory."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from model import storage
from model.corpus import Labelled, Source, Tally, sources, told
from model.dataset import FORMAT_VERSION, SPLITS, write_split
from model.errors import UserError
from model.examples import Example, examples
from model.tokenizer import train_tokenizer
from model.vectors import Vectors, read_vectors, save_vectors


@dataclass(frozen=True)
class Recipe:
    """What to make a dataset from.

    Attributes:
        train, valid, test: paths, URIs or globs of each split. Where valid is not given, a tenth of the training texts
            becomes valid; where neither is given, another tenth becomes test. A hash of the text decides, so that
            equal texts stay together and a repeated run gives the same splits.
        out: the dataset directory, a path or URI.
        format: one of corpus.FORMATS, or `auto`.
        min_frequency: words seen less often in training become `<unk>`.
        max_words: size of the vocabulary at most.
        max_tokens: longer texts are left out.
        vectors: a file of pretrained word vectors, see model/vectors.py.
        strict: refuse the input instead of leaving anything out.
        skip_bad_lines: leave out lines that cannot be used instead of refusing the input.
        overwrite: replace a dataset that stands at `out`.
    """

    train: list[str]
    out: str
    valid: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)
    format: str = "auto"
    min_frequency: int = 1
    max_words: int = 1_000_000
    max_tokens: int = 1_000
    vectors: str | None = None
    strict: bool = False
    skip_bad_lines: bool = False
    overwrite: bool = False


def prepare(recipe: Recipe) -> dict[str, Any]:
    """Makes the dataset directory and gives the content of its dataset.json.

    Raises:
        UserError: the input or the output cannot be used; nothing is left at `out`.
        OSError: the storage is full or cannot be written; likewise.
    """
    _check_out(recipe)
    given = {"train": recipe.train, "valid": recipe.valid, "test": recipe.test}
    opened = {
        split: sources(patterns, recipe.format, recipe.skip_bad_lines) for split, patterns in given.items() if patterns
    }
    shares = _carved(given)
    with storage.new_directory(recipe.out, marker="dataset.json") as folder:
        training = (each.text for each in _texts(opened["train"], Tally()) if _share(each.text, shares) == "train")
        tokenizer = train_tokenizer(training, recipe.min_frequency, recipe.max_words)
        tokenizer.save(str(folder / "tokenizer.json"))
        vectors = _add_vectors(folder, recipe.vectors, tokenizer)
        splits = {}
        for split in SPLITS:
            origin = split if split in opened else "train"
            if split not in opened and split not in shares.values():
                continue
            tally = Tally()
            # What a reader leaves out belongs to the file, and is told once: with the split that has the file.
            texts = _texts(opened[origin], tally if origin == split else Tally())
            if origin == "train":
                texts = (each for each in texts if _share(each.text, shares) == split)
            splits[split] = _write(
                folder / split, split, examples(texts, tokenizer, tally, recipe.max_tokens), tally, recipe
            )
        info = {
            "format_version": FORMAT_VERSION,
            "words": tokenizer.get_vocab_size(),
            "splits": splits,
            "vectors": vectors,
            "sources": {split: [_facts(source) for source in each] for split, each in opened.items()},
            "recipe": {
                "min_frequency": recipe.min_frequency,
                "max_words": recipe.max_words,
                "max_tokens": recipe.max_tokens,
            },
        }
        (folder / "dataset.json").write_text(json.dumps(info, indent=2, ensure_ascii=False), "utf-8")
    return info


def _check_out(recipe: Recipe) -> None:
    if not storage.exists(recipe.out):
        return
    if not recipe.overwrite:
        raise UserError(f"{recipe.out}: exists already; choose another --out, or replace it with --overwrite")
    if not storage.exists(storage.join(recipe.out, "dataset.json")):
        raise UserError(f"{recipe.out}: is no dataset, and --overwrite replaces nothing else; choose another --out")


def _texts(opened: list[Source], tally: Tally) -> Iterator[Labelled]:
    for source in opened:
        yield from source.read(tally)


def _carved(given: dict[str, list[str]]) -> dict[int, str]:
    """Which tenths (by hash) of the training files go to a split that has no files of its own."""
    shares = dict.fromkeys(range(10), "train")
    if not given["valid"]:
        shares[9] = "valid"
        if not given["test"]:
            shares[8] = "test"
    return shares


def _share(text: str, shares: dict[int, str]) -> str:
    return shares[int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") % 10]


def _write(folder: Path, split: str, made: Iterable[Example], tally: Tally, recipe: Recipe) -> dict[str, Any]:
    counts = write_split(folder, made)
    if tally.counts and recipe.strict:
        raise UserError(f"{split}: --strict, and this would be left out: {'; '.join(told(tally.counts, tally.places))}")
    if not counts["rows"]:
        why = "; ".join(told(tally.counts, tally.places)) or "there were too few texts to set some aside"
        raise UserError(f"{split}: no text is left: {why}; mend the files, or give more texts")
    return counts | {"skipped": tally.counts, "skipped_places": tally.places}


def _facts(source: Source) -> dict[str, Any]:
    return {
        "path": source.path,
        "format": source.format,
        "lines": source.lines,
        "bytes": source.size,
        "sha256": source.sha256,
    }


def _add_vectors(folder: Path, path: str | None, tokenizer: Tokenizer) -> dict[str, Any] | None:
    if path is None:
        return None
    vocabulary = tokenizer.get_vocab()
    words = sorted(vocabulary, key=vocabulary.__getitem__)
    found: Vectors = read_vectors(path, words)
    save_vectors(folder / "vectors.safetensors", found.table)
    return {"path": path, "size": found.table.shape[1], "words_covered": found.covered, "words": len(words)}
