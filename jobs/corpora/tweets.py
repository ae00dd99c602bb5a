"""Built-in demo corpus: generated English short texts that resemble tweets, with one or two labeled keyphrases each.

A text belongs to one domain. The words to the left or right of a name decide whether it is a keyphrase; the name itself
does not, because names of the same lists occur in asides too: the new album Velnova, my cousin Velnova.

Measured on the default 24,000 texts, seed 0: 21.4 tokens on average, 90 % of the texts between 11 and 37; 55 % of the
keyphrases have one word; 46 % of the test keyphrases are unseen in training; 3 % of the texts have one wrong label.

Memorizing is not enough, but a tagger succeeds; exact-span micro F1 on the test texts:

- Looking up all training keyphrases gives 0.16; looking up those labeled in at least half of their training occurrences
  gives 0.48. Both are below 0.60.
- A good model exceeds 0.85: the default tagger, with words that occur once mapped to <unk>, has 0.94 after five epochs
  (0.89, 0.93, 0.93, 0.94, 0.94 on the validation texts after each).
- Hyperparameters matter: after one epoch 0.53 with learning rate 1e-4, 0.00 with 1e-5, and 0.88 with alpha 0.9.
"""

import random
import re
from itertools import accumulate
from typing import NamedTuple

from jobs.corpora import english as lexicon
from jobs.corpora.english import Domain, phrases, words
from jobs.corpora.generated import GeneratedText, split_corpus, unmark


class Cues(NamedTuple):
    """The words that distinguish a keyphrase from another name."""

    roles: list[str]
    left: list[str]
    right: list[str]


TWO_KEYPHRASES = 0.40  # share of texts with two keyphrases
WORD_COUNTS = (0.55, 0.30, 0.11, 0.04)  # shares of keyphrases of one, two, three and four words
POOL_SIZE = 1000  # names per domain and number of words that may be drawn again
FRESH = 0.48  # share of names that are new, in addition to the rare ones of the pools
LABEL_NOISE = 0.03  # share of texts with one wrong label
ROLE, LEFT = 0.42, 0.36  # shares of names with a role or with a cue to their left; the others have a cue to their right
OTHER_NAME, PLAIN_SENSE = 0.5, 0.2  # shares of asides about a name or with an ambiguous word; the others are fillers
LOOKALIKE = 0.65  # share of the names in asides that could be keyphrases of the same domain
LENGTH = (2.93, 0.36)  # mean and deviation of the logarithm of the number of tokens

TOKEN = re.compile(r"<\w+>|\w+(?:[-'’]\w+)*|[^\w\s]")


def pick(rng: random.Random, choices: list[str], skewed: bool = False) -> str:
    """Draw a phrase and resolve its `[a|b]` choices; if `skewed`, later phrases are rarer, and so harder to learn."""
    position = rng.random() ** (2 if skewed else 1)
    phrase = choices[int(position * len(choices))]
    return re.sub(r"\[([^]]*)\]", lambda found: rng.choice(found[1].split("|")), phrase)


def make_word(rng: random.Random, symbol: str) -> str:
    """Return one word of a name: single capitals in a pattern are placeholders, other words are literal."""
    if symbol == "S":  # syllables
        stems = rng.choices(lexicon.STEMS, k=rng.choice((1, 2, 2)))
        return ("".join(stems) + rng.choice(lexicon.CODAS)).capitalize()
    if symbol in ("C", "T"):  # a compound or a town
        front = rng.choice(lexicon.FRONTS)
        return (front + rng.choice(lexicon.BACKS if symbol == "C" else lexicon.TOWNS)).capitalize()
    lists = {"F": lexicon.FIRST_NAMES, "A": lexicon.TITLE_ADJECTIVES, "O": lexicon.TITLE_NOUNS}
    return rng.choice(lists[symbol]).capitalize() if symbol in lists else symbol


def make_name(rng: random.Random, patterns: str) -> str:
    """Return a name made from one of the patterns, which `|` separates."""
    return " ".join(make_word(rng, symbol) for symbol in rng.choice(patterns.split("|")).split())


class Names:
    """The names of one domain: a few are drawn often, and a long tail rarely or once."""

    def __init__(self, rng: random.Random, domain: Domain) -> None:
        self.patterns = domain.names
        self.pools = [[make_name(rng, patterns) for _ in range(POOL_SIZE)] for patterns in domain.names]
        ambiguous = [word.capitalize() for word in words(domain.ambiguous)]
        self.pools[0][: len(ambiguous)] = ambiguous
        self.zipf = list(accumulate(1 / (rank + 5) for rank in range(POOL_SIZE)))

    def draw(self, rng: random.Random) -> str:
        """Return a name of one to four words."""
        count = rng.choices(range(4), WORD_COUNTS)[0]
        if rng.random() < FRESH:
            return make_name(rng, self.patterns[count])
        return rng.choices(self.pools[count], cum_weights=self.zipf)[0]


def mention(rng: random.Random, cues: Cues, name: str) -> str:
    """Return a clause about a name, with a role, a cue to its left or a cue to its right."""
    kind = rng.random()
    if kind < ROLE:
        lead = pick(rng, lexicon.LEADS) if rng.random() < 0.8 else ""
        adjective = pick(rng, lexicon.ADJECTIVES) if rng.random() < 0.5 else ""
        role = f"{pick(rng, lexicon.DETERMINERS)} {adjective} {pick(rng, cues.roles, skewed=True)}"
        return f"{lead} {role} {pick(rng, lexicon.LINKS)} {name} {pick(rng, lexicon.ENDINGS)}"
    if kind < ROLE + LEFT:
        return f"{pick(rng, cues.left, skewed=True)} {pick(rng, lexicon.MODIFIERS)} {name} {pick(rng, lexicon.ENDINGS)}"
    return f"{pick(rng, lexicon.MODIFIERS)} {name} {pick(rng, cues.right, skewed=True)}"


class Writer:
    """Writes the texts of one domain."""

    def __init__(self, rng: random.Random, domain: Domain) -> None:
        self.rng = rng
        self.names = Names(rng, domain)
        self.openings = phrases(domain.openings)
        self.topic = Cues(words(domain.roles), phrases(domain.left_cues), phrases(domain.right_cues))
        others = [role for role in lexicon.OTHERS if role not in self.topic.roles]
        self.daily = Cues(others, lexicon.SOCIAL_LEFT_CUES, lexicon.SOCIAL_RIGHT_CUES)

    def keyphrases(self) -> list[str]:
        """Return one or two clauses with one or two keyphrases, each in braces."""
        rng = self.rng
        marked = ["{" + self.names.draw(rng) + "}" for _ in range(2 if rng.random() < TWO_KEYPHRASES else 1)]
        if len(marked) == 2 and rng.random() < 0.3:
            marked = [rng.choice((" and ", " vs ", " , ", " or ")).join(marked)]
        return [mention(rng, self.topic, name) for name in marked]

    def aside(self) -> str:
        """Return a clause without a keyphrase: another name, an ambiguous word in its plain sense, or a filler."""
        rng = self.rng
        kind = rng.random()
        if kind < OTHER_NAME:
            name = self.names.draw(rng) if rng.random() < LOOKALIKE else make_name(rng, "F|F S|S|T")
            return mention(rng, self.daily, name)
        return pick(rng, lexicon.PLAIN if kind < OTHER_NAME + PLAIN_SENSE else lexicon.FILLERS)

    def write(self) -> GeneratedText:
        """Return an opening and clauses in random order, up to a random length, with a tweet's prefix and suffix."""
        rng = self.rng
        length = min(max(rng.lognormvariate(*LENGTH), 8), 42) - 5  # the ends and joints take about five tokens
        clauses = self.keyphrases()
        opening = pick(rng, self.openings)
        while len(TOKEN.findall(" ".join([opening, *clauses]))) < length:
            aside = self.aside()
            if aside not in clauses:
                clauses.insert(rng.randrange(len(clauses) + 1), aside)
        parts = [pick(rng, lexicon.PREFIXES)] if rng.random() < 0.35 else []
        for clause in [opening, *clauses]:
            parts += [misspell(rng, clause), pick(rng, lexicon.JOINTS)]
        parts[-1] = " ".join(rng.sample(lexicon.TAILS, k=rng.choice((0, 1, 1, 2))))
        return unmark(restyle(rng, " ".join(parts)))


def misspell(rng: random.Random, clause: str) -> str:
    """Return the clause, sometimes with two letters of a plain word swapped."""
    tokens = clause.split()
    at = rng.randrange(len(tokens))
    word = tokens[at]
    if rng.random() < 0.06 and len(word) > 3 and word.isalpha() and word.islower():
        cut = rng.randrange(1, len(word) - 2)
        tokens[at] = word[:cut] + word[cut + 1] + word[cut] + word[cut + 2 :]
    return " ".join(tokens)


def restyle(rng: random.Random, text: str) -> str:
    """Return the text with the spaces and capitals of a tweet; some are all lower case, a few all upper case."""
    text = re.sub(r"\ba (?=[aeiou])", "an ", " ".join(text.split()))
    text = re.sub(r" ([,.!?:])", r"\1", text)
    style = rng.random()
    if style < 0.30:
        return text.lower()
    if style < 0.33:
        return re.sub(r"(<\w+>)|[^<]+", lambda part: part[1] or part[0].upper(), text)
    return re.sub(r"(^|[.!?:>] )([a-z])", lambda start: start[1] + start[2].upper(), text)


def mislabel(rng: random.Random, labeled: GeneratedText) -> GeneratedText:
    """Return the text with one keyphrase dropped, moved to another word, or with a boundary moved by a word."""
    text, spans = labeled.text, list(labeled.spans)
    start, end = spans.pop(rng.randrange(len(spans)))
    tokens = [found.span() for found in TOKEN.finditer(text)]
    inside = [token for token in tokens if start <= token[0] < end]
    taken = {token for token in tokens for span in [(start, end), *spans] if span[0] <= token[0] < span[1]}
    free = [token for token in tokens if token not in taken and text[token[0]].isalnum()]
    kind = rng.choice(("drop", "other word", "boundary", "boundary"))
    if kind == "other word":
        spans.append(rng.choice(free))
    elif kind == "boundary" and len(inside) > 1:
        spans.append(rng.choice([(inside[1][0], end), (start, inside[-2][1])]))
    elif kind == "boundary":
        at = tokens.index(inside[0])
        beside = [token for token in tokens[max(at - 1, 0) : at + 2] if token in free]
        spans += [(min(start, token[0]), max(end, token[1])) for token in beside[:1]]
    return GeneratedText(text, sorted(spans))


def generate(texts: int = 24_000, seed: int = 0) -> dict[str, list[GeneratedText]]:
    """Generate distinct labeled texts of all domains in random order; a seed gives the same texts on any machine.

    Returns:
        The texts of the splits train (70 %), valid (10 %) and test (20 %).
    """
    rng = random.Random(seed)
    writers = [Writer(rng, domain) for domain in lexicon.DOMAINS.values()]
    written: dict[str, GeneratedText] = {}
    while len(written) < texts:
        labeled = rng.choice(writers).write()
        written.setdefault(labeled.text, labeled)
    return split_corpus([mislabel(rng, one) if rng.random() < LABEL_NOISE else one for one in written.values()])
