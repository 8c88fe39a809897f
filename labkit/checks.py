"""Claims that a lab makes about its own results, and exercises that check themselves."""

from labkit.errors import LabError


def checkpoint(number: str, claims: dict[str, bool], *, judged: bool, advice: str) -> None:
    """Prints each claim of checkpoint *number*; LabError with *advice* at the first that is false.

    Where it is not *judged* (too little was trained, for example), that is said, and nothing is
    raised.
    """
    for name, true in claims.items():
        text = f"checkpoint {number}: {name.replace('_', ' ')}"
        if not judged:
            print(f"{text}: not judged")
        elif true:
            print(f"{text}: yes")
        else:
            raise LabError(
                f"checkpoint {number} failed: {name.replace('_', ' ')}: no. The value is in the "
                f"output above. {advice}"
            )


def exercise(number: str, claims: dict[str, bool]) -> None:
    """Prints whether exercise *number* is solved, claim by claim; raises nothing, so that a run
    goes on.
    """
    solved = all(claims.values())
    print(f"exercise {number}: {'solved' if solved else 'not yet: change the line marked TODO'}")
    for name, true in claims.items():
        print(f"  {name.replace('_', ' ')}: {'yes' if true else 'no'}")
