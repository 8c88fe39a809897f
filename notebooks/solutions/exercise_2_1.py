# Exercise 2.1
BUDGET = 4.25  # bits for each weight
size = 96  # a quarter of a bit is left: 80 weights or more must share the 20 bits of a grid

columns = weight.shape[1]
sizes = {"the matrix": weight.numel(), "a row": columns, f"{size} weights": size}


def bits(size):
    return 4 + 20 / size


def error(size):
    if columns % size and size % columns:
        return float("nan")  # a group would reach over the end of a row
    return 100 * ((round_to_nearest(weight, size) - weight).norm() / weight.norm()).item()


divisors = [n for n in range(8, columns + 1) if columns % n == 0]
affordable = [n for n in divisors if bits(n) <= BUDGET] or [columns]
fits = bits(size) <= BUDGET
lab.exercise(
    "2.1",
    divides_the_row=columns % size == 0,
    within_the_budget=fits,
    smallest_error_within_it=fits and error(size) <= 1.001 * min(map(error, affordable)),
)
rows = []
for what, n in sizes.items():
    row = {"one grid for": what, "bits a weight": f"{bits(n):.3f}"}
    rows.append(row | {"error of the weights": f"{error(n):.1f} %"})
labkit.table(rows)
