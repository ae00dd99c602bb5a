"""What an ablation shows: each row's mean over seeds and its difference to the whole."""

import io

import numpy as np
import torch

from distributed.sweep.ablation_rows import FULL
from distributed.sweep.results import AblationRow, ParameterCount
from distributed.sweep.state import SweepState, Trial
from distributed.train.checkpoint import load_best
from model import storage
from model.config import TaggerConfig
from model.data.dataset import Dataset
from model.network.encoder import Encoder, build_model
from model.network.encoder_files import read_encoder_config
from model.network.tagger import Tagger
from model.training.metrics import Counts
from model.training.significance import SIGNIFICANCE_LEVEL, SeedGroups, describe_test


def keep_counts(sweep: SweepState, trial: Trial) -> None:
    """Keep a trial's counts on each validation text, before its weights are removed. Raises OSError."""
    location = _counts_location(sweep, trial)
    if not storage.exists(location):
        content = io.BytesIO()
        np.savez_compressed(content, counts=load_best(sweep.folder_of(trial))[1])
        storage.write(location, content.getvalue())


def _counts_of(sweep: SweepState, trial: Trial) -> Counts:
    """Return the counts (texts, 8) of a trial's best epoch. Raises FileNotFoundError."""
    location = _counts_location(sweep, trial)
    if not storage.exists(location):  # the leader, whose weights are there
        return load_best(sweep.folder_of(trial))[1]
    with np.load(io.BytesIO(storage.read(location)), allow_pickle=False) as file:
        return file["counts"]


def _counts_location(sweep: SweepState, trial: Trial) -> str:
    return storage.join(sweep.plan.folder, "counts", f"{trial.name}.npz")


def compare_rows(sweep: SweepState) -> tuple[list[AblationRow], str]:
    """Compare the rows with the whole by a paired bootstrap over validation texts and seeds.

    Returns:
        the rows, the whole first and the others by their mean; and one sentence.
    """
    plan = sweep.plan
    finished = {
        name: [trial for trial in sweep.searched if trial.series == name and trial.state == "finished"]
        for name in plan.rows
    }
    counts = {name: [_counts_of(sweep, trial) for trial in seeds] for name, seeds in finished.items() if seeds}
    groups = SeedGroups(counts, plan.ranking.head, plan.ranking.score)
    words = Dataset(plan.config.data).info["words"]
    rows = [_row(sweep, name, seeds, groups, words) for name, seeds in finished.items()]
    rows.sort(key=lambda row: (row.row != FULL, row.mean is None, -(row.mean or 0.0)))
    return rows, _verdict(rows, describe_test(fewest_seeds(rows)))


def fewest_seeds(rows: list[AblationRow]) -> int:
    """Return how many seeds the row with the fewest has that were trained in full; rows without any are not compared."""
    return min((len(row.seeds) for row in rows if row.seeds), default=0)


def _row(sweep: SweepState, name: str, finished: list[Trial], groups: SeedGroups, words: int) -> AblationRow:
    plan = sweep.plan
    best = [metrics for trial in finished if (metrics := trial.best(plan.metric))]
    seconds = [metrics["train/seconds"] for trial in finished for metrics in trial.metrics]
    proposed = [trial for trial in sweep.searched if trial.series == name]
    missing = [
        f"{trial.name} (seed {trial.values['training.seed']}) {trial.state}"
        + (f": {trial.error}" if trial.error else "")
        for trial in proposed
        if trial not in finished
    ]
    low, high = groups.interval(name) if name in groups.means else (None, None)
    compared = name != FULL and name in groups.means and FULL in groups.means
    return AblationRow(
        row=name,
        values=plan.rows[name],
        seeds=[trial.values["training.seed"] for trial in finished],
        scores=[metrics[plan.metric] for metrics in best],
        mean=groups.means.get(name),
        low=low,
        high=high,
        against_whole=groups.difference(name, FULL) if compared else None,
        best_epochs=[int(metrics["epoch"]) for metrics in best],
        seconds_per_epoch=round(float(np.mean(seconds)), 3) if seconds else None,
        parameters=count_parameters(sweep.config_of(proposed[0]).tagger, words) if proposed else None,
        lost=missing + ["a seed was not begun"] * (plan.seeds - len(proposed)),
    )


def count_parameters(config: TaggerConfig, words: int) -> ParameterCount:
    """Count the parameters of a tagger with a vocabulary of so many words."""
    with torch.device("meta"):  # shapes alone
        encoder = Encoder(config, build_model(read_encoder_config(config.encoder))) if config.encoder else None
        tagger = Tagger(config, words, encoder=encoder)
    tables = sum(table.weight.numel() for table in tagger.tables)
    return ParameterCount(tables, sum(each.numel() for each in tagger.parameters()) - tables)


def _verdict(rows: list[AblationRow], test: str) -> str:
    differences = {row.row: row.against_whole for row in rows if row.against_whole}
    if not differences:
        return "no row can be compared with the whole: too few trainings finished"
    differ = {name: found for name, found in differences.items() if found.p < SIGNIFICANCE_LEVEL}
    parts = []
    if differ:
        named = ", ".join(f"{name} ({found.difference:+.4f})" for name, found in differ.items())
        verb = "differs" if len(differ) == 1 else "differ"
        parts.append(f"{named} {verb} from the whole, p < {SIGNIFICANCE_LEVEL} {test}")
    if same := [name for name in differences if name not in differ]:
        parts.append(f"no difference is shown for {', '.join(same)}")
    if missing := [row.row for row in rows if row.mean is None]:
        parts.append(f"no metric is known for {', '.join(missing)}")
    return "; ".join(parts)
