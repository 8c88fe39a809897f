# Exercise 4.1
group_size, scale_bits = lab.profile.group_size, 16 if lab.profile.device == "cuda" else 32
bits = 4.0 + (scale_bits + 4) / group_size
packed = sum(kinds[kind] for kind in ("qweight", "scales", "qzeros"))
weights = 2 * kinds["qweight"]  # two to a byte
print(f"computed {bits:.3f} bits; in the file {8 * packed / weights:.3f}")
lab.exercise("4.1", agrees_with_the_file=abs(bits - 8 * packed / weights) < 0.05)
