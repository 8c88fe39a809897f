# Exercise 5.2
def one_sentence(pieces):
    for piece in pieces:
        yield piece
        if "." in piece:
            return


whole, short = (
    "".join(stream(question, "travel")),
    "".join(one_sentence(stream(question, "travel"))),
)
print(short)
wanted = whole[: whole.find(".") + 1]
lab.exercise("5.2", ends_with_the_first_full_stop=short.strip() == wanted.strip())
