"""The words and phrases that the demo corpus is generated from."""

from typing import NamedTuple


class Domain(NamedTuple):
    """The material for texts of one topic; phrases are separated by " / ", and `[a|b]` is a choice."""

    openings: str
    roles: str  # nouns that introduce a keyphrase
    left_cues: str  # mark a keyphrase directly to their right
    right_cues: str  # mark a keyphrase directly to their left
    ambiguous: str  # keyphrases here, plain words elsewhere
    names: tuple[str, str, str, str]  # patterns of made-up names of one, two, three and four words


def words(text: str) -> list[str]:
    """Return the words of a string."""
    return text.split()


def phrases(text: str) -> list[str]:
    """Return the phrases of a string, separated by " / "."""
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
SOCIAL_LEFT_CUES = phrases(
    "waiting for / had [lunch|coffee] with / thanks / happy birthday / texted / lent my umbrella to / bumped into / "
    "[lives|works] near / a lift from / sitting next to / moved in with / borrowed ten quid from / cc / sorry / say "
    "hi to / arguing with / homework with / walking [down|past] / a parcel for / babysitting for / good luck / the "
    "dog of / wedding of / a text from / watching telly with / listening to music with / cooking for / flying home "
    "with / voting for pizza with / playing cards with / a slice for / the sofa of / tickets from / a bowl for"
)
SOCIAL_RIGHT_CUES = phrases(
    "fell asleep on my sofa / owes me ten quid / says hi / snores so loud / forgot my keys / ate my lunch / called "
    "twice / and i overslept / asked about the rent / lost the remote / turns thirty on sunday / next door / round "
    "the corner / laughed at my shoes / never texts back / is my neighbour / has my charger / is late for school / "
    "has moved in upstairs / is asleep on the sofa"
)
# The other lists do not depend on whether the name beside them is a keyphrase.
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

# The parts of generated names: syllables, compounds and towns, first names, titles.
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
