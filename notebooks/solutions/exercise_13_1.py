# Exercise 13.1
best = min(variants, key=lambda name: harm[name].mean)
good_enough = [name for name in variants if minus(name, best).low <= 0]
ship = min(good_enough, key=mb.get)

print("the least loss:", variants[best]["label"])
print("chosen:", variants[ship]["label"], f"{mb[ship]:.1f} MB;", minus(ship, best))
equal = [name for name in variants if minus(name, best).low <= 0]
lab.exercise(
    "13.1",
    not_clearly_worse=ship in equal,
    nothing_smaller_is_as_good=mb[ship] <= min(map(mb.get, equal)),
)
