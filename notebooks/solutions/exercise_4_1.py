# Exercise 4.1
decision = 64


def bits_per_weight(group_size, scale_bits):
    return 4.0 + (scale_bits + 4) / group_size


scale_bits = 16 if lab.profile.device == "cuda" else 32
packed_mb = sum(parts_mb[part] for part in part_names.values())
weights = 2 * parts_mb["4-bit integers"]  # in millions, because a byte holds two
in_file = 8 * packed_mb / weights
computed = bits_per_weight(lab.profile.group_size, scale_bits)
print(f"computed {computed:.3f} bits a weight; in the file {in_file:.3f}")
bits, smaller_bits = (
    bits_per_weight(size, scale_bits) for size in (decision, decision // 2)
)
print(f"groups of {decision}: {bits:.3f} bits, {bits * weights / 8:.1f} MB for the layers")
lab.exercise(
    "4.1",
    agrees_with_the_file=abs(computed - in_file) < 0.05,
    the_chosen_size_fits=bits <= 4.6,
    no_smaller_size_fits=smaller_bits > 4.6,
)
