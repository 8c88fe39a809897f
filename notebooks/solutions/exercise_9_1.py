# Exercise 9.1
BITS = 8


def needed_mb(bits):
    return 600 + 2 * files["model/wasm.bin"] * bits / 8


LIMIT_MB = 1000
print({bits: f"{needed_mb(bits):,.0f} MB" for bits in (4, 8, 16, 32)}[BITS])
lab.exercise(
    "9.1",
    it_fits=needed_mb(BITS) <= LIMIT_MB,
    twice_as_many_bits_do_not=needed_mb(2 * BITS) > LIMIT_MB,
)
