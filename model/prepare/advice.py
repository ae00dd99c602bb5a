"""What makes a dataset unable to teach or to measure, in words: no keyphrases, texts in two splits, splits too small."""

import numpy as np
import numpy.typing as npt

Digests = npt.NDArray[np.int64]  # (rows, 2): digests of each text and of its keyphrases
_FEW_TEXTS = 30  # a score on fewer says little


def pins(digests: dict[str, Digests], splits: list[str]) -> dict[int, str]:
    """Return the splits of some texts, by their digest, so that each split has one; none where that needs more texts.

    Args:
        digests: of each split that has a text.
        splits: those that must have one.
    """
    texts = {split: set(digests[split][:, 0].tolist()) if split in digests else set() for split in splits}
    if len(set().union(*texts.values())) < len(splits):
        return {}
    pinned = {}
    for split in splits:
        if not texts[split]:
            richest = max(texts.values(), key=len)
            moved = min(richest)
            richest.remove(moved)
            texts[split].add(moved)
            pinned[moved] = split
    return pinned


def advice(digests: dict[str, Digests], keyphrases: dict[str, int]) -> list[str]:
    """Return what is wrong with the splits, a sentence each.

    Args:
        digests: of each split.
        keyphrases: their number in each split.
    """
    lines = [_without_keyphrases(split) for split, count in keyphrases.items() if not count]
    lines += [
        f"{split}: too few texts ({len(rows)}) to tell taggers apart; give more"
        for split, rows in digests.items()
        if split != "train" and len(rows) < _FEW_TEXTS
    ]
    names = list(digests)
    for i, split in enumerate(names):
        for other in names[:i]:
            shared = int(np.isin(digests[split][:, 0], digests[other][:, 0]).sum())
            if shared:
                total = len(digests[split])
                lines.append(
                    f"{split}: {shared:,} of {total:,} texts are in {other} too; remove them from one of the two"
                )
    contradicting = _labeled_in_two_ways(np.concatenate(list(digests.values())))
    if contradicting:
        lines.append(f"texts that are labeled in different ways: {contradicting:,}; decide for one labeling")
    return lines


def _without_keyphrases(split: str) -> str:
    if split == "train":
        return "train: no text has a keyphrase, so nothing can be learned; check that the labels were read"
    return f"{split}: no text has a keyphrase, so nothing can be measured; check that the labels were read"


def _labeled_in_two_ways(digests: Digests) -> int:
    """Return how many texts have more than one labeling."""
    labelings = np.unique(digests, axis=0)
    _, counts = np.unique(labelings[:, 0], return_counts=True)
    return int((counts > 1).sum())
