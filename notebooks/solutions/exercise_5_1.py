# Exercise 5.1
PENALTY = 1.15


@cache
def try_penalty(penalty):
    """(Share of answers that loop, share of answers with our style), of some questions."""
    some = heldout[:: max(1, len(heldout) // 6)]
    answers = answers_to(some, "travel", repetition_penalty=penalty)
    tried = [text for text, _ in answers]
    looping, styled = percent(map(loops, tried)), percent(map(has_style, tried))
    print(f"penalty {penalty}: {looping.mean:.0f} % loop, {styled.mean:.0f} % in style")
    print(*tried[:3], sep="\n\n", end="\n\n")
    return looping.mean, styled.mean


without, chosen = try_penalty(1.0), try_penalty(PENALTY)
lab.exercise(
    "5.1",
    fewer_answers_loop=chosen[0] < without[0],
    most_answers_keep_the_style=chosen[1] >= without[1] - 30,
)
