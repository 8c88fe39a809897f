# Exercise 1.1
word, place = "government", "Llanfairpwllgwyngyll"
pieces = {name: tokenizer.tokenize(f" {name}") for name in (word, place)}
print(pieces)
one_token = len(word) >= 10 and len(pieces[word]) == 1
lab.exercise(
    "1.1", long_word_is_one_token=one_token, place_takes_five=len(pieces[place]) >= 5
)
