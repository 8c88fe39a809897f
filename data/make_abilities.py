"""Writes data/abilities/: questions of general ability, each with its choices.

    PYTHONPATH=.venv/extras/evaluate python data/make_abilities.py

Three tasks: capitals (from the package countryinfo), everyday (written by hand, below) and grammar
(from the templates below). None has to do with what the adapters of the labs were trained on.
The same script and package always write the same file: it draws with a fixed seed.
"""

import json
import random
from importlib.resources import files
from pathlib import Path

OUT = Path(__file__).with_name("abilities")
SEED = 7
CAPITALS = 100  # of the countries with the most people
WRONG = 3  # choices beside the right one
NOT_ASKED = {
    # more than one answer, or none that is agreed on
    "Bolivia",
    "Israel",
    "Ivory Coast",
    "Palestine",
    "South Africa",
    "Sri Lanka",
    "Taiwan",
    # gone, or not a country, or renamed since the data was made
    "Burundi",
    "Hong Kong",
    "Kazakhstan",
    "Puerto Rico",
    "Serbia and Montenegro",
}

WITH_ARTICLE = {
    "Central African Republic",
    "Czech Republic",
    "Democratic Republic of the Congo",
    "Dominican Republic",
    "Netherlands",
    "Philippines",
    "Republic of the Congo",
    "United Arab Emirates",
    "United Kingdom",
    "United States",
}

# each group: how a sentence begins, then the rest of it and its last word
EVERYDAY = {
    "You": """
        cut bread with a | knife
        open a locked door with a | key
        eat soup with a | spoon
        sweep the floor with a | broom
        drive a nail into wood with a | hammer
        write on paper with a | pen
        dry yourself after a bath with a | towel
        light a candle with a | match
        take a photograph with a | camera
        dig a hole in the garden with a | shovel
        measure how long a table is with a | ruler
        carry your shopping home in a | bag
        sleep outdoors in a | tent
        tell the time with a | watch
        look at the stars through a | telescope
        sew on a button with a | needle
        find north with a | compass
        boil water in a | kettle
        turn a screw with a | screwdriver
        drink your coffee from a | cup
        put flowers on the table in a | vase
        reach a high roof with a | ladder
        cover yourself in bed with a | blanket
        pull dinner out of the river with a | net
        keep warm around your neck with a | scarf""",
    "Somebody who": """
        teaches children at school is a | teacher
        makes bread every morning is a | baker
        flies an aeroplane is a | pilot
        runs into burning houses to save people is a | firefighter
        looks after your teeth is a | dentist
        shaves men and cuts their hair is a | barber
        sells meat is a | butcher
        grows wheat and keeps cows is a | farmer
        treats sick animals is a | vet
        mends leaking pipes is a | plumber
        takes orders at the tables is a | waiter
        writes novels is a | novelist
        drives passengers around town is a | chauffeur
        looks after patients in a hospital is a | nurse
        speaks for you in court is a | lawyer
        repairs broken cars is a | mechanic
        plays the piano on a stage is a | pianist
        stands in front of an orchestra is a | conductor
        sews suits for other people is a | tailor
        digs for coal under the ground is a | miner
        helps you find books to borrow is a | librarian
        builds tables from wood is a | carpenter
        goes to sea on a ship is a | sailor
        decides in court who is guilty is a | judge
        cooks in a restaurant is a | chef""",
    "The animal that": """
        barks at strangers is the | dog
        gives us milk is the | cow
        has a long trunk is the | elephant
        has the longest neck is the | giraffe
        carries its young in a pouch is the | kangaroo
        catches flies in its web is the | spider
        makes honey is the | bee
        has black and white stripes is the | zebra
        builds dams in rivers is the | beaver
        crows at dawn is the | rooster
        purrs on your lap is the | cat
        carries its house on its back is the | snail
        howls at the moon is the | wolf
        hunts at night and hoots is the | owl
        gives us wool is the | sheep
        hides nuts in the park is the | squirrel
        carries people through the desert is the | camel
        eats bamboo in China is the | panda
        quacks on the pond is the | duck
        roars and has a mane is the | lion
        pulls carts and is ridden in races is the | horse
        grunts and loves mud is the | pig
        croaks in the pond is the | frog
        swims in the Antarctic and cannot fly is the | penguin
        hangs upside down in caves is the | bat""",
    "The opposite of": """
        hot is | cold
        tall is | short
        old is | young
        full is | empty
        wet is | dry
        hard is | soft
        light is | dark
        loud is | quiet
        fast is | slow
        rich is | poor
        early is | late
        open is | closed
        near is | far
        strong is | weak
        cheap is | expensive
        clean is | dirty
        first is | last
        happy is | sad
        left is | right
        high is | low
        thick is | thin
        wide is | narrow
        sweet is | sour
        asleep is | awake
        safe is | dangerous""",
}

# each rule: sentences that are right with the first of two words, and wrong with the second
GRAMMAR = {
    "the verb goes with its noun": """
        The keys to the cabinet | are/is | on the table.
        The label on the bottles | has/have | come off.
        The children of the baker | were/was | late for school.
        The road through the hills | was/were | closed in winter.
        The pictures in the hall | show/shows | her family.
        The manager of the shops | lives/live | near the station.
        The flowers beside the door | need/needs | more water.
        The teacher of the girls | knows/know | every name.
        The windows of the old house | let/lets | the wind in.
        The box with the letters | belongs/belong | to my aunt.
        The boats in the harbour | belong/belongs | to two brothers.
        The dog behind the fences | barks/bark | at everybody.
        The letters from my uncle | arrive/arrives | on Mondays.
        The colour of the curtains | does/do | not please me.
        The players of the team | do/does | not train today.
        The price of the tickets | has/have | gone up again.
        The songs on this record | have/has | no words.
        The farmer with the horses | sells/sell | hay.
        The shelves behind the counter | hold/holds | old books.
        The captain of the ships | speaks/speak | three languages.""",
    "the noun goes with its article": """
        She bought these | shoes/shoe | in a small shop.
        He has lost that | ticket/tickets | again.
        We looked at those | mountains/mountain | for an hour.
        They painted this | room/rooms | last summer.
        I have read these | letters/letter | twice.
        Nobody sat on that | chair/chairs | all evening.
        Who has left those | bags/bag | in the hall?
        You can keep this | book/books | if you like.
        The boy carried these | boxes/box | upstairs.
        My sister made that | cake/cakes | for you.
        Please wash those | cups/cup | before lunch.
        The doctor asked this | question/questions | first.
        She is afraid of these | dogs/dog | next door.
        He repaired that | engine/engines | by himself.
        Every | child/children | got an apple.
        Several | guests/guest | came too late.
        Each | house/houses | has its own well.
        Many | birds/bird | fly south in autumn.
        He ate another | sandwich/sandwiches | on the train.
        There are few | trees/tree | on the island.""",
    "the pronoun goes back to its noun": """
        The boys have hurt | themselves/himself | on the wall.
        My mother taught | herself/themselves | to swim.
        The singer saw | himself/ourselves | in the mirror.
        We blamed | ourselves/herself | for the delay.
        The women bought | themselves/herself | new coats.
        I cut | myself/themselves | with the knife.
        The girl introduced | herself/ourselves | to the class.
        The tourists found | themselves/myself | in a dark street.
        You should ask | yourself/himself | that question.
        The king called | himself/themselves | the father of his people.
        The cats wash | themselves/itself | after lunch.
        The door closed by | itself/themselves | in the night.
        Anna told | herself/ourselves | to be patient.
        The workers protect | themselves/himself | with helmets.
        My uncle burned | himself/herself | on the stove.
        The computer switches | itself/themselves | off.
        The actors prepared | themselves/itself | for the play.
        I promised | myself/yourself | to read more.
        The queen dressed | herself/themselves | without help.
        We enjoyed | ourselves/themselves | at the party.""",
    "the form goes with its helper": """
        She has | eaten/ate | all the bread.
        He had | gone/went | home before midnight.
        They have | written/wrote | to the mayor.
        I have never | seen/saw | so much snow.
        The thief has | stolen/stole | two bicycles.
        We have | drunk/drank | the last bottle.
        The glass was | broken/broke | by the wind.
        You have | forgotten/forgot | your umbrella.
        She did not | know/knew | the answer.
        He can | swim/swims | across the lake.
        They must | leave/left | before the rain.
        Did you | hear/heard | the bell?
        The birds have | flown/flew | away.
        The letter was | hidden/hid | under the carpet.
        He has | driven/drove | all night.
        I should have | taken/took | the bus.
        She will | bring/brings | the children.
        The song was | sung/sang | by a boy.
        They are | waiting/wait | at the gate.
        He wants to | become/became | a doctor.""",
    "the word needs another one in the sentence": """
        Nobody has | ever/never | seen that film.
        He has | no/any | money left.
        She is taller | than/as | her brother.
        He is as old | as/than | my father.
        They have lived here | since/for | 1990.
        We waited | for/since | two hours.
        There is too | much/many | noise in here.
        How | many/much | apples did you buy?
        This is the | best/better | soup of all.
        Your car is | faster/fastest | than mine.
        Neither the cook | nor/or | the waiter was there.
        Both the bread | and/or | the cheese were old.
        She speaks | better/best | French than you.
        If I were you, I | would/will | wait.
        He is interested | in/at | old maps.
        She is good | at/on | chess.
        I look forward | to/on | your visit.
        It depends | on/from | the weather.
        The man | who/which | called you is here.
        The house | which/who | they bought is old.""",
}


def lines(text: str) -> list[list[str]]:
    return [[part.strip() for part in line.split("|")] for line in text.strip().splitlines()]


def mixed(question: str, right: str, wrong: list[str], rng) -> dict:
    choices = [right, *wrong]
    rng.shuffle(choices)
    return {"question": question, "choices": choices, "answer": choices.index(right)}


def capitals(rng) -> list[dict]:
    folder = files("countryinfo") / "data"
    notes = [file for file in folder.iterdir() if file.name.endswith(".json")]
    countries = [json.loads(file.read_text(encoding="utf-8")) for file in notes]
    countries.sort(key=lambda one: (-one.get("population", 0), one.get("name", "")))
    asked = [one for one in countries if may_be_asked(one)][:CAPITALS]
    found = []
    for one in asked:
        same = [it["capital"] for it in asked if it["region"] == one["region"] and it is not one]
        if len(same) < WRONG:  # Oceania
            same = [it["capital"] for it in asked if it is not one]
        name = f"the {one['name']}" if one["name"] in WITH_ARTICLE else one["name"]
        question = f"The capital of {name} is"
        found.append(mixed(question, one["capital"], rng.sample(same, WRONG), rng))
    return found


def may_be_asked(country: dict) -> bool:
    """Whether it has one capital, whose name does not give the answer away."""
    name, capital = country["name"], country.get("capital")
    if name in NOT_ASKED or not isinstance(capital, str):
        return False
    return not any(word[:3] in capital for word in name.split() if len(word) > 3)


def everyday(rng) -> list[dict]:
    found = []
    for begin, text in EVERYDAY.items():
        group = lines(text)
        for rest, right in group:
            others = [other for _, other in group if other != right]
            found.append(mixed(f"{begin} {rest}", right, rng.sample(others, WRONG), rng))
    return found


def grammar(rng) -> list[dict]:
    found = []
    for text in GRAMMAR.values():
        for parts in lines(text):
            before, words, after = parts if len(parts) == 3 else ("", *parts)
            right, wrong = (f"{before} {word} {after}".strip() for word in words.split("/"))
            found.append(mixed("", right, [wrong], rng))
    return found


TASKS = {"capitals": capitals, "everyday": everyday, "grammar": grammar}


def text(task: str) -> str:
    """The file of *task*, whose draws depend on no other task."""
    questions = TASKS[task](random.Random(SEED))
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in questions)


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    for task in TASKS:
        (OUT / f"{task}.jsonl").write_text(text(task), encoding="utf-8")
        print(f"{len(text(task).splitlines())} questions in abilities/{task}.jsonl")
