"""The metrics that trials are ranked by."""

from typing import NamedTuple

SCORES = ("f1", "precision", "recall", "exact_match")


class Metric(NamedTuple):
    """A score of one head on the validation split.

    Attributes:
        head: `keyphrase` or `keyword`.
        score: one of SCORES.
    """

    head: str
    score: str

    @classmethod
    def parse(cls, key: str) -> "Metric":
        """Return the metric of a key such as `valid/keyphrase_f1`."""
        return cls(*key.removeprefix("valid/").split("_", 1))

    @property
    def key(self) -> str:
        """Its key among an epoch's metrics."""
        return f"valid/{self.head}_{self.score}"

    @property
    def label(self) -> str:
        """Its name for people: `keyphrase F1`."""
        return f"{self.head} {self.score.replace('_', ' ').replace('f1', 'F1')}"

    @property
    def loss(self) -> str:
        """The key of its head's loss."""
        return f"valid/{self.head}_loss"

    @property
    def low(self) -> str:
        """The key of the lower end of its 95 % interval, which F1 alone has."""
        return f"valid/{self.head}_f1_low"


METRICS = tuple(Metric(head, score).key for head in ("keyphrase", "keyword") for score in SCORES)
