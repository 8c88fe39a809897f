# Exercise 1.1
template, no_marks, other_marks, not_opened = "C", "A", "D", "B"

other = "<|user|>\n{}<|end|>\n<|assistant|>\n"  # of Phi-3
if "<|user|>" in prompt:
    other = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"  # of many others
turns = [{"role": "user", "content": QUESTION}]
prompts = {
    "template": prompt,
    "no marks": QUESTION,
    "other marks": other.format(QUESTION),
    "not opened": tokenizer.apply_chat_template(turns, tokenize=False),
}
order = dict(zip("ABCD", random.Random(4).sample(list(prompts), 4), strict=True))
for letter, kind in order.items():
    ids = tokenizer(prompts[kind], add_special_tokens=False)["input_ids"]
    print(f"{letter}: {tokenizer.decode(list(stream(model, ids, 24)))!r}")
mine = dict(zip(prompts, (template, no_marks, other_marks, not_opened), strict=True))
right = sum(order.get(letter) == kind for kind, letter in mine.items())
print(f"{right} of 4 are matched")
lab.exercise("1.1", all_four_matched=right == 4)
