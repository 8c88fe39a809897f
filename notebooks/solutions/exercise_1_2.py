# Exercise 1.2
count = 4 * len(each)
more = [rng.choice(each, count).mean() for _ in range(2000)]
share = np.subtract(*np.percentile(more, [97.5, 2.5])) / (high - low)
print(f"{count} questions: {share:.0%} of the width")
lab.exercise("1.2", half_as_wide=0.45 <= share <= 0.55)
