# Exercise 12.1
# Only values that a point of the frontier has can belong to one.
smaller = {
    name: [value for value in values if any(one[name] == value for one in frontier)]
    for name, values in SPACE.items()
}

for name, values in SPACE.items():
    print(
        name, {str(value): sum(one[name] == value for one in frontier) for value in values}
    )


def inside(point):
    return all(point[name] in smaller.get(name, []) for name in SPACE)


left = math.prod(len(set(values)) for values in smaller.values())
there = sum(map(inside, frontier))
print(f"{left} ways are left, with {there} of {len(frontier)} points of the frontier")
lab.exercise(
    "12.1",
    at_most_half_is_left=left <= len(truth) / 2,
    the_whole_frontier_is_inside=all(map(inside, frontier)),
)
