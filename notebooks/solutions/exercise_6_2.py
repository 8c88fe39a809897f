# Exercise 6.2
peaks = summary["peak_rss_mb_by_step"]
hungriest = max(peaks, key=peaks.get)
print(hungriest, f"{peaks[hungriest]:,.0f} MB")
lab.exercise("6.2", no_step_needs_more=peaks[hungriest] == max(peaks.values()))
