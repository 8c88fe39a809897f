# Exercise 2.2
def error_of(changed):
    return (activations @ (changed - weight).T).norm().item()


def scaled_by(strength):
    scales = (magnitude**strength).clamp(min=1e-4)
    scales = scales / (scales.max() * scales.min()).sqrt()  # around 1
    return round_to_nearest(weight * scales, group_size) / scales


found = {tenth / 10: error_of(scaled_by(tenth / 10)) for tenth in range(11)}
best = min(found, key=found.get)
print({strength: round(value, 2) for strength, value in found.items()}, "best:", best)
new_ids = [labkit.chat_ids(tokenizer, record)[0] for record in heldout[:4]]
new = inputs_of(layer, new_ids)
plain, chosen_one = ((new @ (scaled_by(s) - weight).T).norm().item() for s in (0.0, best))
print(f"output on new questions: {chosen_one / plain:.0%} of the error of plain rounding")
lab.exercise("2.2", output_error_a_tenth_smaller=chosen_one <= 0.9 * plain)
