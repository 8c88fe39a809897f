# Exercise 5.1
def rolled(seed):
    settings = og.GeneratorParams(model)
    settings.set_search_options(
        max_length=lab.profile.max_length, do_sample=True, temperature=0.9, random_seed=seed
    )
    generator = og.Generator(model, settings)
    generator.set_active_adapter(adapters, "travel")
    start = tokens.encode(text)
    generator.append_tokens(start)
    while not generator.is_done() and generator.token_count() < len(start) + 24:
        generator.generate_next_token()
    return tokens.decode(generator.get_sequence(0)[len(start) :])


rolls = [rolled(seed) for seed in (1, 2, 3)]
print(*rolls, sep="\n---\n")
lab.exercise("5.1", three_different_answers=len(set(rolls)) == 3)
