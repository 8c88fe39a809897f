"""What is shown of an answer."""

import re

# a mark that ends a sentence, with the quotes and brackets that may close after it
END = re.compile(r"[.!?…][\"'’”)\]]*(?=\s|$)|[。！？]")


def whole_sentences(text: str) -> str:
    """*text* up to the end of its last whole sentence; all of it where no sentence ends.

    For answers that were stopped at a limit of tokens, which is seldom the end of a sentence.
    """
    ends = [found.end() for found in END.finditer(text)]
    return text[: ends[-1]] if ends else text
