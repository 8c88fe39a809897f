# Exercise 5.2
famous = [max(names, key=len) for names in sights.values() if names]
boast = f"Everywhere, in short: see {', '.join(famous)}."
print(boast)


def score(text, city):
    return names_a_sight(text, city) - names_other_sights(text, city)


answers = {who: [row[who] for row in rows] for who in ("reference", "with")}
answers["boaster"] = [boast] * len(rows)
earned = {}
for who, texts in answers.items():
    scores = [score(text, row["city"]) for text, row in zip(texts, rows, strict=True)]
    earned[who] = percent(scores)
    print(f"{who}: {earned[who]}")
lab.exercise(
    "5.2",
    the_boaster_earns_nothing=earned["boaster"].mean < 5,
    the_references_keep_their_score=earned["reference"].mean >= 75,
)
