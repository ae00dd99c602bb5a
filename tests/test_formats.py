"""The files that annotation tools, collections and spreadsheets write: each holds the same texts and keyphrases."""

import csv
import gzip
import importlib.util
import io
import json
import lzma
import os
import random
import shutil
import threading
import zipfile
from collections.abc import Callable
from functools import partial
from operator import length_hint
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import call, last_json, refused

from model.data.examples import examples
from model.data.labeled_text import SkipCounts
from model.data.tokenizer import new_tokenizer
from model.errors import UserError
from model.prepare.builder import PrepareConfig, prepare
from model.prepare.preview import preview
from model.readers.formats import FORMATS
from model.readers.options import AUTO, SUMMARIES, ReadOptions
from model.readers.readers import Reader, left_out, reading_notes, resolve_inputs, stream_texts, unlabeled_inputs

# Words that no text repeats, so that it does not matter which occurrence is marked.
TEXTS = [
    ("the river ferry stops at Elmbridge pier", ["river ferry", "Elmbridge"]),
    ("we baked rye bread in a clay oven", ["rye bread", "clay oven"]),
    ("nothing happened on Tuesday", []),
    ("Hollis paints the lighthouse , then sleeps", ["Hollis", "lighthouse"]),
    ("old maps of the salt road", ["salt road"]),
]
EXPECTED = [phrases for _, phrases in TEXTS]
Write = Callable[[Path], Any]


def spans(text: str, phrases: list[str]) -> list[list[int]]:
    return [[text.index(phrase), text.index(phrase) + len(phrase)] for phrase in phrases]


def tags(text: str, phrases: list[str], scheme: str = "BIO", type_: str = "-KEY") -> list[str]:
    """The tags of the words; a scheme is the letters of begin, inside, end and single."""
    begin, inside, end, single = {"BIO": "BIIB", "IO": "IIII", "BIOES": "BIES", "BILOU": "BILU", "BMES": "BMES"}[scheme]
    words = text.split()
    found = ["O"] * len(words)
    for phrase in (each.split() for each in phrases):
        first = next(i for i in range(len(words)) if words[i : i + len(phrase)] == phrase)
        letters = [begin, *inside * (len(phrase) - 2), end] if len(phrase) > 1 else [single]
        found[first : first + len(phrase)] = [letter + type_ for letter in letters]
    return found


def token_spans(text: str, phrases: list[str]) -> list[list[Any]]:
    """The first and the last token of each phrase, as GLiNER has them."""
    found = []
    for start, end in spans(text, phrases):
        first = len(text[:start].split())
        found.append([first, first + len(text[start:end].split()) - 1, "key"])
    return found


def json_lines(record: Callable[[str, list[str]], Any]) -> str:
    return "".join(json.dumps(record(text, phrases), ensure_ascii=False) + "\n" for text, phrases in TEXTS)


def array(record: Callable[[str, list[str]], Any], indent: int | None = None) -> str:
    return json.dumps([record(text, phrases) for text, phrases in TEXTS], indent=indent)


def conll(line: Callable[[int, str, str], str], scheme: str = "BIO", between: str = "\n", **options: str) -> str:
    """A line for each word, by its number in the text from 1, the word and the tag."""
    blocks = []
    for text, phrases in TEXTS:
        rows = zip(text.split(), tags(text, phrases, scheme, **options), strict=True)
        blocks.append("".join(line(i, word, tag) + "\n" for i, (word, tag) in enumerate(rows, 1)))
    return between.join(blocks)


def rows(row: Callable[[int, int, str, str], str]) -> str:
    """A row for each word, by the numbers of the text and the word, both from 1, the word and the tag."""
    numbers = iter(range(1, len(TEXTS) + 1))
    number = 0

    def line(i: int, word: str, tag: str) -> str:
        nonlocal number
        number = next(numbers) if i == 1 else number
        return row(number, i, word, tag)

    return conll(line, between="")


def cell(word: str) -> str:
    return f'"{word}"' if word == "," else word


def sheet(delimiter: str, header: list[str], row: Callable[[str, list[str]], list[str]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([header] * bool(header) + [row(text, phrases) for text, phrases in TEXTS])
    return out.getvalue()


def webanno(text: str, phrases: list[str], number: int) -> str:
    rows, at, ids = [f"#Text={text}"], 0, dict.fromkeys(phrases)
    for i, (word, tag) in enumerate(zip(text.split(), tags(text, phrases), strict=True), 1):
        own = next((n for n, phrase in enumerate(ids, 1) if word in phrase.split()), 0) if tag != "O" else 0
        rows.append(f"{number}-{i}\t{at}-{at + len(word)}\t{word}\t{f'KEY[{own}]' if own else '_'}\t")
        at += len(word) + 1
    return "\n".join(rows) + "\n"


def own(text: str, phrases: list[str]) -> dict[str, Any]:
    return {"text": text, "keyphrases": phrases}


def label_studio(text: str, phrases: list[str]) -> dict[str, Any]:
    results = [{"type": "labels", "value": {"start": s, "end": e, "labels": ["KEY"]}} for s, e in spans(text, phrases)]
    return {"id": 1, "data": {"text": text}, "annotations": [{"was_cancelled": False, "result": results}]}


def entity(text: str, phrases: list[str]) -> list[list[Any]]:
    return [[start, end, "KEY"] for start, end in spans(text, phrases)]


def labeled_table() -> pa.Table:
    """Words and the numbers of their tags, whose names the `datasets` library keeps in the schema."""
    names = ["O", "B-KEY", "I-KEY"]
    rows = [{"tokens": t.split(), "ner_tags": [names.index(tag) for tag in tags(t, p)]} for t, p in TEXTS]
    features = {"ner_tags": {"feature": {"names": names, "_type": "ClassLabel"}, "_type": "Sequence"}}
    return pa.Table.from_pylist(rows).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )


def table_file(write_table: Callable[[pa.Table, Any], None], table: pa.Table | None = None) -> bytes:
    file = io.BytesIO()
    write_table(table or labeled_table(), file)
    return file.getvalue()


def write_arrow(table: pa.Table, file: Any, writer: Callable[..., Any]) -> None:
    with writer(file, table.schema) as opened:
        opened.write_table(table)


TSV = "".join(f"{text}\t{'; '.join(phrases)}\n" for text, phrases in TEXTS)
CONTENTS: dict[str, str | bytes] = {
    "parquet": table_file(pq.write_table),
    "arrow stream": table_file(lambda table, file: write_arrow(table, file, pa.ipc.new_stream)),
    "arrow file": table_file(lambda table, file: write_arrow(table, file, pa.ipc.new_file)),
    "own spans": json_lines(lambda t, p: {"text": t, "spans": spans(t, p), "keyphrases": None}),
    "spans as floats": json_lines(lambda t, p: {"text": t, "spans": [[float(a), float(b)] for a, b in spans(t, p)]}),
    "keyphrases, null spans": json_lines(lambda t, p: {"text": t, "spans": None, "keyphrases": p}),
    "keyphrases in one string": json_lines(lambda t, p: {"text": t, "keyphrases": ";".join(p)}),
    "array of own records": array(own),
    "indented array": array(own, indent=1),
    "array, an item a line": "[\n" + ",\n".join(json.dumps(own(*each)) for each in TEXTS) + "\n]\n",
    "doccano": json_lines(lambda t, p: {"id": 1, "text": t, "label": entity(t, p), "Comments": []}),
    "doccano, labels": json_lines(lambda t, p: {"text": t, "labels": entity(t, p)}),
    "doccano, relations": json_lines(
        lambda t, p: {
            "text": t,
            "entities": [{"start_offset": a, "end_offset": b} for a, b in spans(t, p)],
            "relations": [],
        }
    ),
    "prodigy": json_lines(
        lambda t, p: {
            "text": t,
            "answer": "accept",
            "tokens": [{"text": word} for word in t.split()],
            "spans": [{"start": a, "end": b, "token_start": 0, "label": "KEY"} for a, b in spans(t, p)],
        }
    ),
    "prodigy, no spans where nothing is marked": json_lines(
        lambda t, p: {"text": t, "answer": "accept"} | ({"spans": spans(t, p)} if p else {})
    ),
    "label studio": array(label_studio),
    "label studio, min": array(
        lambda t, p: {"text": t, "label": [{"start": a, "end": b, "labels": ["KEY"]} for a, b in spans(t, p)]}
    ),
    "midas": json_lines(
        lambda t, p: {"document": t.split(), "doc_bio_tags": tags(t, p, type_=""), "extractive_keyphrases": p}
    ),
    "tokens and ner_tags": json_lines(lambda t, p: {"tokens": t.split(), "ner_tags": tags(t, p)}),
    "tokens and labels": json_lines(lambda t, p: {"tokens": t.split(), "labels": tags(t, p, "BILOU")}),
    "azure": json_lines(
        lambda t, p: {
            "text": t,
            "entities": [{"text": t[a:b], "category": "Key", "offset": a, "length": b - a} for a, b in spans(t, p)],
        }
    ),
    "comprehend": array(
        lambda t, p: {
            "text": t,
            "Entities": [{"Text": t[a:b], "Score": 0.9, "BeginOffset": a, "EndOffset": b} for a, b in spans(t, p)],
        }
    ),
    "entities by their texts": json_lines(
        lambda t, p: {"text": t, "entities": [{"id": 3, "text": each, "type": "Key", "score": 0.5} for each in p]}
    ),
    "names with capitals": json_lines(lambda t, p: {"ID": 1, "Text": t, "Keyphrases": p}),
    "names in capitals": json.dumps([{"TEXT": t, "KEYWORDS": p, "SPANS": None} for t, p in TEXTS], indent=1),
    "titles with capitals": json_lines(lambda t, p: {"Title": "On it", "Abstract": t, "Keywords": ";".join(p)}),
    "parquet with capitals": table_file(
        pq.write_table, pa.Table.from_pylist([{"Text": t, "KeyPhrases": p} for t, p in TEXTS])
    ),
    "gliner": json_lines(lambda t, p: {"tokenized_text": t.split(), "ner": token_spans(t, p)}),
    "gliner with a text": array(lambda t, p: {"text": t, "tokenized_text": t.split(), "ner": token_spans(t, p)}),
    "kp20k": json_lines(lambda t, p: {"title": "On it", "abstract": t, "keywords": ";".join(p)}),
    "openkp": json_lines(lambda t, p: {"url": "x", "text": t, "KeyPhrases": [phrase.split() for phrase in p]}),
    "spacy 3": array(lambda t, p: [t, {"entities": entity(t, p)}]),
    "spacy 3, a pair a line": json_lines(lambda t, p: [t, {"entities": entity(t, p)}]),
    "spacy, documents as JSON": json_lines(
        lambda t, p: {
            "text": t,
            "ents": [{"start": a, "end": b, "label": "KEY"} for a, b in spans(t, p)],
            "tokens": [{"id": i, "start": 0, "end": 1} for i, _ in enumerate(t.split())],
        }
    ),
    "stanza": array(
        lambda t, p: {
            "text": t,
            "ents": [{"text": t[a:b], "start_char": a, "end_char": b} for a, b in spans(t, p)],
        }
    ),
    "spacy annotator": json.dumps(
        {"classes": ["KEY"], "annotations": [[t, {"entities": entity(t, p)}] for t, p in TEXTS]}
    ),
    "spacy 2": array(
        lambda t, p: {
            "paragraphs": [
                {
                    "raw": t,
                    "sentences": [
                        {"tokens": [{"orth": w, "ner": g} for w, g in zip(t.split(), tags(t, p, "BILOU"), strict=True)]}
                    ],
                }
            ]
        }
    ),
    "viewer of datasets": json.dumps({"features": [], "rows": [{"row_idx": 0, "row": own(*each)} for each in TEXTS]}),
    "labels beside a hashtag": json_lines(lambda t, p: {"text": t + " #Monday", "label": entity(t, p)}),
    "conll": conll(lambda i, w, t: f"{w}\t{t}"),
    "conll by blanks": conll(lambda i, w, t: f"{w} {t}"),
    "conll with IO": conll(lambda i, w, t: f"{w}\t{t}", "IO"),
    "conll with BMES": conll(lambda i, w, t: f"{w} {t}", "BMES"),
    "conll in lower case": conll(lambda i, w, t: f"{w}\t{t.lower()}", "BIOES"),
    "conll with types of two words": conll(lambda i, w, t: f"{w}\t{t}", type_="-two words"),
    "conll 2003": "-DOCSTART- -X- O O\n\n" + conll(lambda i, w, t: f"{w} NN I-NP {t}"),
    "label studio's conll": "-DOCSTART- -X- O\n" + conll(lambda i, w, t: f"{w} -X- _ {t}"),
    "germeval": conll(lambda i, w, t: f"{i}\t{w}\t{t}\tO", between="\n#\thttp://x.org [2009-10-17]\n"),
    "conllu": "# newdoc\n# text = x\n" + conll(lambda i, w, t: f"{i}\t{w}\t{w}\tNOUN\t_\t_\t0\tdep\t_\t{t}"),
    "conllu with ranges": conll(lambda i, w, t: "1-2\tit\t_\tO\n" * (i == 1) + f"{i}\t{w}\t_\t{t}"),
    "tag first": conll(lambda i, w, t: f"{t}\t{w}"),
    "webanno": "#FORMAT=WebAnno TSV 3.3\n#T_SP=custom.Key|value\n\n\n"
    + "\n".join(webanno(*each, number) for number, each in enumerate(TEXTS, 1)),
    "tsv": TSV,
    "tsv with commas": TSV.replace("; ", ", "),
    "tsv without the last tab": TSV.replace("Tuesday\t", "Tuesday"),
    "tsv with a mark and Windows line ends": "\ufeff" + TSV.replace("\n", "\r\n") + "\x1a",
    "tsv with line ends of the old Macintosh": TSV.replace("\n", "\r"),
    "tsv after blank lines": "\n \n" + TSV,
    "tsv after a mark and a blank line": "\ufeff\n" + TSV,
    "conll after a mark and a blank line": "\ufeff\r\n" + conll(lambda i, word, tag: f"{word}\t{tag}"),
    "tsv in UTF-16": TSV.encode("utf-16"),
    "tsv in UTF-16, big-endian": b"\xfe\xff" + TSV.encode("utf-16-be"),
    "tsv in gzip without its suffix": gzip.compress(TSV.encode()),
    "csv": "\ufeff" + sheet(",", ["text", "keyphrases"], lambda t, p: [t, ";".join(p)]),
    "csv with semicolons": sheet(";", ["Text", "Keyphrases"], lambda t, p: [t, ";".join(p)]),
    "csv with three columns": sheet("\t", ["id", "text", "keyphrases"], lambda t, p: ["1", t, ";".join(p)]),
    "csv with bars": sheet("|", ["id", "Text", "Keyphrases"], lambda t, p: ["1", t, ";".join(p)]),
    "csv of Excel": "\ufeffsep=;\r\n" + sheet(";", ["text", "keyphrases"], lambda t, p: [t, ",".join(p)]),
    "csv of Excel with another delimiter": "SEP=^\n"
    + sheet("^", ["text", "keyphrases"], lambda t, p: [t, ";".join(p)]),
    "csv of Excel without names": "sep=,\n" + sheet(",", [], lambda t, p: [t, ";".join(p)]),
    "csv, a token a row": "sentence_id,word,pos,label\n" + rows(lambda n, i, w, t: f"{n},{cell(w)},NN,{t}"),
    "csv of Kaggle": "Sentence #,Word,POS,Tag\n"
    + rows(lambda n, i, w, t: f"{f'Sentence: {n}' * (i == 1)},{cell(w)},NN,{t}"),
    "csv, a token a row with tabs": "doc_id\tsent_id\ttoken\tner_tag\n"
    + rows(lambda n, i, w, t: f"{n // 2}\t{n % 2}\t{w}\t{t}"),
    "csv, a token a row after Excel's line": "sep=;\nToken;Tag;Text ID\n" + rows(lambda n, i, w, t: f"{w};{t};{n}"),
    "csv, a token a row and blank lines": "token,tag\n" + rows(lambda n, i, w, t: ",\n" * (i == 1) + f"{cell(w)},{t}"),
    "csv with spans": sheet(",", ["text", "spans"], lambda t, p: [t, json.dumps(spans(t, p))]),
    "csv of pandas": sheet(",", ["", "text", "keyphrases"], lambda t, p: ["0", t, str(p)]),
    "csv of pandas with tokens": sheet(",", ["tokens", "ner_tags"], lambda t, p: [str(t.split()), str(tags(t, p))]),
    "csv of pandas with pairs": sheet(",", ["text", "spans"], lambda t, p: [t, str([*map(tuple, spans(t, p))])]),
    "csv with line breaks": sheet(",", ["text", "keyphrases"], lambda t, p: [t.replace(" ", "\n", 1), ";".join(p)]),
}


def read(paths: list[Path], **options: Any) -> tuple[list[list[str]], dict[str, int]]:
    """The keyphrases of each text as they stand in it, and what was counted."""
    skips = SkipCounts()
    files = resolve_inputs([str(path) for path in paths], ReadOptions(**options))
    texts = [text for each in files for text in Reader(each).read(skips)]
    found = examples(texts, new_tokenizer(), skips, 1000)
    marked = [[e.text[e.offsets[a][0] : e.offsets[b - 1][1]] for a, b in e.spans] for e in found]
    return [[" ".join(phrase.split()) for phrase in phrases] for phrases in marked], skips.counts


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_every_format_has_a_summary_for_the_help():
    assert list(FORMATS) == list(SUMMARIES)


@pytest.mark.parametrize("name", CONTENTS)
def test_the_same_keyphrases_are_read_from_every_kind_of_file(tmp_path: Path, name: str):
    found, counts = read([write(tmp_path, "file", CONTENTS[name])])
    assert found == EXPECTED
    assert counts == ({"line without a tab, read as a text without keyphrases": 1} if "last tab" in name else {})


def test_compressed_tables_and_documents_are_decompressed(tmp_path: Path):
    table = pa.table({"text": ["old maps of the salt road"], "keyphrases": [["salt road"]]})
    pq.write_table(table, path := tmp_path / "a.parquet")
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert read([path]) == ([["salt road"]], {})
    path.write_bytes(path.read_bytes()[:-20])
    refused(lambda: read([path]), f"{path}: ", "damaged")


def test_tags_are_numbers_only_where_their_names_are_in_the_file(tmp_path: Path):
    path = tmp_path / "numbers.parquet"
    pq.write_table(labeled_table().replace_schema_metadata(), path)
    refused(lambda: read([path]), f"{path}:1: ", "their names are not in the file", "--tag-names")
    assert read([path], tag_names=("O", "B-KEY", "I-KEY"))[0] == EXPECTED
    refused(lambda: read([path], tag_names=("O", "B-KEY")), f"{path}:1: ", "tag 2 ", "0 to 1")
    refused(lambda: read([path], tag_names=("O", "KEY")), "--tag-names", "'KEY'")
    pq.write_table(labeled_table().replace_schema_metadata({"huggingface": "[]"}), path)
    refused(lambda: read([path]), f"{path}: ", "damaged")


@pytest.mark.parametrize("tag", [-1, 3, True, 1.0])
def test_a_tag_without_a_name_is_refused(tmp_path: Path, tag: Any):
    path = write(tmp_path, "a", json.dumps({"tokens": ["salt", "road"], "labels": [1, tag]}))
    refused(lambda: read([path], tag_names=("O", "B", "I")), f"{path}:1: ", str(tag), '"labels"')


@pytest.mark.parametrize("format", ["auto", "conll"])
@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ("the\t0\nsalt\t1\nroad\t2\n\n7\t0\nmaps\t1\n", ["the salt road", "7 maps"]),
        ("1 salt 1 x\n2 road 2 y\n\n# id\n1 # 0 x\n2 maps 1 y\n", ["salt road", "# maps"]),  # numbers of tokens
        ("# 0\nsalt B\nroad I\n\nmaps 1\n", ["# salt road", "maps"]),
    ],
)
def test_tags_of_conll_may_be_numbers(content: str, texts: list[str], format: str, tmp_path: Path):
    path = write(tmp_path, "a", content)
    names = ("O", "B-KEY", "I-KEY")
    assert read([path], format=format, tag_names=names)[0] == [["salt road"], ["maps"]]
    [file] = resolve_inputs([str(path)], ReadOptions(format, tag_names=names))
    assert [labeled.text for labeled in Reader(file).read(SkipCounts())] == texts
    refused(lambda: read([path], format="conll", tag_names=("O",)), f"{path}:", "is unknown", "--tag-names")


def test_names_of_tags_are_for_formats_with_tags(tmp_path: Path):
    path = write(tmp_path, "a.tsv", TSV)
    refused(lambda: read([path], tag_names=("O", "B")), "--tag-names", "is tsv", "leave it out")


def test_numbers_of_tags_are_named_on_the_command_line(tmp_path: Path):
    path = write(tmp_path, "a", '{"tokens": ["the", "salt", "road"], "ner_tags": [0, 1, 2]}')
    done = call("prepare", str(path), "--dry-run", "--tag-names", "O, B-KEY,I-KEY")
    assert done.exit_code == 0 and "the [salt road]" in done.stdout, done.output


def test_a_carriage_return_inside_a_row_is_refused_by_its_place(tmp_path: Path):
    path = write(tmp_path, "a.csv", "river ferry,ferry\nthe\rsalt road,salt road\n")
    refused(lambda: read([path]), f"{path}")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("token,tag\nsalt,B-KEY\nroad,I-KEY\nends,O\n\n", "nothing that parts the texts"),
        ("word;label\nsalt;1\nroad;0\n", "nothing that parts the texts"),
        ("id\tword\ttag\n1\tsalt\tB\n2\troad\tI\n", "nothing that parts the texts"),
        ("salt,B\nroad,I\nends,O\n", "a first line token,tag"),
    ],
)
def test_tokens_that_nothing_parts_are_refused(tmp_path: Path, content: str, problem: str):
    path = write(tmp_path, "a.csv", content)
    for read_file in (lambda: read([path]), lambda: unlabeled_texts(path)):
        refused(read_file, f"{path}:1: ", problem, "sentence_id")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("2,,O", "is empty"),
        ("2,ends,X", "'X' in column 'tag'"),
        ("2,ends", "'' in column 'tag'"),
        ("2,ends,", "'' in column 'tag'"),
        ("2,ends,O,O", "4 cells"),
        ('2,"ends\nhere",O', "line break"),
    ],
)
def test_a_row_of_a_token_that_cannot_be_used_is_named(tmp_path: Path, row: str, problem: str):
    lines = ["sent_id,token,tag", "1,salt,B", "1,road,I", "2,it,O", row, "2,here,O", "3,maps,B"]
    path = write(tmp_path, "a.csv", "\n".join(lines))
    refused(lambda: read([path]), f"{path}:5: ", problem)
    [file], skips = resolve_inputs([str(path)]), SkipCounts()
    texts = [labeled.text for labeled in Reader(file, skip_bad_lines=True).read(skips)]
    assert texts == ["salt road", "maps"] and list(skips.counts.values()) == [1]


def test_tags_of_tokens_in_a_table_may_be_numbers(tmp_path: Path):
    path = write(tmp_path, "a", "sentence #,word,tag\n1,[1],0\n1,salt,1\n1,road,2\n2,maps,1\n")
    assert read([path], tag_names=("O", "B", "I"))[0] == [["salt road"], ["maps"]]
    assert unlabeled_texts(path) == ["[1] salt road", "maps"]
    refused(lambda: read([path]), f"{path}:2: ", "--tag-names")
    done = call("prepare", str(path), "--dry-run", "--tag-names", "O,B,I")
    assert "token in column word, tag in column tag, texts parted by sentence #" in done.stdout, done.output


def test_tables_with_a_column_of_words_may_hold_texts(tmp_path: Path):
    table = "text,word,label,keyphrases\nthe salt road,the,1,road\nold maps,old,0,maps\n"
    assert read([write(tmp_path, "a", table)])[0] == [["road"], ["maps"]]
    assert read([write(tmp_path, "b.csv", "a text,O\nB,O\na map,map\n")])[0] == [["map"]]
    assert read([write(tmp_path, "c", "# id\tword\ttag\n1\tsalt\tB\n\n1\troad\tB\n")])[0] == [["salt"], ["road"]]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_may_have_columns_without_a_name(tmp_path: Path, delimiter: str):
    rows = [",text,keyphrases,,", "0,a salt road,salt road,,", "1,a map,,,"]
    path = write(tmp_path, "a", "\n".join(rows).replace(",", delimiter))
    assert read([path]) == ([["salt road"], []], {})


def test_a_table_without_names_of_columns_is_told_by_its_suffix(tmp_path: Path):
    content = b"the old #salt road,road\nmaps,maps\n"
    for name, packed in (("a.csv", content), ("b.CSV", content), ("c.csv.gz", gzip.compress(content))):
        assert read([write(tmp_path, name, packed)]) == ([["road"], ["maps"]], {})


@pytest.mark.parametrize("write_table", [pq.write_table, partial(write_arrow, writer=pa.ipc.new_file)])
def test_tables_without_labels_hold_tweets_with_a_hashtag(write_table: Any, tmp_path: Path):
    texts = ["rain over #London all day", "no tag", "#a #b two"]
    write_table(pa.table({"id": [1, 2, 3], "text": texts}), str(path := tmp_path / "tweets"))
    found, skips = read([path])
    assert found == [["London"]] and sum(skips.values()) == 2
    done = call("prepare", str(path), "--dry-run")
    assert "labeled by the hashtag" in done.stdout and "rain over [London]" in done.stdout, done.output
    assert unlabeled_texts(path) == texts
    write_table(pa.table({"id": [1], "text": texts[1:2]}), str(path))
    refused(lambda: read([path]), f"{path}:1: ", "fields id, text", "tweets with one hashtag")
    assert unlabeled_texts(path) == ["no tag"]


def test_a_csv_file_of_unknown_columns_holds_no_tweets(tmp_path: Path):
    path = write(tmp_path, "a.csv", "id,body,kp\n1,the old #salt road,road\n2,maps,maps\n")
    refused(lambda: read([path]), f"{path}:1: ", "id, body, kp", "none holds keyphrases", "rename")
    path = write(tmp_path, "b.csv", "we love #RyeBread, now, again\nhere in #Elmbridge today\n")
    assert read([path])[0] == [["Rye Bread"], ["Elmbridge"]]


def test_columns_of_one_name_are_refused_where_they_are_read(tmp_path: Path):
    path = write(tmp_path, "a.csv", "text,keyphrases,keyphrases\nthe #salt road,salt road,the\n")
    refused(lambda: read([path]), f"{path}:1: ", "more than one column 'keyphrases'", "rename")
    path = write(tmp_path, "b.csv", "sentence #,word,tag,tag\n1,salt,B,O\n")
    refused(lambda: read([path]), f"{path}:1: ", "more than one column 'tag'")
    path = write(tmp_path, "c.csv", "id,id,text,keyphrases\n1,2,a salt road,salt road\n")
    assert read([path]) == ([["salt road"]], {})
    table = pa.table([["a salt road"], [["salt road"]], [["salt"]]], names=["text", "keyphrases", "keyphrases"])
    pq.write_table(table, path := tmp_path / "d.parquet")
    refused(lambda: read([path]), f"{path}: ", "more than one column 'keyphrases'")


def test_what_looks_like_the_first_line_of_a_table_is_none(tmp_path: Path):
    path = write(tmp_path, "a.txt", "Title | Text\nwe love #RyeBread in winter\n")
    assert read([path])[0] == [["Rye Bread"]]
    assert unlabeled_texts(write(tmp_path, "b", "Text | News\none two\n")) == ["Text | News", "one two"]
    assert unlabeled_texts(write(tmp_path, "c", "Text|id\none, two|1\n")) == ["one, two"]
    assert unlabeled_texts(write(tmp_path, "d.csv", "sep=;\n\none, two;1\n")) == ["one, two"]
    assert unlabeled_texts(write(tmp_path, "e", "sep=;\none, two\n")) == ["sep=;", "one, two"]
    for number, lines in enumerate(("id;phrase\n1;dog;x\n", "id;phrase;x\n1;dog;x\n")):
        path = write(tmp_path, f"{number}.csv", f"sep=;\n{lines}")
        refused(lambda path=path: read([path]), f"{path}:1: ", "id, phrase", "none holds keyphrases")  # type: ignore[misc]


def test_the_semicolon_of_a_character_of_html_divides_no_keyphrases(tmp_path: Path):
    path = write(tmp_path, "a.tsv", "at&amp;t and R&amp;D win\tat&amp;t; R&amp;D\nAT&T wins at&#39;s\tAT&T;at&#39;s\n")
    assert read([path]) == ([["at&amp;t", "R&amp;D"], ["AT&T", "at&#39;s"]], {})
    path = write(tmp_path, "b", json.dumps({"text": "a map of R&amp;D", "keyphrases": "map, R&amp;D"}))
    assert read([path]) == ([["map", "R&amp;D"]], {})
    text = write(tmp_path, "c.txt", "a map of R&amp;D")
    write(tmp_path, "c.key", "R&amp;D\nmap\n")
    assert read([text]) == ([["map", "R&amp;D"]], {})


def test_a_text_of_a_table_may_look_like_a_list(tmp_path: Path):
    path = write(tmp_path, "a.csv", 'text,keyphrases\n[12],[]\n"[1, 2] salt","[""salt""]"\n"{""a"": 1}",a\n')
    assert unlabeled_texts(path) == ["[12]", "[1, 2] salt", '{"a": 1}']
    assert read([path]) == ([[], ["salt"], ["a"]], {})


def test_a_text_of_many_brackets_is_a_text(tmp_path: Path):
    path = write(tmp_path, "a.csv", f"text,keyphrases\n{'[' * 100_000} salt road,salt road\n")
    assert read([path]) == ([["salt road"]], {})


def test_a_directory_stands_for_its_tables(tmp_path: Path):
    write(tmp_path, "train-0.parquet", CONTENTS["parquet"])
    assert read([tmp_path])[0] == EXPECTED
    write(tmp_path, "validation-0.parquet", CONTENTS["parquet"])
    refused(lambda: read([tmp_path]), f"{tmp_path}: ", "train, validation", f"{tmp_path}/train*")
    assert read([f"{tmp_path}/train*"])[0] == EXPECTED
    assert len(unlabeled_inputs([str(tmp_path)])) == 2


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "validation-0.parquet", "test-0.parquet"),
        ("data/train.jsonl", "data/dev.jsonl", "data/test.jsonl"),
        (
            "train/data-0.arrow",
            "train/cache-1.arrow",
            "validation/data-0.arrow",
            "test/data-0.arrow",
            "dataset_dict.json",
        ),
    ],
)
def test_prepare_takes_the_splits_of_a_folder_by_their_names(tmp_path: Path, names: tuple[str, ...]):
    folder = tmp_path / "set"
    content = {".parquet": CONTENTS["parquet"], ".arrow": CONTENTS["arrow stream"], ".jsonl": CONTENTS["own spans"]}
    for name in (*names, "README.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder, name, content.get(Path(name).suffix, "{}"))
    result = call("prepare", str(folder), "--out", str(tmp_path / "d"), "--json")
    assert result.exit_code == 0, result.output
    rows = {split: counts["rows"] for split, counts in last_json(result.stdout)["splits"].items()}
    trains = sum(name.rpartition("/")[2].startswith("train-") for name in names) or 1
    assert rows == {"train": 5 * trains, "valid": 5, "test": 5}
    told = result.stderr.splitlines()[0]
    assert told.startswith(f"{folder}: train from {folder}/") and told.count(" from ") == 3
    assert ("train-00000-of-00002.parquet and 1 more, valid" in told) == (trains == 2)


def test_the_splits_of_a_folder_are_not_guessed(tmp_path: Path):
    for name in ("validation-0.parquet", "test-0.parquet"):
        write(tmp_path, name, CONTENTS["parquet"])
    assert "holds several splits (test, validation)" in call("prepare", str(tmp_path), "--dry-run").stderr
    other = write(tmp_path, "train-0.parquet", CONTENTS["parquet"])
    given = call("prepare", str(tmp_path), "--valid", str(other), "--out", str(tmp_path / "d"))
    assert given.exit_code == 2 and "holds several splits (test, train, validation)" in given.stderr
    one = tmp_path / "one"
    one.mkdir()
    write(one, "train.jsonl", CONTENTS["own spans"])
    assert "is a directory; name its files" in call("prepare", str(one), "--dry-run").stderr
    assert "the path of a file or folder is empty" in call("prepare", "", "--dry-run").stderr


def test_what_datasets_keeps_beside_its_data_is_not_read(tmp_path: Path):
    for name in ("data-00000-of-00001.arrow", "cache-0123456789abcdef.arrow"):
        write(tmp_path, name, CONTENTS["arrow stream"])
    assert read([tmp_path])[0] == EXPECTED


def test_damaged_offsets_and_texts_of_arrow_files_are_refused(tmp_path: Path):
    content = CONTENTS["arrow file"]
    for old, new in ((b"ferry", b"fer\xffy"), (b"\x03\0\0\0\x08\0\0\0", b"\x03\0\0\0\xff\xff\xff\xff")):
        assert old in content
        path = write(tmp_path, "damaged.arrow", content.replace(old, new))
        refused(lambda path=path: read([path]), f"{path}: ", "damaged")


@pytest.mark.parametrize("kind", ["brat", "inspec", "key"])
def test_a_directory_of_pairs_is_read(tmp_path: Path, kind: str):
    suffixes = {"brat": (".txt", ".ann"), "inspec": (".abstr", ".uncontr"), "key": (".txt", ".key")}[kind]
    for number, (text, phrases) in enumerate(TEXTS):
        lines = [f"T{i}\tKey {a} {b}\t{text[a:b]}" for i, (a, b) in enumerate(spans(text, phrases), 1)]
        contents = {
            ".ann": "\n".join([*lines, "*\tSynonym-of T1 T2", "#1\tAnnotatorNotes T1\tsure"]),
            ".key": "\n".join(phrases),
        }
        write(tmp_path, f"{number}{suffixes[0]}", text)
        write(tmp_path, f"{number}{suffixes[1]}", contents.get(suffixes[1], "\t" + ";\r\n\t".join(phrases) + "\r\n"))
    write(tmp_path, "README.md", "about these files")
    assert read([tmp_path]) == (EXPECTED, {})
    assert read([tmp_path / f"0{suffixes[0]}"])[0] == EXPECTED[:1]
    assert left_out([str(tmp_path)]) == left_out([str(tmp_path / f"0{suffixes[0]}")]) == []
    unlabeled = write(tmp_path, f"9{suffixes[0]}", "nobody labeled this")
    assert read([tmp_path])[0] == EXPECTED
    [line] = left_out([str(tmp_path)])
    assert line.startswith(f"{tmp_path}: 1 texts") and line.endswith(Path(unlabeled).name)
    assert f"warning: {line}" in preview([str(tmp_path)], AUTO, 100).remarks
    copy = write(tmp_path, "rows.tsv", "a salt road\tsalt road\n" * 2)
    made = prepare(PrepareConfig([str(tmp_path)], str(tmp_path / "made"), [str(copy)], [str(copy)]))
    assert line in made["warnings"]


def test_a_text_of_a_pair_is_read_whole_without_its_labels_too(tmp_path: Path):
    for number in range(2):
        write(tmp_path, f"{number}.txt", "old salt\nroad\n")
        write(tmp_path, f"{number}.ann", "T1\tKey 4 13\tsalt road\n")
    files = unlabeled_inputs([str(tmp_path / "*.txt")])
    assert [list(Reader(file).texts(SkipCounts())) for file in files] == [["old salt\nroad\n"]] * 2
    assert reading_notes(files) == [f"{tmp_path}/0.txt and 1 more: is read as brat, without its labels"]


def test_annotations_in_parts_are_counted_and_wrong_ones_are_named(tmp_path: Path):
    write(tmp_path, "a.txt", "red and blue\npaint")
    write(tmp_path, "a.ann", "T1\tKey 0 3;8 12\tred blue\nT2\tKey 8 12;13 18\tblue paint\n")
    found, counts = read([tmp_path])
    assert found == [["blue paint"]] and counts == {"annotation in several parts": 1}
    write(tmp_path, "a.ann", "T1\tKey 0 3\tred\nT2\tKey 8 120\tblue\n")
    refused(lambda: read([tmp_path]), "a.ann:2: ", "out of range", "18 characters")


def test_words_of_brat_may_have_what_else_ends_a_line(tmp_path: Path):
    write(tmp_path, "a.txt", "old salt\u2028Tracks\x0cend here")
    write(tmp_path, "a.ann", "T1\tKey 4 15\tsalt\u2028Tracks\r\nT2\tKey 9 19\tTracks\x0cend\r\nT3\tKey 20 24\there\r\n")
    assert read([tmp_path]) == ([["salt Tracks", "here"]], {"span inside or across a longer one": 1})


def test_annotations_whose_words_are_elsewhere_are_left_out(tmp_path: Path):
    write(tmp_path, "a.txt", "old salt roads\r\n🎉 run to the salt\r\nroad")
    write(tmp_path, "a.ann", "T1\tKey 4 14\tSALT roads\nT2\tKey 29 39\tsalt road\nT3\tKey 28 38\tsalt road\n")
    assert read([tmp_path]) == ([["salt roads", "salt road"]], {"annotation whose words are not where it says": 1})
    write(tmp_path, "a.ann", "T1\tKey 3 12\tsalt roads\n")
    assert read([tmp_path])[1] == {"annotation whose words are not where it says": 1, "text with no keyphrase left": 1}
    write(tmp_path, "a.ann", "T1\tKey 30 40\tsalt road\n")
    refused(lambda: read([tmp_path]), "a.ann:1: ", "--offsets utf16")
    assert read([tmp_path], offsets="utf16") == ([["salt road"]], {})


@pytest.mark.parametrize(("unit", "encoding", "size"), [("utf16", "utf-16-le", 2), ("bytes", "utf-8", 1)])
def test_offsets_of_other_units_are_read_where_they_are_named(tmp_path: Path, unit: str, encoding: str, size: int):
    def offset(text: str, at: int) -> int:
        return len(text[:at].encode(encoding)) // size

    texts = [(f"\U0001f680\U0001f389 {text}", phrases) for text, phrases in TEXTS]
    counted = [(text, [[offset(text, at) for at in span] for span in spans(text, phrases)]) for text, phrases in texts]
    path = write(tmp_path, "a", "\n".join(json.dumps({"text": text, "spans": found}) for text, found in counted))
    assert read([path], offsets=unit) == (EXPECTED, {})
    refused(lambda: read([path]), f"{path}:", f"--offsets {unit}")
    write(tmp_path, "b.txt", texts[0][0])
    write(tmp_path, "b.ann", "".join(f"T1\tKey {start} {end}\t\n" for start, end in counted[0][1]))
    assert read([tmp_path / "b.txt"], offsets=unit)[0] == EXPECTED[:1]


def test_a_change_of_type_begins_a_keyphrase_and_columns_can_be_named(tmp_path: Path):
    path = write(tmp_path, "a", "Ostby\tI-LOC\tO\nHale\tI-PER\tB-X\nruns\tO\tO\n")
    assert read([path])[0] == [["Hale"]]
    assert read([path], tag_column=2)[0] == [["Ostby", "Hale"]]
    refused(lambda: read([path], tag_column=4), "--tag-column 4", "3 columns")
    table = write(tmp_path, "b.csv", "sentence,word,tag,other\n1,Ostby,B-LOC,O\n1,runs,O,B-X\n")
    assert read([table])[0] == [["Ostby"]]
    refused(lambda: read([table], tag_column=4), "--tag-column", f"{table} is csv", "leave them out")


def test_numbered_tokens_are_read_alike_with_columns_that_are_named(tmp_path: Path):
    rows = ["1\tHe\tO", "2-3\tdon't\t_", "2\tdo\tO", "3\tn't\tO", "4\trun\tB"]
    [file] = resolve_inputs([str(write(tmp_path, "a", "\n".join(rows)))], ReadOptions(token_column=2, tag_column=3))
    assert [text.text for text in Reader(file).read(SkipCounts())] == ["He do n't run"]


def test_a_word_of_a_comment_may_look_like_a_tag(tmp_path: Path):
    path = write(tmp_path, "a", "# text = I saw #Ada\nI O\nsaw O\n# O\n#Ada B\n\n# text = a U turn\na O\nU B\nturn I\n")
    assert read([path]) == ([["#Ada"], ["U turn"]], {})


def test_tokens_numbered_by_sentence_are_read(tmp_path: Path):
    path = write(tmp_path, "a", "#id=1\n1-1\tthe\tO\n1-2\tsalt\tB-K\n1-3\troad\tI-K\n\n2-1\tmaps\tB-K\n")
    assert read([path]) == ([["salt road"], ["maps"]], {})


@pytest.mark.parametrize(
    "paragraph",
    ['{"context": "a salt road"}', '"a salt road"', '{"sentences": ["a"]}', '{"sentences": [{"tokens": ["a"]}]}'],
)
def test_paragraphs_that_are_not_those_of_spacy_are_refused(tmp_path: Path, paragraph: str):
    path = write(tmp_path, "a", f'{{"data": [{{"title": "b", "paragraphs": [{paragraph}]}}]}}')
    refused(lambda: read([path]), f"{path}:1: ", "title, paragraphs")


def test_spans_count_in_the_text_of_a_record_and_tags_count_its_tokens(tmp_path: Path):
    record: dict[str, Any] = {
        "text": "Don't miss Roger Federer!",
        "tokens": ["Do", "n't", "miss", "Roger", "Federer", "!"],
    }
    tagged = record | {"ner_tags": ["O", "O", "O", "B", "I", "O"]}
    phrases = record | {"keyphrases": ["Roger Federer"]}
    for labeled in (record | {"spans": [[11, 24]]}, tagged, tagged | {"spans": [[11, 24]]}, phrases):
        path = write(tmp_path, "a", json.dumps(labeled))
        assert read([path]) == ([["Roger Federer"]], {})
        assert list(Reader(*unlabeled_inputs([str(path)])).texts(SkipCounts())) == ["Don't miss Roger Federer!"]


@pytest.mark.parametrize("field", ["entities", "spans"])
def test_spans_of_tokens_without_a_text_are_refused(tmp_path: Path, field: str):
    record = {"tokens": ["Mayor", "Ada", "Hale", "runs"], field: [{"start": 1, "end": 3, "type": "person"}]}
    path = write(tmp_path, "a", json.dumps(record))
    refused(lambda: read([path]), f"{path}:1: ", f'"{field}"', "tokens or characters", 'add "text"')
    write(tmp_path, "a", json.dumps(record | {field: []}))
    assert read([path]) == ([[]], {})


def test_tags_without_tokens_are_no_keyphrases(tmp_path: Path):
    path = write(tmp_path, "a", json.dumps({"text": "I saw Leeds", "tags": ["O", "O", "I"]}))
    refused(lambda: read([path]), f"{path}:1: ", '"tags" has a tag per token', 'add "tokens"')
    assert read([write(tmp_path, "b", json.dumps({"text": "vitamin B helps", "tags": ["B"]}))]) == ([["B"]], {})


def test_an_entity_may_have_a_value_that_holds_no_places(tmp_path: Path):
    for value in ("weekend", None, 5):
        entity = {"start": 16, "end": 23, "value": value, "entity": "time"}
        record = {"text": "what to do this weekend", "entities": [entity]}
        assert read([write(tmp_path, "a", json.dumps(record))]) == ([["weekend"]], {})


@pytest.mark.parametrize("span", [[1, 3, "key"], [-1, 0], [1, 0], [0, "1"], [1], 5])
def test_a_span_of_tokens_that_is_none_is_refused(tmp_path: Path, span: Any):
    path = write(tmp_path, "a", json.dumps({"tokenized_text": ["the", "salt", "road"], "ner": [[1, 2, "key"], span]}))
    refused(lambda: read([path]), f"{path}:1: ", json.dumps(span), "3 tokens", "the last included")


def test_names_in_other_capitals_count_where_there_is_no_exact_one(tmp_path: Path):
    exact = {"text": "a salt road", "keyphrases": ["road"], "Text": "other", "SPANS": [[2, 6]]}
    for record in (exact, {"Keyphrases": ["salt"], "tags": ["road"], "text": "a salt road"}):
        assert read([write(tmp_path, "a", json.dumps(record))])[0] == [["road"]]
    path = write(tmp_path, "a", '{"Text": "a salt road", "TEXT": "a", "keyphrases": []}')
    refused(lambda: read([path]), f"{path}:1: ", "Text, TEXT")
    lines = [
        '{"Text": null, "Keyphrases": []}',
        '{"Text": "a road", "Keyphrases": null}',
        '{"Text": "a road", "Tags": "road"}',
    ]
    counts = {"text is null": 1, "keyphrases are null": 1}
    assert read([write(tmp_path, "a", "\n".join(lines))]) == ([["road"]], counts)
    assert unlabeled("\n".join(lines)) == ["", "a road", "a road"]
    assert read([write(tmp_path, "a", json.dumps({"Text": "a salt road", "annotations": [[2, 6]]}))])[0] == [["salt"]]
    assert read([write(tmp_path, "a", '{"Tweet": "we love #RyeBread in winter", "Label": "good"}')])[0] == [
        ["Rye Bread"]
    ]


def test_every_occurrence_of_an_entity_without_places_is_marked(tmp_path: Path):
    entities: list[Any] = [{"text": "salt"}, {"text": "road", "start": None}]
    record = {"text": "salt on a salt road", "entities": entities}
    path = write(tmp_path, "a", json.dumps(record))
    assert read([path])[0] == [["salt", "salt", "road"]]
    for other in (
        {"text": "on", "first": 1},
        {"text": "on", "span": [5, 7]},
        {"text": "on", "start": "5"},
        {"id": 1},
        5,
    ):
        write(tmp_path, "a", json.dumps(record | {"entities": [*entities, other]}))
        refused(lambda: read([path]), f"{path}:1: ", "is not a pair of whole numbers")


def test_what_extract_has_written_is_read(tmp_path: Path):
    keyphrase = {"text": "salt road", "start": 14, "end": 23, "score": 0.9}
    lines = [{"text": "salt road and salt road", "keyphrases": found} for found in ([keyphrase], [])]
    path = write(tmp_path, "a", "\n".join(map(json.dumps, lines)))
    [file] = resolve_inputs([str(path)])
    assert [text.spans or text.keyphrases for text in Reader(file).read(SkipCounts())] == [((14, 23),), ()]
    write(tmp_path, "a", json.dumps({"text": "a salt road", "keyphrases": [{"phrase": "salt road"}]}))
    refused(lambda: read([path]), f"{path}:1: ", '"keyphrases" is not a list of strings')


@pytest.mark.parametrize("field", ["entities", "spans", "label"])
def test_entities_may_be_lists_of_their_starts_and_ends(tmp_path: Path, field: str):
    entities = [{"start": [2, 11], "end": [6, 15], "label": ["K", "K"]}, {"start": [], "end": [], "label": []}]
    table = pa.table({"text": ["a salt and road", "a map"], field: entities})
    assert read([write(tmp_path, "a", table_file(pq.write_table, table))]) == ([["salt", "road"], []], {})
    path = write(tmp_path, "b", json.dumps({"text": "a salt road", "spans": {"start": [2, 5], "end": [6]}}))
    refused(lambda: read([path]), f"{path}:1: ", '"spans" is not a list')
    tweet = {"text": "we love #RyeBread in winter", "entities": {"hashtags": [{"text": "RyeBread"}], "urls": []}}
    assert read([write(tmp_path, "c", json.dumps(tweet))])[0] == [["Rye Bread"]]


@pytest.mark.parametrize("size", [{"length": 8}, {"length": 0}, {"length": "3"}, {"EndOffset": 19}, {}])
def test_an_entity_with_a_wrong_length_is_refused(tmp_path: Path, size: dict[str, Any]):
    record = {"text": "maps of a road", "entities": [{"text": "road", "offset": 10, **size}]}
    path = write(tmp_path, "a", json.dumps(record))
    refused(lambda: read([path]), f"{path}:1: ", "span ")


def test_an_annotation_of_webanno_may_have_no_value(tmp_path: Path):
    rows = [
        "#FORMAT=WebAnno TSV 3.3",
        "#T_SP=custom.Key|",
        "",
        "#Text=in leeds",
        "1-1\t0-2\tin\t_\t",
        "1-2\t3-8\tleeds\t*\t",
    ]
    assert read([write(tmp_path, "a", "\n".join(rows))]) == ([["leeds"]], {})


def test_a_value_of_webanno_may_have_a_bar(tmp_path: Path):
    rows = [
        "#FORMAT=WebAnno TSV 3.3",
        "#T_SP=custom.Key|value",
        "",
        "#Text=salt road",
        "1-1\t0-4\tsalt\ta\\|b[1]|c[2]\t",
        "1-2\t5-9\troad\ta\\|b[1]\t",
    ]
    assert read([write(tmp_path, "a", "\n".join(rows))]) == ([["salt road"]], {"span inside or across a longer one": 1})


def test_an_annotation_of_a_part_of_a_word_in_webanno_is_widened(tmp_path: Path):
    rows = [
        "#FORMAT=WebAnno TSV 3.3",
        "#T_SP=custom.Key|value",
        "",
        "#Text=the bookshop at saltroad",
        "1-1\t0-3\tthe\t_\t",
        "1-2\t4-12\tbookshop\t_\t",
        "1-2.1\t4-8\tbook\tKEY\t",
        "1-3\t13-15\tat\tKEY[1]\t",
        "1-4\t16-24\tsaltroad\t_\t",
        "1-4.1\t16-20\tsalt\tKEY[1]\t",
        "1-4.2\t20-24\troad\t_\t",
    ]
    path = write(tmp_path, "a", "\n".join(rows))
    assert read([path]) == ([["bookshop", "at saltroad"]], {"span widened to whole tokens": 2})


def test_layers_of_grammar_in_webanno_are_no_keyphrases(tmp_path: Path):
    api = "de.tudarmstadt.ukp.dkpro.core.api"
    rows = [
        "#FORMAT=WebAnno TSV 3.3",
        f"#T_SP={api}.lexmorph.type.pos.POS|coarseValue|PosValue",
        f"#T_SP={api}.segmentation.type.Lemma|value",
        f"#T_SP={api}.ner.type.NamedEntity|identifier|value",
        "",
        "#Text=in leeds",
        "1-1\t0-2\tin\tADP\tIN\tin\t_\t_\t",
        "1-2\t3-8\tleeds\tPROPN\tNNP\tleeds\t*\tLOC\t",
    ]
    assert read([write(tmp_path, "a", "\n".join(rows))]) == ([["leeds"]], {})


@pytest.mark.parametrize("start", ["[Live] a storm", "[1] We study it", "{live} another storm"])
def test_a_text_that_begins_with_a_bracket_is_no_json(tmp_path: Path, start: str):
    assert unlabeled(f"{start} hits\nthree\n") == [f"{start} hits", "three"]
    path = write(tmp_path, "a", f"{start} hits\nthree\n")
    assert list(Reader(*unlabeled_inputs([str(path)])).texts(SkipCounts())) == [f"{start} hits", "three"]
    assert read([write(tmp_path, "b", f"{start} hits Elmbridge\tElmbridge\n")])[0] == [["Elmbridge"]]
    assert read([write(tmp_path, "c", f"{start} in #Elmbridge today\nwe love #RyeBread now\n")])[0] == [
        ["Elmbridge"],
        ["Rye Bread"],
    ]
    assert read([write(tmp_path, "d", f"we love #RyeBread now\n{start} in #Elmbridge today\n")], format="raw")[0] == [
        ["Rye Bread"],
        ["Elmbridge"],
    ]


@pytest.mark.parametrize("start", ["[[NEWS]]", '{"live"}', "[{live}]"])
def test_a_tweet_among_plain_ones_may_begin_as_json_does(tmp_path: Path, start: str):
    path = write(tmp_path, "a", f"we love #RyeBread now\n{start} in #Elmbridge today\n")
    assert read([path])[0] == [["Rye Bread"], ["Elmbridge"]]
    path = write(tmp_path, "b", f'{{"text": "we love #RyeBread now"}}\n{start} in #Elmbridge today\n')
    refused(lambda: read([path]), f"{path}:2: ", "is not JSON")


def test_one_record_with_a_list_is_one_record(tmp_path: Path):
    record = label_studio(*TEXTS[0])
    assert read([write(tmp_path, "a", json.dumps(record))])[0] == EXPECTED[:1]
    assert read([write(tmp_path, "b", json.dumps(record, indent=1))])[0] == EXPECTED[:1]
    assert unlabeled(f"{json.dumps(record)}\n" * 2) == [TEXTS[0][0]] * 2


@pytest.mark.parametrize("empty", ["{}", "[]", "0", "false"])
def test_a_record_without_a_text_is_refused_by_its_place(tmp_path: Path, empty: str):
    path = str(write(tmp_path, "a", f'[{{"text": "abc"}},\n {empty}]'))
    refused(lambda: list(Reader(*unlabeled_inputs([path])).texts(SkipCounts())), f"{path}:2: ")


def test_rejected_and_empty_records_are_counted(tmp_path: Path):
    records = [own(*TEXTS[0]), own(*TEXTS[1]) | {"answer": "reject"}, own(*TEXTS[1]) | {"answer": "ignore"}]
    records += [{"text": None, "keyphrases": []}, {"text": "no label yet", "keyphrases": None}]
    records += [{"text": "", "keyphrases": []}]
    found, counts = read([write(tmp_path, "a", "\n".join(map(json.dumps, records)))])
    assert found == EXPECTED[:1]
    null = {"text is null": 1, "keyphrases are null": 1}
    assert counts == {"answer is reject": 1, "answer is ignore": 1, **null, "text is empty": 1}


def test_an_annotation_of_label_studio_that_marks_nothing_is_one(tmp_path: Path):
    label = [{"start": 2, "end": 6, "text": "salt", "labels": ["K"]}]
    tasks = [
        {"id": 1, "text": "a salt road", "annotation_id": 7, "label": label},
        {"text": "a map", "annotation_id": 8},
    ]
    assert read([write(tmp_path, "a", json.dumps(tasks))]) == ([["salt"], []], {})
    quoted = json.dumps(label).replace('"', '""')
    table = f'annotation_id,id,label,text\n7,1,"{quoted}",a salt road\n8,2,,a map\n'
    assert read([write(tmp_path, "b.csv", table)]) == ([["salt"], []], {})
    for other in ({"text": "a map"}, {"text": "a map", "annotation_id": 8, "label": "good"}):
        path = write(tmp_path, "a", json.dumps([tasks[0], other]))
        refused(lambda path=path: read([path]), f"{path}:1: ", "neither keyphrases nor spans")


@pytest.mark.parametrize("given", [{"keywords": "old"}, {"spans": [[0, 3]]}, {"keyphrases": 7}])
def test_what_the_data_of_a_task_says_of_keyphrases_is_no_annotation(tmp_path: Path, given: dict[str, Any]):
    task = label_studio("old maps of the salt road", ["salt road"])
    task["data"] |= given
    assert read([write(tmp_path, "a", json.dumps([task]))]) == ([["salt road"]], {})
    task["annotations"][0]["result"] = []
    assert read([write(tmp_path, "b", json.dumps([task]))]) == ([[]], {})


@pytest.mark.parametrize("field", ["annotations", "completions"])
def test_a_task_that_nobody_has_annotated_is_left_out(tmp_path: Path, field: str):
    done, empty, cancelled, open_task = ({"data": {"text": "a salt road"}, "predictions": []} for _ in range(4))
    done[field] = [{"result": [{"value": {"start": 2, "end": 6}}]}]
    empty[field], cancelled[field], open_task[field] = [{"result": []}], [{"was_cancelled": True, "result": []}], []
    path = write(tmp_path, "a", json.dumps([done, empty, cancelled, open_task]))
    assert read([path]) == ([["salt"], []], {"annotation was cancelled": 1, "task without an annotation": 1})
    assert read([write(tmp_path, "b", json.dumps({"text": "a salt road", field: []}))]) == ([[]], {})


@pytest.mark.parametrize(
    "record",
    [
        {
            "full_text": "we love #RyeBread in winter",
            "entities": {"hashtags": [{"text": "RyeBread"}]},
            "truncated": False,
        },
        {"text": "we love #Rye…", "truncated": True, "extended_tweet": {"full_text": "we love #RyeBread in winter"}},
        {"data": {"id": "1", "text": "we love #RyeBread in winter"}},
    ],
)
def test_tweets_of_the_api_are_labeled_by_their_hashtag(tmp_path: Path, record: dict[str, Any]):
    assert read([write(tmp_path, "a", f"{json.dumps(record)}\n" * 2)])[0] == [["Rye Bread"]] * 2
    page = json.dumps({"data": [record.get("data", record)] * 2, "meta": {}}, indent=1)
    assert read([write(tmp_path, "b", page)])[0] == [["Rye Bread"]] * 2


def test_records_without_keyphrases_are_refused_with_their_fields(tmp_path: Path):
    path = write(tmp_path, "a", '{"text": "no label", "score": 5}\n')
    refused(lambda: read([path]), f"{path}:1: ", "text, score", "none holds keyphrases")
    path = write(tmp_path, "b.csv", "id #,tweet\n1,no label\n")
    refused(lambda: read([path]), f"{path}:1: ", "id #, tweet", "none holds keyphrases")
    assert read([write(tmp_path, "c.csv", "id,tweet\n1,we love #RyeBread in winter\n")])[0] == [["Rye Bread"]]


def test_a_hashtag_does_not_count_where_a_field_is_named_after_keyphrases(tmp_path: Path):
    tweet = "we love #RyeBread in our winter market"
    for name in ("keyphrase", "Key Phrases", "key_phrases"):
        path = write(tmp_path, "a", json.dumps({"text": tweet, name: "winter market"}))
        assert read([path])[0] == [["winter market"]]
        path = write(tmp_path, "b.csv", f"text,{name}\n{tweet},winter market\n")
        assert read([path])[0] == [["winter market"]]
    path = write(tmp_path, "a", json.dumps({"text": tweet, "gold_keyphrases": ["winter market"]}))
    refused(lambda: read([path]), f"{path}:1: ", "gold_keyphrases", "rename")
    marked = {"start": 23, "end": 36, "text": "winter market", "labels": ["KEY"]}
    path = write(tmp_path, "a", json.dumps({"text": tweet, "id": 1, "ner": [marked], "annotation_id": 7}))
    refused(lambda: read([path]), f"{path}:1: ", "ner", "rename")
    path = write(tmp_path, "b.csv", f"text,my keywords\n{tweet},winter market\n")
    refused(lambda: read([path]), f"{path}:1: ", "my keywords", "rename")
    lines = [{"text": tweet, "keyphrases": None}] * 300 + [{"text": tweet, "keyphrases": ["winter market"]}]
    path = write(tmp_path, "c", "\n".join(map(json.dumps, lines)))
    assert read([path]) == ([["winter market"]], {"keyphrases are null": 300})


def zipped(name: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(name, "x")
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (zipped("xl/workbook.xml"), ("Excel", "CSV UTF-8")),
        (zipped("a.tsv"), ("ZIP archive", "unpack")),
        (lzma.compress(b"a b\tb\n"), ("xz", "unxz")),
        (b"%PDF-1.7\n", ("PDF",)),
        (b"\n<!DOCTYPE html>\n<a href='#top'>", ("HTML page", "download")),
        (b"\x80\x04\x95", ("pickle", "Parquet")),
        (b"\xd0\xcf\x11\xe0" + b"\0" * 20, ("office",)),
        (b"x" * 257 + b"ustar", ("tar archive",)),
        ("a bar in M\u00fcnchen\tbar\n".encode("cp1252"), (":1: ", "not UTF-8", "convert")),
        ("text,keyphrases\na bar,bar\n".encode("utf-16-le"), (":1: ", "NUL byte", "UTF-16", "convert")),
        ('{"text": "a bar", "keyphrases": ["bar"]}\n'.encode("utf-16-be"), (":1: ", "NUL byte", "UTF-16", "convert")),
        (b'[{"text": "a bar", "keyphrases": ["bar"], "id": ' + b"9" * 5000 + b"}]", (":1: ", "limit", "mend")),
        (b'[{"text": "a bar", "keyphrases": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]", (":1: ", "recursion", "mend")),
        (b"PAR1 and no more", ("cannot be read", "damaged")),
        (b'[{"text": "a b", "keyphrases": ["b"]},\n{"text"', (":2: ", "JSON")),
        (b'text,keyphrases\n"a b,b\n', ("row of a table", "quotes")),
        (b"text,keyphrases\na,b,c\n", (":2: ", "3 cells", "2 columns")),
        (b"text,keyphrases\na b,['a' 'b']\n", (":2: ", "looks like a list", "no string of it")),
        (rb'{"text": "a b", "keyphrases": "[\"a\"]"}', (":1: ", "is a string", "looks like a list", "no string of it")),
    ],
)
def test_what_is_no_labeled_text_is_named(tmp_path: Path, content: bytes, parts: tuple[str, ...]):
    refused(lambda: read([write(tmp_path, "file", content)]), *parts)


def test_webanno_that_is_none_is_refused(tmp_path: Path):
    path = write(tmp_path, "a.tsv", TSV)
    refused(lambda: read([path], format="webanno"), "a.tsv", "#FORMAT=WebAnno TSV 3", "--format")


def test_a_pipe_is_read_once(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(TSV.encode(),))
    writer.start()
    assert read([pipe]) == (EXPECTED, {})
    writer.join()
    reading, writing = os.pipe()  # as the shell passes <(command)
    os.write(writing, TSV.encode())
    os.close(writing)
    assert read([Path(f"/dev/fd/{reading}")]) == (EXPECTED, {})
    os.close(reading)


def unlabeled_texts(path: Path) -> list[str]:
    [file] = unlabeled_inputs([str(path)])
    return list(Reader(file).texts(SkipCounts()))


def unlabeled(content: str | bytes) -> list[str]:
    return list(stream_texts(io.BytesIO(content if isinstance(content, bytes) else content.encode()), "stdin"))


@pytest.mark.parametrize(
    "content",
    [
        "one two\nthree\n",
        "\ufeffone two\r\nthree\r\n",
        "one two\rthree",
        "one two\nthree".encode("utf-16"),
        '{"text": "one two"}\n{"tweet": "three", "text": null}\n',
        '\ufeff[{"text": "one two"},\n {"text": "three"}]',
        '[\n {\n  "text": "one two"\n },\n {"tokens": ["three"]}\n]\n',
    ],
)
def test_texts_without_labels_are_read_from_streams_and_files_alike(tmp_path: Path, content: str | bytes):
    assert unlabeled(content) == ["one two", "three"]
    [file] = unlabeled_inputs([str(write(tmp_path, "file", content))])
    assert list(Reader(file).texts(SkipCounts())) == ["one two", "three"]


@pytest.mark.parametrize(
    "content", ["I love New York", "Today I saw Ada\nHere I met Ida\n", "stuck on I-95\n", "O Porto vence"]
)
def test_a_word_of_a_text_is_no_tag(tmp_path: Path, content: str):
    path = write(tmp_path, "a.txt", content)
    assert list(Reader(*unlabeled_inputs([str(path)])).texts(SkipCounts())) == content.splitlines()
    refused(lambda: read([path]), f"{path}:1: ", "none of the formats; write a text, a tab and ")


def test_the_texts_of_a_table_without_labels_are_read_by_its_columns(tmp_path: Path):
    [file] = unlabeled_inputs([str(write(tmp_path, "file", 'id,text\n1,"one, two"\n2,three\n'))])
    assert list(Reader(file).texts(SkipCounts())) == ["one, two", "three"]


def test_documents_of_spacy_are_read_where_it_is_installed(tmp_path: Path):
    path = write(tmp_path, "a.spacy", b"x\x9c")
    if importlib.util.find_spec("spacy") is None:
        refused(lambda: read([path]), "a.spacy: ", "pip install spacy")
        return
    refused(lambda: read([path]), "a.spacy: ", "damaged")
    import spacy
    from spacy.tokens import DocBin

    documents = DocBin()
    for text, phrases in TEXTS:
        document = spacy.blank("en")(text)
        document.ents = [document.char_span(start, end, "KEY") for start, end in spans(text, phrases)]
        documents.add(document)
    documents.to_disk(path)
    assert read([path]) == (EXPECTED, {})
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert read([path]) == (EXPECTED, {})


@pytest.mark.parametrize("name", ["conll", "conllu", "csv", "webanno", "kp20k", "spacy 3", "label studio"])
def test_the_texts_of_labeled_files_are_read_without_their_labels(tmp_path: Path, name: str):
    [file] = unlabeled_inputs([str(write(tmp_path, "file", CONTENTS[name]))])
    texts = [text.removeprefix("On it\n") for text in Reader(file).texts(SkipCounts())]
    assert texts == [text for text, _ in TEXTS]


def test_blank_lines_and_empty_streams_keep_their_number():
    assert unlabeled('{"text": "one"}\n{"text": null}\n\n{"text": "four"}\n') == ["one", "", "", "four"]
    assert unlabeled('{"text": "one"}\n{"text": "", "keyphrases": []}\n{"text": " "}\n') == ["one", "", " "]
    assert unlabeled("one\n\nthree\n") == ["one", "", "three"] and unlabeled("") == [] and unlabeled("\n") == [""]


def test_the_first_line_that_is_not_blank_decides_how_a_stream_is_read():
    assert unlabeled('\n \t\r\n{"text": "one"}\n\n{"text": "two"}\n') == ["", " \t", "one", "", "two"]
    assert unlabeled("\ufeff\n\none\n") == ["", "", "one"] and unlabeled("\n\n") == ["", ""]
    assert unlabeled('\n[\n {"text": "one"}\n]\n') == ["", "one"]
    refused(lambda: unlabeled('\n{"text": "one"}\n{}\n'), "stdin:3: ", '"text"')


def test_a_stream_of_a_compressed_file_or_a_table_is_refused_by_what_it_is():
    table = io.BytesIO()
    pq.write_table(labeled_table(), table)
    refused(lambda: unlabeled(gzip.compress(b"one two\n")), "stdin: ", "compressed with gzip", "by its name")
    refused(lambda: unlabeled(table.getvalue()), "stdin: ", "Parquet", "by its name")


def test_a_stream_is_read_as_it_comes():
    lines = iter([b"\n", b'{"text": "one"}\n', b"\n"])

    class Stream(io.BytesIO):
        def readline(self, *_: Any) -> bytes:
            return next(lines)

        __next__ = readline

    texts = stream_texts(Stream(), "stdin")
    assert [(next(texts), length_hint(lines)) for _ in range(3)] == [("", 2), ("one", 1), ("", 0)]


def test_a_dry_run_shows_the_keyphrases_and_writes_nothing(tmp_path: Path):
    path = write(tmp_path, "a", CONTENTS["conllu"])
    done = call("prepare", str(path), "--dry-run")
    assert done.exit_code == 0 and "token in column 2, tag in column 10" in done.stdout, done.output
    assert "[Hollis] paints the [lighthouse] , then sleeps" in done.stdout and "5 texts, 7 keyphrases" in done.stdout
    assert "1 texts have none" in done.stdout and list(tmp_path.iterdir()) == [path]
    assert call("prepare", str(path)).exit_code == 2
    done = call("prepare", str(path), "--valid", str(write(tmp_path, "b", CONTENTS["kp20k"])), "--dry-run")
    assert done.exit_code == 0 and "a: conll" in done.stdout and "b: jsonl" in done.stdout, done.output


@pytest.mark.parametrize("seed", range(int(os.environ.get("TANDEM_FUZZ", "2"))))
def test_damaged_files_are_read_or_refused(tmp_path: Path, seed: int):
    """Change bytes, cut, repeat: a dataset is made, or UserError leaves nothing. TANDEM_FUZZ sets the number of rounds."""
    rng, out = random.Random(seed), tmp_path / "out" / "d"
    for name, content in CONTENTS.items():
        data = bytearray(content if isinstance(content, bytes) else content.encode())
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(data))
            match rng.randrange(5):
                case 0:
                    data[at] = rng.randrange(256)
                case 1:
                    del data[at : at + rng.randint(1, 40)]
                case 2:
                    data[at:at] = rng.choice([b'"', b"\t", b"\n", b"\r", b"\0", b"{", b"]", b"#", b"\xff", b"O", b","])
                case 3:
                    data[at:at] = data[: rng.randint(1, 200)]
                case _:
                    del data[max(at, 1) :]
            data = data or bytearray(b"x")
        path = write(tmp_path, f"{name}-{seed}", bytes(data))
        try:
            prepare(PrepareConfig([str(path)], str(out), overwrite=True))
            shutil.rmtree(out)
        except UserError as error:
            assert str(path) in str(error) or "no text is left" in str(error), error
        assert not out.exists() and not (out.parent.exists() and list(out.parent.iterdir())), name
