"""Labeled texts as readers return them, and counts of what was skipped."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class LabeledText:
    """A text with its keyphrases, given either as character spans or as phrases.

    Attributes:
        text: the text.
        place: `file:line` where it begins, 1-based.
        spans: (start, end) of each keyphrase in characters, half-open.
        keyphrases: phrases to look up in the text, used where `spans` is None.
        every: whether to mark every occurrence of a phrase, or only the first.
    """

    text: str
    place: str
    spans: tuple[tuple[int, int], ...] | None = None
    keyphrases: tuple[str, ...] = ()
    every: bool = False


@dataclass
class SkipCounts:
    """Counts of what was skipped or changed, by reason, each with the places of its first cases.

    Attributes:
        limit: places to keep for each reason.
        counts: number of cases by reason.
        places: `file:line` of the first cases by reason.
    """

    limit: int = 10
    counts: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, place: str) -> None:
        """Count one more case of a reason."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        places = self.places.setdefault(reason, [])
        if len(places) < self.limit:
            places.append(place)

    def merge(self, other: "SkipCounts", lines_before: int) -> None:
        """Add the counts of the lines that follow, whose line numbers start `lines_before` lines later."""
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            places = self.places.setdefault(reason, [])
            more = other.places[reason][: self.limit - len(places)]
            places += [shift_line(place, lines_before) for place in more]


def shift_line(place: str, lines_before: int) -> str:
    """Return `file:line` with the line number raised by `lines_before`."""
    file, _, line = place.rpartition(":")
    return f"{file}:{int(line) + lines_before}"


def format_skips(counts: dict[str, int], places: dict[str, list[str]]) -> list[str]:
    """Return a line for each reason, the most frequent first, with its first places as `file:1,5,9`.

    Args:
        counts, places: as in `SkipCounts`.
    """
    lines = []
    for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        by_file: dict[str, list[str]] = {}
        for place in places[reason]:
            file, _, line = place.rpartition(":")
            by_file.setdefault(file, []).append(line)
        listed = "; ".join(f"{file}:{','.join(dict.fromkeys(numbers))}" for file, numbers in by_file.items())
        lines.append(f"{count:,} x {reason}: {listed}{', ...' if count > len(places[reason]) else ''}")
    return lines
