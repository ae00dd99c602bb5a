"""Generated short texts of scripts without spaces, with one or two labeled keyphrases each, as `tweets` has of English.

The words before or behind a name decide whether it is a keyphrase; the name itself does not, because names of the same
patterns occur in asides too: the striker Chen Siyu, my neighbor Chen Siyu.
"""

import random

from jobs.corpora.chinese import CHINESE
from jobs.corpora.generated import GeneratedText, split_corpus, unmark
from jobs.corpora.japanese import JAPANESE
from jobs.corpora.lexicon import Lexicon, Topic
from jobs.corpora.thai import THAI

LANGUAGES = {"zh": CHINESE, "ja": JAPANESE, "th": THAI}
_TWO_KEYPHRASES = 0.4  # share of texts with two keyphrases
_LEFT = 0.7  # share of names with a cue to their left; the others have one to their right
_NAMED = 0.6  # share of the asides that have a name
_LOOKALIKE = 0.65  # share of their names that could be keyphrases of the topic


def generate(language: str, texts: int, seed: int = 0) -> dict[str, list[GeneratedText]]:
    """Generate distinct labeled texts in random order; a seed gives the same texts on any machine.

    Args:
        language: a key of LANGUAGES.
        texts: their number.
        seed: of the random choices.

    Returns:
        The texts of the splits train (70 %), valid (10 %) and test (20 %).
    """
    rng, lexicon = random.Random(seed), LANGUAGES[language]
    written: dict[str, GeneratedText] = {}
    while len(written) < texts:
        labeled = _write(rng, lexicon)
        written.setdefault(labeled.text, labeled)
    return split_corpus(list(written.values()))


def _write(rng: random.Random, lexicon: Lexicon) -> GeneratedText:
    topic = rng.choice(lexicon.topics)
    count = 2 if rng.random() < _TWO_KEYPHRASES else 1
    clauses = [_mention(rng, topic, "{" + _name(rng, lexicon, topic.names) + "}") for _ in range(count)]
    for _ in range(rng.choice((1, 1, 2, 3))):
        clauses.insert(rng.randrange(len(clauses) + 1), _aside(rng, lexicon, topic))
    text = _pick(rng, topic.openings)
    for clause in clauses:
        text += rng.choice(lexicon.joints) + clause
    return unmark(text + rng.choice(lexicon.tails))


def _aside(rng: random.Random, lexicon: Lexicon, topic: Topic) -> str:
    """Return a clause without a keyphrase."""
    if rng.random() > _NAMED:
        return _pick(rng, lexicon.daily.openings)
    patterns = topic.names if rng.random() < _LOOKALIKE else lexicon.daily.names
    return _mention(rng, lexicon.daily, _name(rng, lexicon, patterns))


def _mention(rng: random.Random, topic: Topic, name: str) -> str:
    """Return a name with a cue to its left or right."""
    return _pick(rng, topic.left_cues) + name if rng.random() < _LEFT else name + _pick(rng, topic.right_cues)


def _name(rng: random.Random, lexicon: Lexicon, patterns: str) -> str:
    pattern = _pick(rng, patterns)
    name = "".join(_pick(rng, lexicon.parts[char]) if char in lexicon.parts else char for char in pattern)
    return name.replace("_", " ")


def _pick(rng: random.Random, phrases: str) -> str:
    return rng.choice(phrases.split())
