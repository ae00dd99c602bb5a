"""What a user may say about files, and the names of the formats. It imports nothing heavy: every command reads it to start."""

from typing import NamedTuple

from model.data.characters import Unit

# What a record of each format looks like, in the order of model.readers.formats.FORMATS.
SUMMARIES = {
    "parquet": "records as rows",
    "arrow": "records as rows",
    "docbin": "documents of spaCy",
    "brat": "text.txt beside text.ann",
    "keyfiles": "text.txt beside text.key, or text.abstr beside text.uncontr",
    "webanno": "WebAnno TSV 3",
    "jsonl": '{"text": ..., "keyphrases": [...]} or {"text": ..., "spans": [[start, end], ...]}',
    "conll": "token<TAB>tag, a blank line between texts",
    "csv": "text,keyphrases by the names of the columns",
    "tsv": "text<TAB>keyphrase[;keyphrase...]",
    "raw": 'tweets, plain or {"text"}, with exactly one hashtag',
}


class ReadOptions(NamedTuple):
    """What a user may say about files, where their content does not.

    Attributes:
        format: a key of FORMATS, or `auto` to detect it from the content.
        token_column, tag_column: of CoNLL files, from 1; None to detect them.
        offsets: what spans count: `characters`, `utf16` units or `bytes` of UTF-8.
        tag_names: of tags that are numbers, from 0.
    """

    format: str = "auto"
    token_column: int | None = None
    tag_column: int | None = None
    offsets: Unit = "characters"
    tag_names: tuple[str, ...] = ()


AUTO = ReadOptions()
