"""`python -m jobs prepare`: labeled files -> dataset directory."""

import sys
from typing import TYPE_CHECKING, Annotated

import click
import typer

from jobs.console import command, echo, invocation, print_json, progress_counter
from model.data.characters import Unit
from model.readers.options import SUMMARIES, ReadOptions

if TYPE_CHECKING:
    from model.data.dataset_info import DatasetInfo
    from model.prepare.builder import PrepareConfig

FormatOption = Annotated[
    str,
    typer.Option(
        metavar="|".join(["auto", *SUMMARIES]),
        help="Format of labeled files, by default detected from their content. "
        + "; ".join(f"{name}: {summary}" for name, summary in SUMMARIES.items())
        + ".",
    ),
]

TokenColumnOption = Annotated[
    int | None, typer.Option(min=1, help="Column of the tokens in CoNLL files, from 1; detected by default.")
]
TagColumnOption = Annotated[
    int | None, typer.Option(min=1, help="Column of the tags in CoNLL files, from 1; detected by default.")
]
TagNamesOption = Annotated[
    str | None,
    typer.Option(
        metavar="O,B-KEY,I-KEY", help="Names of tags that are numbers, from 0 on, where the file does not have them."
    ),
]
OffsetsOption = Annotated[
    Unit, typer.Option(help="What the offsets of spans count: characters, UTF-16 units, or bytes of UTF-8.")
]

ValidOption = Annotated[
    list[str] | None, typer.Option(help="Validation files; by default a tenth of the training texts.")
]
TestOption = Annotated[
    list[str] | None, typer.Option(help="Test files; without --valid, by default a tenth of the training texts.")
]
VectorsOption = Annotated[str | None, typer.Option(help="File of initial word vectors: word2vec, GloVe or fastText.")]
VectorsFromOption = Annotated[
    str | None,
    typer.Option(
        metavar="ENCODER",
        help="Make word vectors with a pretrained encoder (path, URI, or name on the hub) or a bundle that has one.",
    ),
]
PretrainOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILES",
        help="Train word vectors on these unlabeled texts: paths, URIs or globs. With --vectors-from, the encoder makes those "
        "of their words.",
    ),
]
VectorSizeOption = Annotated[
    int | None,
    typer.Option(min=1, help="Dimensions of the vectors of --pretrain or --vectors-from (tagger.embedding_dim, 300)."),
]
PretrainFrequencyOption = Annotated[
    int | None, typer.Option(min=1, help="Train no vector for words less frequent in --pretrain (5).")
]
JoinOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Add at most this many words that have a vector but are not in the training texts, the most frequent "
        "first (all with --pretrain, none with --vectors).",
    ),
]
SkipBadLinesOption = Annotated[
    bool, typer.Option("--skip-bad-lines", help="Skip lines that cannot be used instead of stopping.")
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Processes on Ray; on a cluster, by default as many as it has room for.")
]


@command
def prepare(
    train: Annotated[
        list[str],
        typer.Argument(help="Training files: paths, URIs or globs; or a folder with the files of all splits."),
    ],
    out: Annotated[str | None, typer.Option(help="Dataset directory to create.")] = None,
    valid: ValidOption = None,
    test: TestOption = None,
    format: FormatOption = "auto",
    token_column: TokenColumnOption = None,
    tag_column: TagColumnOption = None,
    tag_names: TagNamesOption = None,
    offsets: OffsetsOption = "characters",
    min_frequency: Annotated[int, typer.Option(min=1, help="Map less frequent words to <unk>.")] = 1,
    max_words: Annotated[int, typer.Option(min=3, help="Maximum size of the vocabulary.")] = 1_000_000,
    max_tokens: Annotated[int, typer.Option(min=1, help="Skip longer texts.")] = 1_000,
    vectors: VectorsOption = None,
    vectors_from: VectorsFromOption = None,
    pretrain: PretrainOption = None,
    vector_size: VectorSizeOption = None,
    pretrain_frequency: PretrainFrequencyOption = None,
    join: JoinOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse the input if anything would be skipped.")] = False,
    skip_bad_lines: SkipBadLinesOption = False,
    workers: WorkersOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show how the files are read; write nothing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing dataset at --out.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Make a dataset directory from labeled files, and report what was skipped and why."""
    from model.errors import UserError
    from model.prepare.builder import PrepareConfig

    reading = ReadOptions(format, token_column, tag_column, offsets, as_names(tag_names))
    if len(train) == 1 and not valid and not test:
        train, valid, test = _splits(train[0])
    if dry_run and json:
        raise UserError("--dry-run and --json: a dry run shows texts, not a result; leave one out")
    if dry_run:
        for patterns in filter(None, (train, valid, test)):  # whose formats may differ
            _show(patterns, reading, max_tokens, skip_bad_lines)
        return
    if out is None:
        raise UserError("--out is missing: name the dataset directory to create, or add --dry-run to see the texts")
    config = PrepareConfig(
        train=train,
        out=out,
        valid=valid or [],
        test=test or [],
        reading=reading,
        min_frequency=min_frequency,
        max_words=max_words,
        max_tokens=max_tokens,
        vectors=vectors,
        vectors_from=vectors_from,
        pretrain=pretrain or [],
        vector_size=vector_size,
        pretrain_frequency=pretrain_frequency,
        join=join,
        strict=strict,
        skip_bad_lines=skip_bad_lines,
        overwrite=overwrite,
    )
    info = _build(config, workers)
    _echo_summary(info)
    echo(f"{info['words']:,} words; {out} is ready: {invocation('train', '--data', out)}")
    if json:
        print_json({"out": out, **info})


def as_names(tag_names: str | None) -> tuple[str, ...]:
    """Return the names that `--tag-names` lists."""
    return () if tag_names is None else tuple(name.strip() for name in tag_names.split(","))


def _splits(source: str) -> tuple[list[str], list[str], list[str]]:
    """Return the inputs of train, valid and test: a directory with files of several splits gives each its own, and says so."""
    from model.readers.readers import files_by_split

    found = files_by_split(source)
    if not found:
        return [source], [], []
    parts = [
        f"{split} from {files[0]}" + (f" and {len(files) - 1:,} more" if len(files) > 1 else "")
        for split, files in found.items()
        if files
    ]
    echo(f"{source}: {', '.join(parts)}")
    return found["train"], found["valid"], found["test"]


def _build(config: "PrepareConfig", workers: int | None) -> "DatasetInfo":
    """Make the dataset, and show how far it is."""
    from distributed.cluster.ray_data import parallel_map
    from model.prepare.builder import prepare as build
    from model.prepare.word2vec import PASSES

    passes = f"texts for word vectors, each {PASSES} times"
    encode_words = None
    if config.vectors_from is not None:
        from model.distillation.word_vectors import WordEncoder

        encode_words, passes = WordEncoder(config.vectors_from), "texts for words"
    with progress_counter("texts") as progress, progress_counter(passes) as pretrain_progress:
        return build(config, parallel_map(config.out, workers), progress, pretrain_progress, encode_words)


def _show(patterns: list[str], reading: ReadOptions, max_tokens: int, skip_bad_lines: bool) -> None:
    """Print how files are read: their format, the first texts with their keyphrases marked, and what is left out."""
    from model.prepare.preview import preview

    found = preview(patterns, reading, max_tokens, skip_bad_lines)
    print(f"{', '.join(patterns)}: {found.reading}")
    for text, spans in found.samples:
        print(f"  {_marked(text, spans)}")
    more = " or more" if found.cut else ""
    print(f"{found.texts:,}{more} texts, {found.keyphrases:,} keyphrases; {found.without:,} texts have none")
    for line in found.remarks:
        print(line)


def _marked(text: str, spans: list[tuple[int, int]]) -> str:
    """Return a text on one line with its keyphrases in brackets, and in colour on a terminal."""
    parts, at = [], 0
    for start, end in spans:
        parts += [text[at:start], typer.style(f"[{text[start:end]}]", fg=typer.colors.GREEN, bold=True)]
        at = end
    line = " ".join("".join([*parts, text[at:]]).split())
    return line if sys.stdout.isatty() else click.unstyle(line)


def _echo_summary(info: "DatasetInfo") -> None:
    for split, counts in info["splits"].items():
        echo(f"{split}: {counts['rows']:,} texts, {counts['tokens']:,} tokens, {counts['keyphrases']:,} keyphrases")
        echo_skips(counts["skipped"], counts["skipped_places"])
    for warning in info.get("warnings", []):
        echo(f"warning: {warning}")
    vectors = info["vectors"]
    if vectors is None:
        return
    share = vectors["words_covered"] / vectors["words"]
    covered = f"{vectors['words_covered']:,} of {vectors['words']:,} words ({share:.1%}) have one"
    joined = f"; {vectors['words_joined']:,} words joined" if vectors["words_joined"] else ""
    echo(f"vectors: {covered}, of {vectors['size']} dimensions{joined}")
    echo_skips(vectors.get("skipped", {}), vectors.get("skipped_places", {}))
    if pretrained := vectors.get("pretrained") or vectors.get("distilled", {}).get("texts"):
        echo_skips(pretrained["skipped"], pretrained["skipped_places"])


def echo_skips(counts: dict[str, int], places: dict[str, list[str]]) -> None:
    """Print what was skipped or changed, and where; the arguments are those of `SkipCounts`."""
    from model.data.labeled_text import format_skips

    for line in format_skips(counts, places):
        echo(f"  {line}")
