# Exercise 14.1
# The graph alone does not tell: CUDA and WebGPU have the same one. The options alone do not
# either: a provider may ask for none.
def is_for_a_processor(row, processor):
    return row["graph"] == processor["graph"] and row["options"] == processor["options"]


folders = [row for row in truth if not row["why not"]]
labels = {row["provider"]: is_for_a_processor(row, truth[0]) for row in folders}
print("for a processor:", ", ".join(name for name, yes in labels.items() if yes))
nameless = [row["provider"] for row in known if row["name that Olive passes on"] == "none"]
lab.exercise(
    "14.1",
    finds_those_with_a_wrong_label=all(labels[name] for name in nameless),
    leaves_the_others_alone=not any(labels[row["provider"]] for row in own[1:]),
)
