# Exercise 10.1
SEARCH = {"do_sample": False}

second = ask_app(asked, LIMIT, **SEARCH) if SEARCH else first
print(f"{same(second)} of {len(asked)} are the same")
lab.exercise("10.1", five_of_six_are_the_same=same(second) >= 0.8 * len(asked))
