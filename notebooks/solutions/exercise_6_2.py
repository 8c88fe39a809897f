# Exercise 6.2
from labkit.course import maker

peaks = summary["peak_rss_mb_by_step"]
made_in = {step: maker(step) for step in peaks}
heaviest = max(peaks, key=peaks.get)
moved = {step for step in peaks if made_in[step] == made_in[heaviest]}
left = {step: mb for step, mb in peaks.items() if step not in moved}
limit = max(left, key=left.get)
print(f"moved: {', '.join(sorted(moved))} ({peaks[heaviest]:,.0f} MB)")
print(f"the laptops need {left[limit]:,.0f} MB, for {limit} (lab {made_in[limit]})")
lab.exercise(
    "6.2",
    its_whole_lab_is_moved=all(made_in[step] != made_in[heaviest] for step in left),
    and_no_other_lab=all(made_in[step] == made_in[heaviest] for step in moved),
)
