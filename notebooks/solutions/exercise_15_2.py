# Exercise 15.2
import statistics


def questions_needed(differences, points):
    return (1.96 * statistics.stdev(differences) / points) ** 2


right, sure = changes(dearest)
for points in (4, 2, 1):
    numbers = [round(questions_needed(one, points)) for one in (right, sure)]
    print(f"{points} points: {numbers[0]:,} questions by right, {numbers[1]:,} by sure")
here = labkit.bootstrap(sure, unit="points")
asked = questions_needed(sure, (here.high - here.low) / 2)
lab.exercise(
    "15.2",
    as_many_as_were_asked_for_the_interval_above=abs(asked / len(sure) - 1) < 0.2,
    half_the_points_take_four_times_as_many=abs(
        questions_needed(sure, 1) / questions_needed(sure, 2) - 4
    )
    < 0.1,
)
