"""Built-in demo corpus: generated English short texts shaped like tweets, with one or two labelled keyphrases each.

A text is of one domain. What stands to the left of a name or right behind it tells whether the name is a keyphrase;
the name itself does not, as names of the same lists stand in asides too: the new album Velnova, my cousin Velnova.

Measured on the default 24,000 texts, seed 0: 21.4 tokens on average, 90 % of the texts between 11 and 37; 55 % of the
keyphrases have one word; 46 % of the test keyphrases are unseen in training; 3 % of the texts have one wrong label.

Hard for a memory, easy enough for a tagger; exact-span micro F1 on the test texts:

- A lookup of all training keyphrases reaches 0.16, of those labelled in at least half of their training occurrences
  0.48. Both stay under 0.60.
- A good model passes 0.85: the default tagger with words seen once read as <unk> has 0.94 after five epochs (on the
  validation texts 0.89, 0.93, 0.93, 0.94, 0.94 after each).
- Settings matter: after one epoch 0.53 with learning rate 1e-4, 0.00 with 1e-5, and 0.88 with alpha 0.9.
"""

import json as jsonlib
import random
import re
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple


class GeneratedText(NamedTuple):
    """A text with its keyphrases as character offsets: half-open, sorted, not overlapping."""

    text: str
    spans: list[tuple[int, int]]  # a keyphrase is text[start:end]


class Domain(NamedTuple):
    """What texts of one topic are made of; phrases are separated by " / " and `[a|b]` is a choice."""

    openings: str
    roles: str  # nouns that introduce a keyphrase
    cues: str  # what introduces a keyphrase directly on its left
    verdicts: str  # what shows a keyphrase directly on its right
    ambiguous: str  # keyphrases here, plain words elsewhere
    names: tuple[str, str, str, str]  # patterns of made-up names of one, two, three and four words


class Cues(NamedTuple):
    """What tells a keyphrase from any other name."""

    roles: list[str]
    left: list[str]
    right: list[str]


def words(text: str) -> list[str]:
    """The words of a compactly written list."""
    return text.split()


def phrases(text: str) -> list[str]:
    """The phrases of a compactly written list."""
    return text.split(" / ")


DOMAINS = {
    "sport": Domain(
        "[match|game] day [at last|again] / half time [already|here] / what a [season|derby|match] / the stadium is "
        "packed / full time [here|and i am shaking] / back on the [terraces|pitch|touchline] / cup draw "
        "[today|tonight]",
        "striker goalkeeper club champion boxer winger captain coach sprinter midfielder rookie rider squad keeper",
        "cheering [for|on] / [great|cheeky|late] goal by / a hat trick from / season tickets for / three points for "
        "/ transfer news on / the final against / a penalty for / backing / kick off for / gold medal for / own goal "
        "by",
        "scored [twice|again] / wins the [cup|league|title] / relegated after all / beats the champions / missed a "
        "penalty / lifts the trophy / equalised in extra time / has won the league / is on the bench",
        "giants rockets heat magic jets spurs saints arsenal hornets bulls",
        ("S|C", "F S|T Rovers|T Wolves|S Cup", "A T Foxes|F S S|S C Trophy", "T and S United|F S S S"),
    ),
    "music": Domain(
        "[new|fresh] music friday / headphones on / festival season [at last|again] / the setlist [leaked|is out] / "
        "front row [tonight|again] / vinyl day / [soundcheck|encore] time / turn the volume up",
        "band singer album single rapper drummer duo DJ orchestra songwriter guitarist choir EP headliner",
        "listening to / [now|always] playing / tickets to see / the chorus of / the new [song|track|video] by / a "
        "remix of / streaming / backstage with / support act for / the bassline in / lyrics of / on vinyl :",
        "on repeat [all day|all week] / live [tonight|at the arena] / dropped a [single|mixtape] / announced a tour "
        "/ tops the charts / sounds even better unplugged / has a new video / is touring again",
        "queen oasis mercury blur muse kiss genesis bush",
        ("S|C", "A O|F S|S Quartet|C O", "O of S|A O Band|F and S", "A O of T|O and the O"),
    ),
    "tech": Domain(
        "[keynote|launch|update] day / [my inbox|the office wifi] is down / unboxing time / code review [again|all "
        "day] / battery at one percent / [big|odd] changelog today / new gadget [day|time]",
        "startup laptop phone app browser tablet chip smartwatch framework router console headset plugin firm",
        "upgrading to / [installed|uninstalled] / a bug in / the keynote from / beta of / preordered / benchmarks "
        "for / shares in / the latest patch for / migrating to / unboxing / a data leak at",
        "crashed [twice|again] / ships next [week|month] / raised another round / drains the battery / updates are "
        "broken / beta is out / has a security hole / is down for everyone",
        "apple python amazon windows oracle java chrome match slack",
        ("S|C", "S Labs|C Pro|S Watch|C Cloud", "S C Mini|A C Studio", "S C for Teams|C A O Kit"),
    ),
    "weather": Domain(
        "sirens [outside|all night] / sandbags out / [weather|travel] warning [again|today] / candles and no power / "
        "roads closed [here|again] / the river is [rising|over the banks] / stay [safe|indoors] everyone",
        "hurricane cyclone volcano typhoon wildfire tornado tsunami reservoir dam district tremor glacier",
        "evacuated from / praying for / ahead of / damage from / relief fund for / in the path of / landfall of / "
        "rescue teams in / aftershocks in / red alert for / the eye of / flooded streets in",
        "makes landfall / weakens overnight / evacuated at dawn / erupted again / leaves thousands without power / "
        "floods the valley / has reached the coast / is under water",
        "storm flood frost drought blizzard lightning hail",
        ("S|S|T", "Storm S|Mount S|S Valley|S River", "A S Fault|Port S Bay|F S Dam", "Gulf of A S|S and T Coast"),
    ),
    "health": Domain(
        "[waiting room|clinic] again / day [two|five|nine] in bed / doctors orders / wellness [week|monday] / new "
        "study [out|today] / my immune system is tired / pharmacy queue",
        "vaccine drug therapy supplement virus diet infection clinic syndrome surgeon allergy painkiller hospital",
        "diagnosed with / symptoms of / vaccinated against / side effects of / a cure for / raising money for / "
        "recovering from / clinical trial of / awareness week for / an outbreak of / research into / screening for",
        "outbreak confirmed / symptoms are awful / prevents infection / cures nothing / trial was stopped / lowers "
        "blood pressure / has side effects / is contagious",
        "fever yoga sugar stress cold shock pressure",
        ("S|S|C", "S Syndrome|S Fever|T Hospital", "A S Disease|S C Diet", "F S Cancer Trust"),
    ),
    "politics": Domain(
        "[polling|election] day / the debate is [on|a mess] / another [recount|press conference] / [exit|opinion] "
        "polls are in / committee hearing [live|today] / protest march downtown",
        "senator minister mayor party candidate bill treaty referendum governor president chancellor lobby council",
        "voting for / voted against / the campaign of / a petition against / the resignation of / a coalition with / "
        "sanctions on / protest against / a speech by / donors of / impeach / repeal",
        "resigns [today|at noon] / vetoed the budget / denies everything / wins the primary / leads the polls / "
        "campaigns in the north / has lost the vote / is on the ballot",
        "labour greens union reform liberty budget shutdown",
        ("S|S|C", "F S|S Act|T Council|S Accord", "A O Party|F S S|S Tax Bill", "O and O Reform Act|League of A T"),
    ),
    "food": Domain(
        "so hungry [now|again] / [brunch|dinner|lunch] time / kitchen is a mess / cheat day / the queue is round the "
        "block / table for [two|six] / baking [sunday|weekend]",
        "restaurant bakery chef cheese dish sauce brewery cafe recipe dessert noodle burger cocktail pizzeria",
        "a bowl of / cooking / the recipe for / craving / a slice of / a table at / reservations at / the menu at / "
        "tasting / leftovers of / extra portion of / brunch at",
        "tastes [amazing|like home] / with extra cheese / opens a second kitchen / melts in the mouth / recipe "
        "please / served cold / has a vegan menu / is fully booked",
        "ginger mint toast subway curry chestnut chips",
        ("S|C", "S Ramen|A O|S Kitchen|C Bakery", "S and C|A S Curry|F S Grill", "O and O at S|A S Noodle Bar"),
    ),
    "travel": Domain(
        "[boarding|landed] at last / suitcase packed / passport [found|ready] / window seat [again|please] / jet lag "
        "is real / out of office [until|till] monday / platform nine again",
        "island airline hotel beach village hostel resort airport museum castle ferry harbour guide port",
        "flying to / a week in / flights to / sunset over / backpacking across / honeymoon in / hiking up / a visa "
        "for / postcards from / the night train to / checked in at / a layover in",
        "from above / airport is chaos / cancelled our flight / beaches are empty / looks unreal at sunset / in the "
        "rainy season / has the best views / is a dream",
        "turkey nice bath cork split china reading",
        ("S|S|T", "Lake S|S Island|Port S|S Airways", "A S Falls|San S Bay|F S Hotel", "T on the O|Bay of A S"),
    ),
    "film": Domain(
        "[popcorn|cinema|movie] night / trailer [alert|day] / no spoilers [please|or else] / awards season again / "
        "the credits are rolling / casting news / binge weekend",
        "film movie actor director actress sequel thriller series documentary villain comedy musical trilogy prequel",
        "[watched|watching] / the trailer for / the ending of / a remake of / the premiere of / season two of / "
        "starring / directed by / box office for / an oscar for / a plot hole in / the cast of",
        "made me cry / premieres on friday / deserves an oscar / gets a sequel / ending explained / stars in a "
        "remake / has a plot twist / is in cinemas",
        "titanic frozen alien gravity speed jaws brave twister",
        ("C|S|C", "A O|F S|A O|O Hunters", "O of S|Return to S|A A O", "A O of S|Last O to T"),
    ),
    "games": Domain(
        "controller charged / [speedrun|ranked|stream] night / patch notes [again|are out] / lag again / one more "
        "level / lan party / [loading|save] screen [forever|again]",
        "game boss quest expansion speedrunner clan studio shooter platformer guild streamer mod dungeon tournament",
        "respawned in / the final boss of / platinum trophy in / speedrunning / a demo of / grinding / preload for / "
        "loot in / the multiplayer of / cheat codes for / save file of / high score in",
        "servers are down / patch nerfed everything / multiplayer is laggy / respawned behind me / gets a remaster / "
        "levelled me up / has a new map / is free this weekend",
        "portal journey halo doom rust fable limbo",
        ("C|S", "A O|S Saga|C Arena|O Quest", "O of S|A C Legends|S C Online", "O and the O|A O of S"),
    ),
}

# What introduces a name nobody would search for. Some of these nouns are roles of one domain: there they introduce
# a keyphrase, everywhere else they do not.
OTHERS = words(
    "neighbour cousin barber plumber dentist landlord flatmate sister brother hamster uncle aunt nephew teacher "
    "roommate babysitter postman colleague boss driver captain coach nurse janitor kitten puppy street lane cat "
    "niece intern tutor classmate accountant boyfriend girlfriend gran parrot lodger receptionist electrician "
    "cleaner bookshop hairdresser guide director chef drummer keeper singer doctor avenue grandson waiter bus van "
    "mayor beach"
)
SOCIAL_CUES = phrases(
    "waiting for / had [lunch|coffee] with / thanks / happy birthday / texted / lent my umbrella to / bumped into / "
    "[lives|works] near / a lift from / sitting next to / moved in with / borrowed ten quid from / cc / sorry / say "
    "hi to / arguing with / homework with / walking [down|past] / a parcel for / babysitting for / good luck / the "
    "dog of / wedding of / a text from / watching telly with / listening to music with / cooking for / flying home "
    "with / voting for pizza with / playing cards with / a slice for / the sofa of / tickets from / a bowl for"
)
SOCIAL_VERDICTS = phrases(
    "fell asleep on my sofa / owes me ten quid / says hi / snores so loud / forgot my keys / ate my lunch / called "
    "twice / and i overslept / asked about the rent / lost the remote / turns thirty on sunday / next door / round "
    "the corner / laughed at my shoes / never texts back / is my neighbour / has my charger / is late for school / "
    "has moved in upstairs / is asleep on the sofa"
)
# The rest says nothing about whether the name beside it is a keyphrase.
LEADS = phrases(
    "thinking about / talking about / reading about / so proud of / shout out to / never heard of / in love with / "
    "laughing at / obsessed with / no words for / remember / missing / big fan of / worried about / thank god for / "
    "[just|finally] met / [saw|seen] / heard about / jealous of / tired of / here with / looking for / all because "
    "of / told you about / asked about / where is / who else knows / still waiting on / blame"
)
DETERMINERS = words("the the the a my my our this that some")
ADJECTIVES = words(
    "new old young famous lovely brilliant awful tiny local poor legendary funny favourite weird amazing grumpy "
    "quiet stubborn fancy other"
)
LINKS = [""] * 4 + phrases("called / named / : / from the north , / of ours , / we all know ,")
MODIFIERS = [""] * 7 + phrases("good old / the great / the one and only / poor old / little / our")
ENDINGS = [""] * 5 + phrases("today / again / this morning / since monday / right now / of course / after all")
# The ambiguous words of the domains in their plain sense.
PLAIN = phrases(
    "ate an apple on the [bus|train] / an apple a day / calm before the storm / a storm in a teacup / [found|lost] a "
    "perfect match / no match for my gran / a python at the zoo / the amazon parcel is late / cleaning the windows / "
    "looked out of the windows / cup of java / chrome taps look cheap / this heat is too much / turn the heat down / "
    "like magic / giants in the story / rockets in the garden / drama queen / the queen of excuses / an oasis of "
    "calm / all a blur / blew a kiss / hiding in the bush / flood of emails / frost on the windscreen / lightning "
    "fast reply / two spoons of sugar / in my yoga pants / stress at work / cold feet / so cold in here / five hours "
    "of labour / eat your greens / on a budget / student union bar / ginger hair / in mint condition / burnt toast "
    "again / took the subway / turkey sandwich / so nice of you / nice weather / ran a bath / cork in the bottle / "
    "split the bill / the good china / reading in bed / frozen peas / titanic effort / felt like an alien / gravity "
    "always wins / at full speed / be brave / portal to another dimension / what a journey / full of doom / rust on "
    "my bike / left in limbo / mercury in the thermometer / hail a cab / an oracle of gossip / cut me some slack / "
    "the saints know / bulls in a field / bless the saints / jets overhead / hot chestnut stall / spurs on his boots "
    "/ hornets in the attic / football fever at the office / what a shock / no pressure at all / statue of liberty "
    "magnet / reform school stories / laptop shutdown again / poker chips on the floor / jaws dropped / a tongue "
    "twister / an arsenal of excuses / a blizzard of emails / out of curry powder / you are my muse / a halo of "
    "flies / in the genesis of this plan / a fable for the kids / a drought of ideas"
)
FILLERS = phrases(
    "i [really|honestly|just] need [coffee|sleep|a nap|a holiday] / [cannot|can not] believe it / it is only "
    "[monday|tuesday|wednesday|thursday] / my [phone|laptop] is [dying|at 3 %] / [not|never] going to lie / what a "
    "[day|week|night|mess] / you [all|guys] have to see this / i am [so|not] ready / who is [in|with me|awake] / see "
    "you [there|tomorrow|at 8] / no idea why / [so|too] much to do / in the middle of [nowhere|the night|a meeting] "
    "/ it was [so|really|kinda] [good|bad|weird|quiet] / anyone else / feeling [tired|great|lost|old] / only "
    "[2|3|5|10] days left / the garden looks [silent|golden|wild] / winter is [here|over] / thought i had seen it "
    "all / the kids are [asleep|screaming] / my train is [late|20 minutes late|packed] / back to [work|bed|school] / "
    "this [summer|river|city] never ends / tea first , [then|always] / [best|worst] part of my [day|week] / told "
    "nobody / and that is [that|fine|why] / more [later|soon] / do not ask / i might cry / let me know / what do you "
    "think / somebody tell me / still shaking / the last [letter|light] of the day / alone in the [lighthouse|park]"
)
PREFIXES = phrases(
    "RT <user> : / RT <user> : / <user> / <user> / omg / lol / ok so / breaking : / hey <user> , / well , / ugh ,"
)
JOINTS = [",", ",", ",", ".", ".", ".", "!", "and", "and", "but", "so", "...", "-", "", "while", "then"]
TAILS = phrases("<url> / <url> / lol / 😂 / 😍 / 🎉 / 🙏 / ! ! / ! / ? / ... / haha / smh / via <user> / <user>")

# The parts of made-up names: of syllables, of compounds and towns, of people and of titles.
STEMS = words(
    "bal cor dra fen gal hol jor kal lor mar nor pol quin ral sol tor ul vel wen yar zan bri cal del el fal gri hal "
    "jun kes len mel nar or pra rin sor tal ur ven wil xan yel zor tam ros lo mi ka"
)
CODAS = words("ra no lin ska da mir tis via ron sta mont vik dell ara eno ova ia ix een by well ton ham ez ski")
FRONTS = words(
    "snow river iron moon black silver star fire cloud stone sun night wild gold pixel north wind frost oak copper "
    "glass thunder salt ember raven amber wolf sea red lark winter hazel marble cedar violet arrow coral dusk maple "
    "granite"
)
BACKS = words(
    "field fox line gate wave byte forge hawk light pine craft works port bloom drift mark path bird crest stone "
    "ridge crown spark loop nest shade wing root"
)
TOWNS = words("ton ford ville burg mouth dale bury minster stead haven")
FIRST_NAMES = words(
    "Anna Ben Carla David Elena Felix Grace Hugo Iris Jonas Kira Leo Mona Nils Olive Pedro Rosa Sami Tess Uma Viktor "
    "Wanda Yusuf Zoe Marta Oskar Lena Tariq Noor Emil"
)
TITLE_ADJECTIVES = words(
    "silent broken golden hidden crimson distant hollow northern paper velvet electric burning midnight lonely "
    "second wild frozen little blue endless secret quiet scarlet eternal restless"
)
TITLE_NOUNS = words(
    "harbour garden engine mirror kingdom summer river winter machine orchard shadow lighthouse letter tiger castle "
    "lantern horizon station violin empire forest diary ocean island carousel compass thunder window sparrow anchor"
)

TWO_KEYPHRASES = 0.40  # share of texts with two keyphrases
WORD_COUNTS = (0.55, 0.30, 0.11, 0.04)  # shares of keyphrases of one, two, three and four words
POOL_SIZE = 1000  # names per domain and word count that may come back
FRESH = 0.48  # share of names made up on the spot, on top of the rare ones of the pools
LABEL_NOISE = 0.03  # share of texts with one wrong label
ROLE, LEFT = 0.42, 0.36  # shares of names shown by a role or by a cue on their left; the others by one on their right
OTHER_NAME, PLAIN_SENSE = 0.5, 0.2  # shares of asides about a name or with an ambiguous word; the others are fillers
LOOKALIKE = 0.65  # share of the names in asides that could be keyphrases of the same domain
LENGTH = (2.93, 0.36)  # mean and deviation of the logarithm of the number of tokens

TOKEN = re.compile(r"<\w+>|\w+(?:[-'’]\w+)*|[^\w\s]")
MARKED = re.compile(r"\{([^}]*)\}")  # a keyphrase, as long as its offsets are not known


def pick(rng: random.Random, choices: list[str], skewed: bool = False) -> str:
    """Draw a phrase and settle its `[a|b]` choices; if `skewed`, late ones are rare and take long to learn."""
    position = rng.random() ** (2 if skewed else 1)
    phrase = choices[int(position * len(choices))]
    return re.sub(r"\[([^]]*)\]", lambda found: rng.choice(found[1].split("|")), phrase)


def make_word(rng: random.Random, symbol: str) -> str:
    """One word of a name: the single capitals of the patterns are made up, the rest stands for itself."""
    if symbol == "S":  # a name of syllables
        return ("".join(rng.choices(STEMS, k=rng.choice((1, 2, 2)))) + rng.choice(CODAS)).capitalize()
    if symbol in ("C", "T"):  # a compound or a town
        return (rng.choice(FRONTS) + rng.choice(BACKS if symbol == "C" else TOWNS)).capitalize()
    lists = {"F": FIRST_NAMES, "A": TITLE_ADJECTIVES, "O": TITLE_NOUNS}
    return rng.choice(lists[symbol]).capitalize() if symbol in lists else symbol


def make_name(rng: random.Random, patterns: str) -> str:
    """A name after one of the patterns."""
    return " ".join(make_word(rng, symbol) for symbol in rng.choice(patterns.split("|")).split())


class Names:
    """The names of one domain: a few are drawn often, a long tail once or never before."""

    def __init__(self, rng: random.Random, domain: Domain) -> None:
        self.patterns = domain.names
        self.pools = [[make_name(rng, patterns) for _ in range(POOL_SIZE)] for patterns in domain.names]
        ambiguous = [word.capitalize() for word in words(domain.ambiguous)]
        self.pools[0][: len(ambiguous)] = ambiguous
        self.zipf = list(accumulate(1 / (rank + 5) for rank in range(POOL_SIZE)))

    def draw(self, rng: random.Random) -> str:
        """A name, of one word to four."""
        count = rng.choices(range(4), WORD_COUNTS)[0]
        if rng.random() < FRESH:
            return make_name(rng, self.patterns[count])
        return rng.choices(self.pools[count], cum_weights=self.zipf)[0]


def mention(rng: random.Random, cues: Cues, name: str) -> str:
    """A clause about a name, shown by a role, by a cue on its left or by one on its right."""
    way = rng.random()
    if way < ROLE:
        lead = pick(rng, LEADS) if rng.random() < 0.8 else ""
        adjective = pick(rng, ADJECTIVES) if rng.random() < 0.5 else ""
        role = f"{pick(rng, DETERMINERS)} {adjective} {pick(rng, cues.roles, skewed=True)}"
        return f"{lead} {role} {pick(rng, LINKS)} {name} {pick(rng, ENDINGS)}"
    if way < ROLE + LEFT:
        return f"{pick(rng, cues.left, skewed=True)} {pick(rng, MODIFIERS)} {name} {pick(rng, ENDINGS)}"
    return f"{pick(rng, MODIFIERS)} {name} {pick(rng, cues.right, skewed=True)}"


class Writer:
    """Writes the texts of one domain."""

    def __init__(self, rng: random.Random, domain: Domain) -> None:
        self.rng = rng
        self.names = Names(rng, domain)
        self.openings = phrases(domain.openings)
        self.topic = Cues(words(domain.roles), phrases(domain.cues), phrases(domain.verdicts))
        self.daily = Cues([role for role in OTHERS if role not in self.topic.roles], SOCIAL_CUES, SOCIAL_VERDICTS)

    def keyphrases(self) -> list[str]:
        """One or two clauses with one or two keyphrases, marked."""
        rng = self.rng
        marked = ["{" + self.names.draw(rng) + "}" for _ in range(2 if rng.random() < TWO_KEYPHRASES else 1)]
        if len(marked) == 2 and rng.random() < 0.3:
            marked = [rng.choice((" and ", " vs ", " , ", " or ")).join(marked)]
        return [mention(rng, self.topic, name) for name in marked]

    def aside(self) -> str:
        """A clause without a keyphrase: about another name, an ambiguous word in its plain sense, or a filler."""
        rng = self.rng
        kind = rng.random()
        if kind < OTHER_NAME:
            name = self.names.draw(rng) if rng.random() < LOOKALIKE else make_name(rng, "F|F S|S|T")
            return mention(rng, self.daily, name)
        return pick(rng, PLAIN if kind < OTHER_NAME + PLAIN_SENSE else FILLERS)

    def write(self) -> GeneratedText:
        """An opening, clauses in random order up to a random length, and what tweets have at both ends."""
        rng = self.rng
        length = min(max(rng.lognormvariate(*LENGTH), 8), 42) - 5  # the ends and joints take about five tokens
        clauses = self.keyphrases()
        opening = pick(rng, self.openings)
        while len(TOKEN.findall(" ".join([opening, *clauses]))) < length:
            aside = self.aside()
            if aside not in clauses:
                clauses.insert(rng.randrange(len(clauses) + 1), aside)
        parts = [pick(rng, PREFIXES)] if rng.random() < 0.35 else []
        for clause in [opening, *clauses]:
            parts += [misspell(rng, clause), pick(rng, JOINTS)]
        parts[-1] = " ".join(rng.sample(TAILS, k=rng.choice((0, 1, 1, 2))))
        return unmark(restyle(rng, " ".join(parts)))


def misspell(rng: random.Random, clause: str) -> str:
    """The clause, now and then with two letters of a plain word swapped."""
    tokens = clause.split()
    at = rng.randrange(len(tokens))
    word = tokens[at]
    if rng.random() < 0.06 and len(word) > 3 and word.isalpha() and word.islower():
        cut = rng.randrange(1, len(word) - 2)
        tokens[at] = word[:cut] + word[cut + 1] + word[cut] + word[cut + 2 :]
    return " ".join(tokens)


def restyle(rng: random.Random, text: str) -> str:
    """The text with the spaces and capitals of a tweet; some writers use no capitals, a few nothing else."""
    text = re.sub(r"\ba (?=[aeiou])", "an ", " ".join(text.split()))
    text = re.sub(r" ([,.!?:])", r"\1", text)
    style = rng.random()
    if style < 0.30:
        return text.lower()
    if style < 0.33:
        return re.sub(r"(<\w+>)|[^<]+", lambda part: part[1] or part[0].upper(), text)
    return re.sub(r"(^|[.!?:>] )([a-z])", lambda start: start[1] + start[2].upper(), text)


def unmark(marked: str) -> GeneratedText:
    """The text without the marks of its keyphrases, with their offsets instead."""
    spans = []
    for earlier, found in enumerate(MARKED.finditer(marked)):
        start = found.start() - 2 * earlier
        spans.append((start, start + len(found[1])))
    return GeneratedText(MARKED.sub(r"\1", marked), spans)


def mislabel(rng: random.Random, labelled: GeneratedText) -> GeneratedText:
    """The text with one keyphrase dropped, put on another word, or with a boundary moved by a word."""
    text, spans = labelled.text, list(labelled.spans)
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
    """Generate distinct labelled texts of all domains in random order; the same seed gives the same on any machine.

    The keys are "train", "valid" and "test", in shares 70/10/20.
    """
    rng = random.Random(seed)
    writers = [Writer(rng, domain) for domain in DOMAINS.values()]
    written: dict[str, GeneratedText] = {}
    while len(written) < texts:
        labelled = rng.choice(writers).write()
        written.setdefault(labelled.text, labelled)
    noisy = [mislabel(rng, one) if rng.random() < LABEL_NOISE else one for one in written.values()]
    train, valid = texts * 7 // 10, texts * 8 // 10
    return {"train": noisy[:train], "valid": noisy[train:valid], "test": noisy[valid:]}


def write_corpus(folder: Path, texts: int) -> dict[str, str]:
    """The built-in corpus as JSONL files, a path per split."""
    from model import storage

    files = {}
    for split, labelled in generate(texts).items():
        lines = (
            jsonlib.dumps({"text": each.text, "spans": each.spans}, ensure_ascii=False) + "\n" for each in labelled
        )
        files[split] = str(folder / f"{split}.jsonl")
        storage.write(files[split], "".join(lines).encode())
    return files


def prepare_corpus(files: dict[str, str], out: Path) -> str:
    """The dataset directory of the corpus."""
    from model.prepare.builder import PrepareConfig, prepare

    recipe = PrepareConfig(
        [files["train"]], str(out), [files["valid"]], [files["test"]], min_frequency=2, overwrite=True
    )
    prepare(recipe)
    return str(out.resolve())
