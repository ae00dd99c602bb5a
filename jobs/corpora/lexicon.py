"""What the words of a language are made of, for the generated texts."""

from typing import NamedTuple


class Topic(NamedTuple):
    """The phrases of one topic, separated by spaces.

    Attributes:
        openings: sentences that begin a text.
        left_cues: stand before a name that they make a keyphrase.
        right_cues: stand behind it.
        names: patterns of names; a capital Latin letter stands for one of `Lexicon.parts`, and `_`
            for a space.
    """

    openings: str
    left_cues: str
    right_cues: str
    names: str


class Lexicon(NamedTuple):
    """The material for the texts of one language.

    Attributes:
        topics: what texts are about.
        daily: cues of names that are no keyphrases; its openings are clauses without a name.
        parts: parts of names, by the letter of the patterns.
        joints: what stands between clauses.
        tails: ends of texts.
        sentences: new texts for the demo, each with a keyphrase and a name that is none.
    """

    topics: tuple[Topic, ...]
    daily: Topic
    parts: dict[str, str]
    joints: tuple[str, ...]
    tails: tuple[str, ...]
    sentences: tuple[str, ...]
