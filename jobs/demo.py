"""`python -m jobs demo`: every step on the built-in corpus, from generated texts to keyphrases of new ones."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.console import command, echo, invocation, print_json, table
from jobs.corpora import spaceless
from jobs.corpora.generated import prepare_corpus, write_corpus
from jobs.corpora.tweets import generate

# The corpus has none of these names, and each sentence has one that is not a keyphrase: only the context decides.
SENTENCES = (
    "Match day again! Had lunch with Jorunna, then a late goal by Brenwick Herons and I lost my voice <url>",
    "Keynote day! My cousin Ottoline ate an apple on the bus while I installed the beta of Zephyrix <url>",
    "Sirens outside all night. Thanks Ottoline for the umbrella, still praying for Quorrundale after the storm 🙏",
)


@command
def demo(
    folder: Annotated[str, typer.Option(help="Folder for all files of the demo.")] = "runs/demo",
    workers: Annotated[int, typer.Option(min=1, help="Processes that share each batch.")] = 2,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the corpus at most.")] = 5,
    texts: Annotated[int, typer.Option(min=2000, help="Size of the corpus.")] = 24_000,
    language: Annotated[
        Literal["en", "zh", "ja", "th"],
        typer.Option(help="Language of the corpus: English, Chinese, Japanese or Thai."),
    ] = "en",
    data_only: Annotated[
        bool, typer.Option("--data-only", help="Build the corpus and its dataset; run nothing.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Build the corpus, train on this machine, evaluate, and extract from three new sentences."""
    from distributed.cluster.connection import force_local_cluster
    from jobs.train import run
    from model import storage
    from model.config import make_config
    from model.errors import UserError
    from model.inference.extractor import Extractor

    if storage.is_remote(folder):
        raise UserError(f"--folder {folder}: the demo's files are on this machine; give a path")
    force_local_cluster()
    place = Path(folder.removeprefix("file://")).expanduser()
    echo(f"1 of 4  corpus: {texts:,} generated texts in {place / 'corpus'}")
    corpus = generate(texts) if language == "en" else spaceless.generate(language, texts)
    files = write_corpus(place / "corpus", corpus)
    data = prepare_corpus(files, place / "dataset")
    if data_only:
        echo(f"dataset: {data}")
        if json:
            print_json({"out": data})
        return
    echo(f"2 of 4  training with {workers} workers")
    config = make_config(
        {
            "data": data,
            "training": {"epochs": epochs},
            "run": {"name": next_name(place), "storage": str(place.resolve()), "workers": workers},
        }
    )
    result = run(config)
    echo("3 of 4  evaluation on texts that were not used in training")
    metrics = measure(result.bundle, data)
    print(table(metrics))
    echo("4 of 4  extraction from new sentences")
    extractor = Extractor.load(result.bundle)
    for sentence in SENTENCES if language == "en" else spaceless.LANGUAGES[language].sentences:
        print(sentence)
        for each in extractor(sentence):
            print(f"    {each.text}  [{each.start}:{each.end}]  {each.score:.3f}")
    train_mine = invocation("train", "--data", "data/mine", "--workers", str(workers))
    echo(
        f"\ncorpus   {place / 'corpus'}\ndataset  {data}\nbundle   {result.bundle}\n\nNext:\n"
        f"  echo 'one of your texts' | {invocation('extract', result.bundle)}\n"
        f"  {invocation('prepare', 'YOUR.tsv', '--out', 'data/mine')}       # text<TAB>keyphrase;keyphrase\n"
        f"  {train_mine}"
    )
    if json:
        print_json({"name": result.name, "bundle": result.bundle, "seconds": result.seconds, "test": metrics})


def next_name(place: Path) -> str:
    """Return a name that no earlier demo used."""
    taken = {path.name for path in place.glob("train-*")}
    return next(name for number in range(1, len(taken) + 2) if (name := f"train-{number}") not in taken)


def measure(bundle: str, data: str) -> dict[str, float]:
    """Return the metrics of a bundle on the test split."""
    import torch

    from model.data.dataset import Dataset
    from model.inference.bundle import load_bundle
    from model.training.evaluation import evaluate
    from model.training.metrics import summarize

    loaded = load_bundle(bundle)
    test = Dataset(data).load("test", loaded.config.tagger.uses_word_features, loaded.subwords)
    return summarize(evaluate(loaded.tagger, test, torch.device("cpu")).counts)
