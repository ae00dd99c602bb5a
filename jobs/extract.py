"""`python -m jobs extract`: bundle + texts -> keyphrases, streaming."""

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.console import command, echo, print_json, progress_counter

if TYPE_CHECKING:
    from model.inference.batch_inference import Pipe


@command
def extract(
    bundle: Annotated[
        str | None, typer.Argument(help="Bundle of a finished run: a path or URI. Not with --server.")
    ] = None,
    files: Annotated[
        list[str] | None,
        typer.Argument(
            help='Paths, URIs or globs of files: one text per line, or records with "text". Without them: stdin.'
        ),
    ] = None,
    out: Annotated[str | None, typer.Option(help="Directory for parts of JSON lines, instead of stdout.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes on Ray, with --out; on a cluster all that it has otherwise.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    server: Annotated[
        str | None, typer.Option(metavar="URL", help="Let this server extract, instead of a bundle here.")
    ] = None,
    token_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="With --server: file with its token; default: TANDEM_TOKEN.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing extraction at --out.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a text; with --out, one for all of them.")
    ] = False,
) -> None:
    """Find the keyphrases of texts, with their characters (start:end) and scores.

    Every text gives one line: the text's number and its keyphrases, tab-separated; with --json an object with `text` and
    `keyphrases`, each with `text`, `start`, `end` and `score`. With --out these objects are written to files.
    """
    from model.errors import UserError

    given = files or []
    if server is not None:
        given = [bundle, *given] if bundle is not None else given
        if out is not None or workers or overwrite or device != "cpu":
            raise UserError("--out, --workers, --overwrite and --device: a server does not take them; leave them out")
    elif bundle is None or token_file is not None:
        raise UserError("name a bundle, or a server with --server; --token-file is for --server alone")
    given = given or ["-"]
    if "-" in given and len(given) > 1:
        raise UserError("- is stdin, and it is read alone; name files, or pipe into the command, not both")
    if out is None:
        if workers or overwrite:
            raise UserError("--workers and --overwrite need --out; name a directory with it")
        _to_stdout(_client(server, token_file) if server is not None else _extractor(bundle, device), given, json)
    elif given == ["-"]:
        raise UserError("--out needs files, not stdin, because the input is divided into shards; name at least one")
    else:
        assert bundle is not None
        _to_parts(bundle, given, out, device, workers, overwrite, json)


def _extractor(bundle: str | None, device: str) -> "Pipe":
    from model.inference.extractor import Extractor

    assert bundle is not None
    return Extractor.load(bundle, device)


def _client(server: str, token_file: str | None) -> "Pipe":
    from model.serving.client import Client
    from model.serving.settings import TOKEN_VARIABLE
    from model.serving.tokens import read_tokens

    return Client(server, read_tokens(token_file)[0] if token_file else os.environ.get(TOKEN_VARIABLE))


def _to_stdout(extractor: "Pipe", files: list[str], json: bool) -> None:
    from model.inference.batch_inference import as_json, extract_from_files, extract_from_stream
    from model.inference.extractor import PIPE_BATCH_SIZE

    stdin = files == ["-"]
    typed = stdin and sys.stdin.isatty()
    if typed:
        echo("reading texts from the terminal; end with Ctrl-D")
    if stdin:
        extracted = extract_from_stream(extractor, sys.stdin.buffer, "stdin", 1 if typed else PIPE_BATCH_SIZE)
    else:
        extracted = extract_from_files(extractor, files, on_note=echo)
    with progress_counter("texts") as show_progress:
        for number, (text, keyphrases) in enumerate(extracted, 1):
            if json:
                print(as_json(text, keyphrases))
            else:
                # A keyphrase may go over the end of a line.
                shown = (
                    f"{' '.join(each.text.split())} [{each.start}:{each.end}] {each.score:.3f}" for each in keyphrases
                )
                print("\t".join([str(number), *shown]))
            show_progress(number)


def _to_parts(
    bundle: str, files: list[str], out: str, device: str, workers: int | None, overwrite: bool, json: bool
) -> None:
    from distributed.cluster.ray_data import parallel_map
    from model.inference.batch_inference import ExtractionConfig
    from model.inference.batch_inference import extract as extract_to_parts

    config = ExtractionConfig(bundle, files, out, device, overwrite)
    with progress_counter("texts") as show_progress:
        mapped = parallel_map(out, workers, actors=True, device=device)
        info = extract_to_parts(config, mapped, show_progress, echo)
    echo(f"{info['texts']:,} texts, {info['keyphrases']:,} keyphrases in {info['parts']} part(s); {out} is ready")
    if json:
        print_json({"out": out, **info})
