"""The statistics of all shards, merged into what dataset.json contains."""

from collections import Counter

from model.data.dataset import SPLITS
from model.data.dataset_info import SourceInfo, SplitInfo
from model.data.labeled_text import SkipCounts, format_skips, shift_line
from model.errors import LineError, UserError
from model.prepare.advice import advice
from model.prepare.buckets import Duplicates
from model.prepare.passes import InputShard, ShardOptions, ShardStats


class Totals:
    """The statistics of all shards, added in their order.

    Attributes:
        texts: rows of all splits.
        sources: the input files, by the split for which they were given.
    """

    def __init__(self, options: ShardOptions) -> None:
        self.texts = 0
        self.sources: dict[str, list[SourceInfo]] = {}
        self._options = options
        self._counts: dict[str, Counter[str]] = {}
        self._skips: dict[str, SkipCounts] = {}
        self._parts: Counter[str] = Counter()

    def add(self, shard: InputShard, stats: ShardStats) -> None:
        """Add the statistics of the next shard.

        Raises:
            LineError: the shard has a line that cannot be used; its line number is counted from the start of its file.
            UserError, OSError: whatever else stopped the pass.
        """
        self._add_files(shard, stats)
        if stats.error is not None:
            raise stats.error
        for split, counts in stats.counts.items():
            self._counts.setdefault(split, Counter()).update(counts)
            self._parts[split] += 1
            self.texts += counts["rows"]

    def _add_files(self, shard: InputShard, stats: ShardStats) -> None:
        files = self.sources.setdefault(shard.origin, [])
        for i, file_range in enumerate(shard.ranges):
            lines_before = files[-1]["lines"] if file_range.start else 0
            if i == len(stats.lines):  # the pass stopped in this range
                if isinstance(stats.error, LineError):
                    raise LineError(shift_line(stats.error.place, lines_before), stats.error.problem)
                return
            if first := stats.checksums[i]:
                path, format = file_range.path, file_range.layout.format
                files.append({"path": path, "format": format, "lines": 0, "bytes": first[0], "sha256": first[1]})
            files[-1]["lines"] += stats.lines[i]
            for split, skips in stats.skips[i].items():
                self._skips.setdefault(split, SkipCounts()).merge(skips, lines_before)

    def lacks_split(self) -> bool:
        """Return whether chance has left a split empty that the training files are divided among."""
        return not all(self._counts[split]["rows"] for split in self._options.splits("train"))

    def advice(self, duplicates: Duplicates) -> list[str]:
        """Return what is wrong with the splits, see `advice.advice`."""
        return advice(self._counts, duplicates)

    def splits(self, strict: bool) -> dict[str, SplitInfo]:
        """Return what dataset.json contains about each split.

        Raises:
            UserError: a split has no text, or with `strict`, anything was skipped.
        """
        return {split: self._split(split, strict) for split in SPLITS if split in self._counts}

    def _split(self, split: str, strict: bool) -> SplitInfo:
        skips, counts = self._skips[split], self._counts[split]
        skipped = "; ".join(format_skips(skips.counts, skips.places))
        if skipped and strict:
            raise UserError(f"{split}: --strict is set, and this would be skipped: {skipped}")
        if not counts["rows"]:
            shared = self._options.splits("train")
            alike = shared if split in shared else [split]  # the splits of the same files
            few = any(self._counts[each]["rows"] for each in alike)
            cause = "there are too few different texts to set some aside" if few else "the files hold no text"
            reason = skipped or cause
            remedy = "" if split == "train" else f", or name files with --{split}"
            raise UserError(f"{split}: no text is left: {reason}; fix the files, give more texts{remedy}")
        return {
            "rows": counts["rows"],
            "tokens": counts["tokens"],
            "keyphrases": counts["keyphrases"],
            "parts": self._parts[split],
            "skipped": skips.counts,
            "skipped_places": skips.places,
        }
