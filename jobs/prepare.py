"""`python -m jobs prepare`: labelled files -> dataset directory."""

from typing import Annotated

import typer

from jobs.console import INVOCATION, command, echo, print_json, progress_counter
from model.prepare.formats import FORMATS

FormatOption = Annotated[
    str,
    typer.Option(
        metavar="|".join(["auto", *FORMATS]),
        help="Format of labelled files, by default detected from their content. "
        + "; ".join(f"{format.name}: {format.summary}" for format in FORMATS.values())
        + ".",
    ),
]


@command
def prepare(
    train: Annotated[
        list[str], typer.Argument(help="Training files: paths, URIs or globs; TSV, JSONL, CoNLL or raw tweets.")
    ],
    out: Annotated[str, typer.Option(help="Dataset directory to make.")],
    valid: Annotated[
        list[str] | None, typer.Option(help="Validation files; a tenth of the training texts otherwise.")
    ] = None,
    test: Annotated[
        list[str] | None, typer.Option(help="Test files; a tenth where --valid is not given either.")
    ] = None,
    format: FormatOption = "auto",
    min_frequency: Annotated[int, typer.Option(min=1, help="Words seen less often become <unk>.")] = 1,
    max_words: Annotated[int, typer.Option(min=3, help="Size of the vocabulary at most.")] = 1_000_000,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longer texts are left out.")] = 1_000,
    vectors: Annotated[
        str | None, typer.Option(help="Word vectors to begin from: word2vec, GloVe or fastText.")
    ] = None,
    pretrain: Annotated[
        list[str] | None,
        typer.Option(metavar="FILES", help="Train word vectors on these unlabelled texts: paths, URIs or globs."),
    ] = None,
    vector_size: Annotated[
        int | None,
        typer.Option(min=1, help="Values of a vector of --pretrain; as tagger.embedding_dim, 300, otherwise."),
    ] = None,
    pretrain_frequency: Annotated[
        int | None,
        typer.Option(min=1, help="Words seen less often in the texts of --pretrain get no vector; 5 otherwise."),
    ] = None,
    join: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="At most so many words that only the vectors have join the vocabulary, the most frequent first; "
            "otherwise all of --pretrain, and none of --vectors.",
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse the input instead of leaving anything out.")] = False,
    skip_bad_lines: Annotated[
        bool, typer.Option("--skip-bad-lines", help="Leave out lines that cannot be used instead of stopping there.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes on Ray; on a cluster all that it has otherwise.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a dataset that stands at --out.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Make a dataset directory from labelled files, and say what was left out and why."""
    from distributed.cluster.ray_data import parallel_map
    from model.prepare.builder import PrepareConfig
    from model.prepare.builder import prepare as make
    from model.prepare.word2vec import PASSES

    recipe = PrepareConfig(
        train=train,
        out=out,
        valid=valid or [],
        test=test or [],
        format=format,
        min_frequency=min_frequency,
        max_words=max_words,
        max_tokens=max_tokens,
        vectors=vectors,
        pretrain=pretrain or [],
        vector_size=vector_size,
        pretrain_frequency=pretrain_frequency,
        join=join,
        strict=strict,
        skip_bad_lines=skip_bad_lines,
        overwrite=overwrite,
    )
    passes = f"texts for word vectors, each {PASSES} times"
    with progress_counter("texts") as tell, progress_counter(passes) as tell_pretraining:
        info = make(recipe, parallel_map(out, workers), tell, tell_pretraining)
    for split, facts in info["splits"].items():
        echo(f"{split}: {facts['rows']:,} texts, {facts['tokens']:,} tokens, {facts['keyphrases']:,} keyphrases")
        tell_skipped(facts["skipped"], facts["skipped_places"])
    if info["vectors"]:
        found = info["vectors"]
        share = found["words_covered"] / found["words"]
        joined = f"; {found['words_joined']:,} words joined" if found["words_joined"] else ""
        covered = f"{found['words_covered']:,} of {found['words']:,} words ({share:.1%}) have one"
        echo(f"vectors: {covered}, of {found['size']} values{joined}")
        if pretrained := found.get("pretrained"):
            tell_skipped(pretrained["skipped"], pretrained["skipped_places"])
    echo(f"{info['words']:,} words; {out} is ready: {INVOCATION} train --data {out}")
    if json:
        print_json({"out": out, **info})


def tell_skipped(counts: dict[str, int], places: dict[str, list[str]]) -> None:
    """Says what was left out or changed, and where."""
    from model.data.labelled_text import format_skips

    for line in format_skips(counts, places):
        echo(f"  {line}")
