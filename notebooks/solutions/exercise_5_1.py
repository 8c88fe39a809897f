# Exercise 5.1
PENALTY = 1.2

tried = []
for record in heldout[:: max(1, len(heldout) // 9)]:
    pieces = stream(record, "travel", repetition_penalty=PENALTY)
    tried.append("".join(islice(pieces, room(record))).strip())
    print(tried[-1], "\n")
looping, styled = percent(map(loops, tried)), percent(map(has_style, tried))
print(f"penalty {PENALTY}: {looping.mean:.0f} % loop, {styled.mean:.0f} % have the style")
lab.exercise("5.1", no_answer_loops=looping.mean == 0, nine_of_ten_have_the_style=styled.mean >= 90)
