# Exercise 1.2
HONEST, NO_BETTER_THAN_CHANCE = "by city", "by question"
predicted_leak = {"at random": 50, "by question": 50, "by city": 50}  # your numbers

shuffled = random.Random(7).sample(usable, len(usable))
count = max(1, len(usable) // 8)
splits = {
    "at random": (shuffled[count:], shuffled[:count]),
    "by question": labkit.split_records(usable, by="prompt"),
    "by city": labkit.split_records(usable, by="destination"),
}
leaks = {name: leak(*parts) for name, parts in splits.items()}
labkit.bars(
    leaks,
    ylabel="rare names that training knows (%)",
    title="The leak of three splits",
    predicted=predicted_leak,
)
from_chance = {name: abs(value - leaks["at random"]) for name, value in leaks.items()}
del from_chance["at random"]
lab.exercise(
    "1.2",
    the_honest_one_leaks_least=leaks.get(HONEST) == min(leaks.values()),
    the_other_is_like_chance=from_chance.get(NO_BETTER_THAN_CHANCE)
    == min(from_chance.values()),
)
