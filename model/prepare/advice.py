"""What makes a dataset unable to teach or to measure, in words: no keyphrases, texts in two splits, splits too small."""

from collections import Counter
from collections.abc import Mapping

from model.prepare.buckets import Duplicates

_FEW_TEXTS = 30  # a score on fewer says little


def pins(texts: dict[str, set[int]], splits: list[str]) -> dict[int, str]:
    """Return the splits of some texts, by their digest, so that each split has one; none where that needs more texts.

    Args:
        texts: digests of the texts of each split.
        splits: those that must have one.
    """
    # A text that is in two splits, in other case, leaves both when it moves: it counts for the first of them alone.
    own: dict[str, set[int]] = {}
    for split in splits:
        own[split] = texts[split].difference(*own.values())
    if sum(map(len, own.values())) < len(splits):
        return {}
    pinned = {}
    for split in splits:
        if not own[split]:
            richest = max(own.values(), key=len)
            moved = min(richest)
            richest.remove(moved)
            own[split].add(moved)
            pinned[moved] = split
    return pinned


def advice(counts: Mapping[str, Counter[str]], duplicates: Duplicates) -> list[str]:
    """Return what is wrong with the splits, a sentence each.

    Args:
        counts: `rows` and `keyphrases` of each split.
        duplicates: texts that occur more than once.
    """
    lines = [_without_keyphrases(split) for split, own in counts.items() if not own["keyphrases"]]
    lines += [
        f"{split}: too few texts ({own['rows']}) to tell taggers apart; give more"
        for split, own in counts.items()
        if split != "train" and own["rows"] < _FEW_TEXTS
    ]
    lines += [
        f"{split}: {shared:,} of {counts[split]['rows']:,} texts are in {other} too; remove them from one of the two"
        for (split, other), shared in duplicates.shared.items()
        if shared
    ]
    if duplicates.contradicting:
        lines.append(f"texts that are labeled in different ways: {duplicates.contradicting:,}; decide for one labeling")
    return lines


def _without_keyphrases(split: str) -> str:
    if split == "train":
        return "train: no text has a keyphrase, so nothing can be learned; check that the labels were read"
    return f"{split}: no text has a keyphrase, so nothing can be measured; check that the labels were read"
