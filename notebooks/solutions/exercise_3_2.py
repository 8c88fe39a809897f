# Exercise 3.2
expected_strength = 1.0  # your number
strengths = [0.5 * n for n in range(13)]
trial = with_adapter(lora_dir, "travel")


def losses_at(strength, records):
    for layer in trial.modules():
        if hasattr(layer, "lora_A"):
            layer.set_scale("travel", strength)
    return labkit.record_losses(labkit.torch_logits(trial), tokenizer, records)


searched, others = heldout[:10], heldout[-10:]
tried = sorted({*strengths, 1.0})
loss_at = {s: labkit.mean_loss(losses_at(s, searched)).mean for s in tried}
best = min(tried, key=loss_at.get)
change = labkit.loss_difference(losses_at(best, others), losses_at(1.0, others))
print({s: round(loss, 3) for s, loss in loss_at.items()})
print(f"best in the search: {best:g} (you expected {expected_strength:g})")
print(f"on other questions, strength {best:g} minus strength 1: {change}")

ship = best if change.high < 0 else 1.0

supported = best if change.high < 0 else 1.0
lab.exercise(
    "3.2",
    a_neighbour_below_the_best_was_tried=any(best - 0.5 <= s < best for s in tried),
    a_neighbour_above_the_best_was_tried=any(best < s <= best + 0.5 for s in tried),
    the_measurement_supports_the_decision=ship == supported,
)
