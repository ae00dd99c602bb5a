"""`python -m jobs extract`: bundle + texts -> keyphrases, streaming."""

import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from jobs.console import command, counting, say


@command
def extract(
    bundle: Annotated[str, typer.Argument(help="Bundle of a finished run: a path or URI.")],
    source: Annotated[
        str, typer.Argument(metavar="[FILE]", help='One text a line, or JSONL with "text"; `-` is stdin.')
    ] = "-",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a text.")] = False,
) -> None:
    """Find the keyphrases of texts, with their characters (start:end) and scores.

    Every text gives one line: the text's number and its keyphrases, tab-separated; with --json an object with `text` and
    `keyphrases`, each with `text`, `start`, `end` and `score`.
    """
    from itertools import tee
    from json import dumps

    from model.extractor import TEXTS_HELD, Extractor

    typed = source == "-" and sys.stdin.isatty()
    if typed:
        say("reading texts from the terminal; end with Ctrl-D")
    extractor = Extractor.load(bundle, device)
    texts, again = tee(read_texts(source))
    with counting("texts") as tell:
        for number, (text, keyphrases) in enumerate(
            zip(again, extractor.many(texts, held=1 if typed else TEXTS_HELD), strict=True), 1
        ):
            if json:
                found = {"text": text, "keyphrases": [keyphrase._asdict() for keyphrase in keyphrases]}
                print(dumps(found, ensure_ascii=False))
            else:
                shown = (f"{each.text} [{each.start}:{each.end}] {each.score:.3f}" for each in keyphrases)
                print("\t".join([str(number), *shown]))
            tell(number)


def read_texts(source: str) -> Iterator[str]:
    """The texts of a file or of stdin, one at a time.

    Raises:
        UserError: the file is missing.
        LineError: a line is not UTF-8, or no JSON object with a text in a file that begins with one.
    """
    from model import storage
    from model.corpus import lines_of, text_of_line

    path = "stdin" if source == "-" else storage.expand(source)[0]
    lines = sys.stdin.buffer if source == "-" else lines_of(path)
    jsonl: bool | None = None
    for number, raw in enumerate(lines, 1):
        line = raw.rstrip(b"\r\n")
        if jsonl is None:
            jsonl = line.lstrip().startswith(b"{")
        yield text_of_line(line, f"{path}:{number}", jsonl)
