# Exercise 15.1
TONES = ["surprise", "joy", "fear", "sadness"]
settings = {
    "output_type": "multiple_choice",
    "doc_to_text": "asked",
    "doc_to_choice": TONES,
    "doc_to_target": "response",
    "target_delimiter": "",
}

half = jobs["tone"][::2]
lines = requests["tone"].read_text().splitlines(keepends=True)[::2]
some = lab.write("evaluate-some.jsonl", "".join(lines))
chosen = lm_eval([task("tone", some, **settings)], {"tone": adapters["tone"]})
chosen = chosen["tone"]["tone"]
each = [{**record, "response": tone} for record in half for tone in TONES]
likely = labkit.record_losses(model.using(adapters["tone"]), tokenizer, each)
hits = 0
for at, record in enumerate(half):
    nats = [sum(losses) for losses in likely[4 * at : 4 * at + 4]]
    hits += TONES[nats.index(min(nats))] == record["response"]
print(f"lm-eval: {chosen['result']['acc,none']:.1%}, labkit: {hits / len(half):.1%}")
lab.exercise(
    "15.1",
    each_phrase_has_four_choices=all(len(asked) == 4 for asked in chosen["records"]),
    both_tools_agree=abs(chosen["result"]["acc,none"] - hits / len(half)) < 0.05,
)
