"""A keyphrase of a text; without torch, for processes that only pass keyphrases on."""

from typing import NamedTuple, TypedDict


class KeyphraseRecord(TypedDict):
    """A keyphrase as JSON output has it."""

    text: str
    start: int
    end: int
    score: float


class Keyphrase(NamedTuple):
    """A keyphrase of a text: `text[start:end]`.

    Attributes:
        text: the keyphrase as the text has it.
        start, end: its characters, half-open.
        score: confidence in 0 to 1; see `model.network.decoding.SpanPredictions`.
    """

    text: str
    start: int
    end: int
    score: float

    def as_record(self) -> KeyphraseRecord:
        """Return the keyphrase as plain values."""
        return {"text": self.text, "start": self.start, "end": self.end, "score": self.score}
