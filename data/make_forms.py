"""Writes data/forms.jsonl: travellers' sentences, and the form that each of them fills.

    python data/make_forms.py

600 sentences come from the templates and word lists below, 100 were written by hand. The same
script always writes the same file: it draws with a fixed seed. What is held out (templates,
cities, numbers) has names of its own here, and never meets the training side. The rules by which
a form is filled stand in data/README.md.
"""

import json
import random
import re
from pathlib import Path

OUT = Path(__file__).with_name("forms.jsonl")
SEED = 7
EACH = {"train": 6, "heldout": 8}  # records of one template
FIELDS = ("city", "days", "month", "people", "wants")

NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
).split()
FEW = 5  # people; more are counted, and not told as "me and four friends"
HELD_OUT_NUMBERS = (6, 9, 11)  # neither as digits nor as words in a training sentence
DAYS = (1, 2, 2, 3, 3, 4, 5, 7, 7, 8, 10, 12, 13, 14, 15, 18, 20, 21)
PEOPLE = (1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 7, 8, 10, 12, 14, 15, 20)
MONTHS = (
    "January February March April May June July August September October November December"
).split()
SHORT_MONTHS = {"January": "Jan", "February": "Feb", "August": "Aug", "September": "Sept"}
SHORT_MONTHS |= {"October": "Oct", "November": "Nov", "December": "Dec"}

CITIES = {
    "train": (
        "Amsterdam Aarhus Aberdeen Accra Adelaide Agadir Alicante Almaty Amman Ankara Annecy "
        "Arles Asheville Aspen Athens Atlanta Auckland Austin Avignon Bali Baltimore Barcelona "
        "Bari Basel Beijing Beirut Bergamo Bergen Biarritz Bilbao Birmingham Bologna Bonn "
        "Bordeaux Boston Brasov Bratislava Bremen Brighton Brisbane Bristol Bruges Brussels "
        "Bucharest Budapest Burgos Cadiz Cagliari Cairo Calgary Cambridge Cannes Cardiff "
        "Cartagena Casablanca Catania Charleston Chester Chicago Chennai Coimbra Colmar Cologne "
        "Colombo Copenhagen Cordoba Cusco Dakar Dallas Darwin Delft Detroit Dijon Doha Dresden "
        "Dubai Dublin Dubrovnik Durban Durham Edinburgh Essaouira Evora Exeter Faro Fes "
        "Florence Frankfurt Freiburg Fukuoka Funchal Geneva Ghent Gibraltar Girona Glasgow "
        "Gothenburg Granada Graz Grenoble Guadalajara Haarlem Haifa Halifax Hamburg Hanoi "
        "Hanover Heidelberg Hiroshima Hobart Honolulu Houston Innsbruck Inverness Istanbul "
        "Izmir Jaipur Jakarta Jerusalem Johannesburg Kampala Kathmandu Kobe Kotor Kyoto Lagos "
        "Lahore Lausanne Leeds Leuven Lille Lima Linz Lisbon Liverpool London Lucca Lucerne "
        "Lugano Lyon Maastricht Madrid Malaga Malmo Mantua Marrakech Matera Melbourne Memphis "
        "Menton Miami Milan Mombasa Montevideo Montreal Montpellier Mumbai Munich Muscat Nagoya "
        "Nairobi Nantes Naples Nara Nashville Newcastle Nice Nicosia Nuremberg Oaxaca Odense "
        "Orlando Osaka Ottawa Oxford Padua Palermo Palma Panama Paphos Paris Parma Pisa "
        "Portland Potsdam Prague Pretoria Pula Quebec Quito Ravenna Regensburg Rennes Reykjavik "
        "Rhodes Rome Rouen Salvador Salzburg Sarajevo Savannah Seville Shanghai Sheffield Siena "
        "Sintra Singapore Sorrento Stavanger Stockholm Strasbourg Stuttgart Sucre Sydney "
        "Syracuse Taipei Tallinn Tampere Tarragona Tartu Tirana Tokyo Toledo Toronto Toulouse "
        "Trento Tromso Trondheim Tucson Turku Uppsala Utrecht Vancouver Venice Vienna Vigo "
        "Wellington Winchester Windhoek Wroclaw Yerevan Zadar Zagreb Zanzibar Zaragoza"
    ).split()
    + ["New York", "Hong Kong", "Cape Town", "San Francisco", "Mexico City", "Buenos Aires"]
    + [
        "Las Vegas",
        "Addis Ababa",
        "St Andrews",
        "La Paz",
        "Palm Springs",
        "Santa Fe",
        "Ho Chi Minh City",
    ],
    "heldout": (
        "Antwerp Bangkok Berlin Bogota Cork Delhi Genoa Havana Helsinki Krakow Leipzig Manila "
        "Marseille Oslo Porto Riga Seattle Split Turin Valencia Vilnius Warsaw Zurich"
    ).split()
    + ["New Orleans", "Tel Aviv", "San Diego", "Rio de Janeiro", "Kuala Lumpur"],
}

WANTS = {
    "food": [
        "good food",
        "street food",
        "local restaurants",
        "trying local dishes",
        "eating well",
    ],
    "museums": ["museums", "art galleries", "modern art", "museum visits", "exhibitions"],
    "beach": ["the beach", "swimming", "beaches", "lying on the sand", "sea and sun"],
    "hiking": ["hiking", "mountain trails", "long hikes", "trekking", "walks in the hills"],
    "nightlife": [
        "nightlife",
        "clubs",
        "cocktail bars",
        "dancing till late",
        "going out at night",
    ],
    "shopping": ["shopping", "vintage shops", "boutiques", "buying clothes", "department stores"],
    "history": ["history", "castles", "ancient ruins", "old churches", "historic buildings"],
    "music": ["live music", "concerts", "jazz", "opera", "music festivals"],
}

# a template names the fields that its sentence tells; the others stay null, or an empty list
TEMPLATES = {
    "train": """
Two questions about {city}: is {month} too hot, and where do we find {wants}?
Booking request. Destination {city}, duration {days}, party: {who}.
My boss gave me {days} off, so {city} it is. {wants}, here I come.
Could we manage {city} in {days} {for_who}?
Off to {city}, {month}. {wants} and nothing else!
I hear {city} is lovely in {month}. {who}.
Do you have an offer {for_who} in {city} over {days} in {month}?
{wants} {for_who}, anywhere in {month}.
The kids voted: {city}! {days} in {month}, {who}.
Quick one: {city}, {wants}, {for_who}.
It's {city} or nothing. {month}, {days}.
We fancy {wants} this {month}. Where should we go?
After {other} we move on to {city} and stay there {days}.
Not {other}, please, but {city}, {for_who}, {month}.
For my birthday in {month} I wish for {days} in {city} with {wants}.
I'd rather have {wants} than anything else. {city}, {days}.
Where do people find {wants} in {city}? {who}.
{who}. Give us {wants} and we're happy. {city} in {month}.
Let's do {city}. {nday} stay, {month}, {wants}.
My company sends me to {city} in {month}. Any {wants} around?
{days} away from everything {for_who}. Suggestions?
We are dreaming of {wants} under the sun. {days}, {month}, {for_who}.
Is it silly to visit {city} for {wants} alone?
A {nday} tour of {city}? {who}.
So, {month}. {city}. {for_who}. What does it cost?
Between jobs, so I have {days}. {city} calls, {wants} too.
Someone told me to see {city} in {month}. True?
Been to {other} twice. Now {city}: {days}, {wants}.
Looking to rent a flat in {city} for {days} from the start of {month}, {who}.
{who}, no plans yet. {wants} would be perfect.
First time in {city}! {wants}?
I promised my family {wants}: {city} in {month}, {for_who}.
Is there a train from {other} to {city}? {who} and we have {days}.
One ticket to {city} please, I mean to stay {days}.
Autumn in {city} {for_who}? We like {wants}.
In {month} we'd go anywhere for {wants}. {days}, {for_who}.
Any advice on {city}?
To celebrate we're going to {city}: {wants}, {days}.
We need sleep, quiet and {city}. {days}. {month}.
Dates: {month}. Place: {city}. Travellers: {for_who}. Interests: {wants}.
Planning {days} in {city} in {month} {for_who}. Mostly {wants}.
I want to go to {city} for {days}. I like {wants}.
Can you plan a trip to {city} in {month}? {who} and we love {wants}.
{city}, {days}, {month}, {for_who}
Hi! {who}. We'd like to see {city} in {month}, maybe {days}.
Looking for ideas for {city}: {wants}.
What is there to do in {city} in {month}?
We have {days} in {month} and no idea where to go. {wants}, please.
A {nday} trip to {city} {for_who}, with {wants}.
Need a hotel in {city} {for_who} in {month}.
{who}. {days} in {city}, we're into {wants}.
Flying from {other} to {city} in {month} for {days}.
We live in {other} and want to visit {city} {for_who}, {days} if possible.
I've seen {other} already, so this time it's {city}. {wants} would be great.
Is {days} enough for {city}?
Thinking about {city} next {month}, {who}.
My dream is {city} with lots of {wants}.
Please book {city} for {days}, {month}, {who}.
Somewhere warm in {month} {for_who}, we like {wants}.
{wants} in {city} for {days}?
Trip {for_who} to {city}. When to go: {month}. How long: {days}.
Going to {city} at the end of {month}, any tips for {wants}?
{month} in {city} {for_who}. We care about {wants}.
Could you suggest a plan for {days} in {city}? {who}.
Hello, I'd love to spend {days} of {month} in {city}.
It has to be {city}! {days}, {for_who}, {wants}.
Not sure where yet, but {days} in {month} {for_who}.
Early {month}, {city}. {who}. Interested in {wants} and not much else.
We're off to {city} for {days} in the spring. {wants}!
A holiday in {city} {for_who}, please, {days} in {month}.
How about {city} for {wants}? {who}.
I have {days} off in {month}. Thinking of {city}.
Work takes me to {city} for {days}. In the evenings I want {wants}.
Surprise me: {days}, {for_who}, {wants}.
Tickets to {city} {for_who} in {month}, please.
We're torn between staying home in {other} and a trip to {city} in {month} for {wants}.
{who} and looking at {city} this summer for {days}.
Just {city}, just {wants}, {month}.
Any good {wants} near {city}? We stay for {days}.
{for_who}: {city}, {month}, {wants}. Thanks!
""",
    "heldout": """
We'd like {days} in {city} this {month}, {who}. Top of the list: {wants}.
Help me organise {city} in {month} {for_who}.
Our plan is {city} for {days}, with time for {wants}.
Leaving {other} in {month}, heading to {city}, staying {days}.
{who}, and we want to explore {city}. {wants} is what we enjoy.
Got {days} free in {month}. {city} {for_who}?
What would you do in {city} with {days} and a love of {wants}?
Dear team, we wish to travel to {city} in {month}. {who}. Yours, Alex
Weather in {city} in {month}? I'm coming for {wants}.
Any place is fine {for_who}, {days} in {month}, as long as there's {wants}.
Last year it was {other}, now we'd rather see {city} {for_who}.
{month} trip idea: {city}, {days}, {wants}, {for_who}.
Tell me whether {city} is any good for {days} {for_who} in winter.
I can't wait for {city}! It's {days} in {month}, {who}.
{wants}: that's why we picked {city} for our {nday} break in {month}.
""",
}

# sentence | city | days | month | people | wants
BY_HAND = {
    "train": """
hey, my mum and I want to do lisbon in may, 4 or 5 days, she loves churches i just want food | Lisbon | 5 | May | 2 | history, food
were a couple looking for a cheap long weekend in prague, beer and music | Prague | 3 | - | 2 | nightlife, music
Solo trip to Kyoto, two weeks in April, temples and gardens | Kyoto | 14 | April | 1 | history
2 adults, 2 teenagers, Barcelona, first week of July, beach every day pls | Barcelona | 7 | July | 4 | beach
any jazz clubs in chicago?? | Chicago | - | - | - | music
My wife's never been to Venice. Could we see it in three days in February? | Venice | 3 | February | 2 | -
I need a break. Somewhere with a beach. October. Just me. | - | - | October | 1 | beach
is edinburgh nice in november or is it too cold | Edinburgh | - | November | - | -
Hen party for 8 in Budapest, one weekend, we want to go out every night | Budapest | 2 | - | 8 | nightlife
We are retired teachers (two of us) and would like to spend a fortnight in Florence looking at paintings. | Florence | 14 | - | 2 | museums
tokyo w my best friend, 10 days, ramen ramen ramen and vintage clothes | Tokyo | 10 | - | 2 | food, shopping
Flights from Manchester to Nice for 4 in August please | Nice | - | August | 4 | -
how many days do you need for Rome? | Rome | - | - | - | -
I'm in Vienna for a conference in March and have one free day. Opera? | Vienna | 1 | March | - | music
My husband wants to climb things, I want to lie in the sun. Cape Town in January, 12 days. | Cape Town | 12 | January | 2 | hiking, beach
three friends, no plan, 5 days in sept, good nightlife | - | 5 | September | 3 | nightlife
Reykjavik with the kids (2 adults 3 kids), a week in June | Reykjavik | 7 | June | 5 | -
whats on in Bilbao, we only like modern art | Bilbao | - | - | - | museums
Taking my dad to Naples for his birthday. Long weekend in May. Pizza and Pompeii! | Naples | 3 | May | 2 | food, history
I'd like to eat my way through Bologna for 3 or 4 days, alone. | Bologna | 4 | - | 1 | food
Marrakech in Decmber, five days, me and two friends, mostly the markets | Marrakech | 5 | December | 3 | shopping
we went to Paris last year and it rained. Seville this time, april, 4 days | Seville | 4 | April | - | -
Just booked Istanbul! What should the two of us not miss? Mosques, kebabs, the bazaar | Istanbul | - | - | 2 | history, food, shopping
anyone for a hiking trip in july? there's five of us | - | - | July | 5 | hiking
Bruges for a day, is it worth it? | Bruges | 1 | - | - | -
Grandma turns 80 and wishes to see Salzburg once more. Four of us, May, a concert would be lovely | Salzburg | - | May | 4 | music
Can we do Copenhagen on the cheap in Febuary? Couple, two nights out, that's all we need | Copenhagen | - | February | 2 | nightlife
new york for christmas shopping, 4 days, december, mum and me | New York | 4 | December | 2 | shopping
I am looking for a quiet week. | - | 7 | - | - | -
My sister and I are thinking of Malaga or maybe Granada. No: Granada. A week in October, the Alhambra of course. | Granada | 7 | October | 2 | history
Glasgow gig weekend, 2 lads | Glasgow | 2 | - | 2 | music
School trip idea: Munich museums, three days in November | Munich | 3 | November | - | museums
could you help me plan hanoi? im vegetarian and live for street food, ten days in march | Hanoi | 10 | March | - | food
just married!! 2 weeks, beaches, we dont care where | - | 14 | - | 2 | beach
Bergen, August, fjord walks, 5 days | Bergen | 5 | August | - | hiking
What does a weekend in Dublin cost for a group of ten | Dublin | 2 | - | 10 | -
My flat mate says Lyon has the best food in France. True? We might go in January. | Lyon | - | January | - | food
Buenos Aires: clubs, steak, three weeks... no, make that two. Travelling on my own. | Buenos Aires | 14 | - | 1 | nightlife, food
Athens 3 days then home. The Acropolis and the sea | Athens | 3 | - | - | history, beach
In Hong Kong for 48 hours, i.e. two days, want dim sum and a hike | Hong Kong | 2 | - | - | food, hiking
a weekend away with my boyfriend, we like spas | - | 2 | - | 2 | -
London calling! 7 of us, theatre and pubs, late March | London | - | March | 7 | nightlife
Family of five (youngest is 3) wants sand, sea, no culture. August, 2 weeks. | - | 14 | August | 5 | beach
Is there good skiing near Geneva in feb? 4 ppl | Geneva | - | February | 4 | -
Sydney!!! | Sydney | - | - | - | -
I've got a week in Mexico City in November and want to see the Frida Kahlo house and other museums | Mexico City | 7 | November | - | museums
Boss says I must be in Singapore for eight days. Where do I eat at night? | Singapore | 8 | - | - | food
coming from Boston, my girlfriend and i would like to see Montreal in the fall, jazz bars, 3 days | Montreal | 3 | - | 2 | music
Zagreb. Two people. Four days. June. Castles nearby? | Zagreb | 4 | June | 2 | history
me, my wife, her parents: palermo, easter, a week, somewhere near the beach | Palermo | 7 | - | 4 | beach
""",
    "heldout": """
hiya, me and my girlfriend fancy porto for 4 days in june, wine and seafood mainly | Porto | 4 | June | 2 | food
My daughter and I would like to see Krakow in October. She studies history, so castles please. | Krakow | - | October | 2 | history
berlin, 9 of us, stag do, clubs clubs clubs | Berlin | - | - | 9 | nightlife
Eleven days in Havana in January, all by myself. Music! | Havana | 11 | January | 1 | music
is oslo worth it for a weekend | Oslo | 2 | - | - | -
We're a family of six and hope for a week at the seaside near Valencia in August. | Valencia | 7 | August | 6 | beach
im going to bangkok for 6 days, what should i eat | Bangkok | 6 | - | - | food
Two old friends, Antwerp, three days in March, fashion shops | Antwerp | 3 | March | 2 | shopping
Something with mountains in September for my brother and me, 5 or 6 days. | - | 6 | September | 2 | hiking
Seatle in november, alone, a week. Coffee and record shops. | Seattle | 7 | November | 1 | food, shopping
What can you do in Helsinki when it's dark all day? Going in December. | Helsinki | - | December | - | -
Could you find us a flat in Riga? Four adults, first weekend of May. | Riga | 2 | May | 4 | -
turin or trieste? ok turin. 2 days, chocolate & the egyptian museum | Turin | 2 | - | - | food, museums
We'd love to hear some jazz in New Orleans, two couples, 6 days in April | New Orleans | 6 | April | 4 | music
My parents' 40th anniversary: the two of them in Split, a fortnight, swimming and nothing else. | Split | 14 | - | 2 | beach
I have nine days off in feb and want sun | - | 9 | February | - | -
hi im looking for a hostel in Warsaw, 3 people, july | Warsaw | - | July | 3 | -
Zurich next month on business, one evening free, any good bars? | Zurich | - | - | - | nightlife
Tel Aviv with my husband: beach in the morning, dancing at night. A week in May. | Tel Aviv | 7 | May | 2 | beach, nightlife
We live in Delhi and our cousins too, so not Delhi again! Kuala Lumpur, five days, all six of us. | Kuala Lumpur | 5 | - | 6 | -
Marseille, me + 2 kids, easter holidays in april, boat trips and beaches | Marseille | - | April | 3 | beach
Just a day in Cork, what to see? | Cork | 1 | - | - | -
looking for a romantic weekend in leipzig with bach and good restaurants | Leipzig | 2 | - | - | music, food
My class of 11 wants to visit the galleries of Vilnius in May | Vilnius | - | May | 11 | museums
Rio de Janeiro for carnival! February, ten days, the three of us | Rio de Janeiro | 10 | February | 3 | -
Genoa. Focaccia. Nothing else matters. 3 days. | Genoa | 3 | - | - | food
Would San Diego be good for surfing in june? Me and my two sons, about a week | San Diego | 7 | June | 3 | beach
bogota 12 days solo female traveler march | Bogota | 12 | March | 1 | -
My aunt and uncle are flying from Denver to Manila in November for a wedding and stay 6 days. | Manila | 6 | November | 2 | -
three weeks would be lovely but I've only got nine days. Tbilisi, hiking in the Caucasus | Tbilisi | 9 | - | - | hiking
We want Roman ruins and good weather in October, couple, 1 week | - | 7 | October | 2 | history
Sofia on a budget: 3-4 days in sept, just me, free museums? | Sofia | 4 | September | 1 | museums
Our choir (11 singers) would love to sing in Ljubljana in June | Ljubljana | - | June | 11 | music
I lost a bet and must take my little sister shopping in Galway. A weekend. | Galway | 2 | - | 2 | shopping
anywhere but home. 6 days. july. | - | 6 | July | - | -
hello we are two pensioners and like churches and operas, is Verona good in august | Verona | - | August | 2 | history, music
Is there anything open in Gdansk in January? 2 days | Gdansk | 2 | January | - | -
Girls trip!! five of us, Ibiza, 1st week of sept, party party party | Ibiza | 7 | September | 5 | nightlife
Thessaloniki for the food, me and my boss, 2 days in nov | Thessaloniki | 2 | November | 2 | food
I'd spend my whole holiday, eleven days, in the museums of Philadelphia. By myself! | Philadelphia | 11 | - | 1 | museums
Husband, baby and I would like a quiet week by the sea in May | - | 7 | May | 3 | beach
A friend told me Luxembourg is boring. Prove her wrong in 2 days! | Luxembourg | 2 | - | - | -
mallorca hiking trip march 8 people | Mallorca | - | March | 8 | hiking
Can you do a long weekend in Rotterdam for two, modern architecture and art galleries | Rotterdam | 3 | - | 2 | museums
ten days in Santiago with my son, he is 12, we both love trekking | Santiago | 10 | - | 2 | hiking
After Derry I'm off to Belfast for two nights of live music, in December | Belfast | - | December | - | music
Perth, 2 weeks, january, me the wife and 4 kids | Perth | 14 | January | 6 | -
I want to buy a carpet in Tunis. Is one day enough? | Tunis | 1 | - | - | shopping
the six of us want street food and night life in Seoul in octobr | Seoul | - | October | 6 | food, nightlife
Where in Salamanca can my wife and I learn to cook? Nine days in April | Salamanca | 9 | April | 2 | food
""",
}


def numbers(side: str, usual: tuple[int, ...], rng: random.Random) -> int:
    """A number of the training side; on the other every second one is held out."""
    return rng.choice(HELD_OUT_NUMBERS if side == "heldout" and rng.random() < 0.5 else usual)


def written(number: int, rng: random.Random) -> str:
    """*number* as a digit or as a word."""
    word = NUMBERS[number] if number < len(NUMBERS) else str(number)
    return rng.choice([str(number), word])


def days_phrases(days: int, rng: random.Random) -> list[str]:
    """Ways to say how many *days*; of a range the larger number counts."""
    if days == 1:
        return ["a day", "one day", "1 day"]
    word = written(days, rng)
    phrases = [f"{word} days", f"{word} days", f"{days - 1}-{days} days"]
    phrases += [f"{NUMBERS[days - 1]} or {word} days"] if days - 1 < len(NUMBERS) else []
    named = {2: ["a weekend"], 3: ["a long weekend"], 7: ["a week", "one week", "1 week"]}
    named[14] = ["two weeks", "2 weeks", "a fortnight"]
    return phrases + 2 * named.get(days, [])


def for_phrases(people: int, rng: random.Random) -> list[str]:
    """Ways to say for how many *people*, after a noun."""
    if people == 1:
        return ["for just me", "for one person", "for 1", "for one", "for me alone"]
    word = written(people, rng)
    phrases = [f"for {word}", f"for {word} people", f"for the {word} of us"]
    if people == 2:
        return phrases + ["for a couple", "for my mum and me", "for me and my husband"]
    phrases += [f"for a family of {word}", f"for a group of {word}"]
    return phrases + [f"for me and {NUMBERS[people - 1]} friends"] if people <= FEW else phrases


def who_phrases(people: int, rng: random.Random) -> list[str]:
    """Ways to say how many travel, as a clause."""
    if people == 1:
        return ["I'm on my own", "it's just me", "I travel alone", "I'm going solo"]
    word = written(people, rng)
    phrases = [f"there are {word} of us", f"we're {word} people", f"we are {word}"]
    if people == 2:
        phrases += ["we're a couple", "my mum and I are going", "it's me and my sister"]
        return phrases + ["I'm going with my wife", "my friend and I are going"]
    phrases += [f"we're a family of {word}", f"we're a group of {word}"]
    if people > FEW:
        return phrases
    phrases += [f"it's me and {NUMBERS[people - 1]} friends"]
    kids = "a kid" if people == 3 else f"{NUMBERS[people - 2]} kids"
    return phrases + [f"we are two adults and {kids}"]


def allowed(phrases: list[str], side: str) -> list[str]:
    """Those *phrases* that hold no number of the other side."""
    if side == "heldout":
        return phrases
    digits, words = zip(*((str(n), NUMBERS[n]) for n in HELD_OUT_NUMBERS), strict=True)
    held_out = re.compile(rf"{'|'.join(digits)}|\b({'|'.join(words)})\b")
    return [phrase for phrase in phrases if not held_out.search(phrase)]


def listing(phrases: list[str]) -> str:
    """a / a and b / a, b and c"""
    return " and ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))


def as_people_type(text: str, rng: random.Random) -> str:
    """*text* as it is, or in a hurry: in small letters, without its last mark, two letters
    swapped.
    """
    if rng.random() < 0.25:
        text = text.lower()
    if rng.random() < 0.2:
        text = text.rstrip(".!?")
    return text


def swapped(template: str, rng: random.Random) -> str:
    """*template* with two letters of one of its own words swapped, now and then."""
    words = [found for found in re.finditer(r"(?<![\w{])[a-z]{5,}(?![\w}])", template)]
    if not words or rng.random() > 0.15:
        return template
    at = (word := rng.choice(words)).start() + rng.randrange(1, len(word[0]) - 2)
    return template[:at] + template[at + 1] + template[at] + template[at + 2 :]


def sentence(template: str, side: str, cities: list[str], rng: random.Random) -> tuple[str, dict]:
    """A sentence made from *template*, and its form."""
    form = dict.fromkeys(FIELDS) | {"wants": []}
    if len(cities) < 2:  # each is named once before one comes again: to copy, not to know
        cities[:] = rng.sample(CITIES[side], len(CITIES[side]))
    city = cities.pop()
    other = cities.pop() if "{other}" in template else ""
    days = numbers(side, DAYS, rng)
    people = numbers(side, PEOPLE, rng)
    month = rng.choice(MONTHS)
    tags = rng.sample(sorted(WANTS), rng.choice([1, 1, 2, 2, 3]))
    while "{nday}" in template and days == 1:
        days = numbers(side, (2, 3, 4, 5, 7), rng)
    slots = {
        "city": city,
        "other": other,
        "days": rng.choice(allowed(days_phrases(days, rng), side)),
        "nday": f"{written(days, rng)}-day",
        "month": SHORT_MONTHS.get(month, month) if rng.random() < 0.15 else month,
        "for_who": rng.choice(allowed(for_phrases(people, rng), side)),
        "who": rng.choice(allowed(who_phrases(people, rng), side)),
        "wants": listing([rng.choice(WANTS[tag]) for tag in tags]),
    }
    told = set(re.findall(r"\{(\w+)\}", template))
    form["city"] = city if "city" in told else None
    form["days"] = days if told & {"days", "nday"} else None
    form["month"] = month if "month" in told else None
    form["people"] = people if told & {"for_who", "who"} else None
    form["wants"] = tags if "wants" in told else []
    text = swapped(template, rng).format(**slots)
    text = re.sub(r"(^|[.!?] )([a-z])", lambda found: found[1] + found[2].upper(), text)
    return as_people_type(text, rng), form


def by_hand(line: str) -> tuple[str, dict]:
    """The sentence and the form of one line of BY_HAND."""
    text, city, days, month, people, wants = line.split(" | ")
    form = {"city": city, "days": days, "month": month, "people": people}
    form = {key: None if value == "-" else value for key, value in form.items()}
    form |= {key: int(form[key]) for key in ("days", "people") if form[key]}
    return text, form | {"wants": [] if wants == "-" else wants.split(", ")}


def records() -> list[dict]:
    """All records in the order of the file: mixed, so that any part of it has all kinds."""
    rng, made, seen = random.Random(SEED), [], set()
    for side, templates in TEMPLATES.items():
        cities: list[str] = []
        for number, template in enumerate(templates.strip().splitlines(), 1):
            count = 0
            while count < EACH[side]:
                text, form = sentence(template, side, cities, rng)
                if text.lower() not in seen:
                    seen.add(text.lower())
                    made.append((text, form, f"{side} {number}", side))
                    count += 1
    for side, lines in BY_HAND.items():
        made += [(*by_hand(line), "by hand", side) for line in lines.strip().splitlines()]
    rng.shuffle(made)
    return [
        {
            "prompt": text,
            "response": json.dumps(form, ensure_ascii=False, separators=(",", ":")),
            "template": template,
            "split": side,
        }
        for text, form, template, side in made
    ]


if __name__ == "__main__":
    lines = [json.dumps(record, ensure_ascii=False) for record in records()]
    OUT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} records in {OUT.name}")
