"""Between a conversation and the ids that a model reads: tokenizers, chat templates, and where an
answer begins and ends.
"""

import re
import unicodedata
from functools import lru_cache

from labkit.errors import LabError

SAMPLE = {
    "prompt": "Where is the best view of Prague?",
    "response": "São Jorge Castle, 2 trams, naïve façade.",
}


def turns(tokenizer, record: dict) -> list[dict[str, str]]:
    """The conversation up to the answer, as messages: the record's "history" and its prompt.

    Control tokens that stand in the texts are broken by a space, so that data cannot end a turn or
    begin another.
    """
    messages = [*record.get("history", ()), {"role": "user", "content": record["prompt"]}]
    return [
        {"role": turn["role"], "content": harmless(tokenizer, turn["content"].strip())}
        for turn in messages
    ]


def harmless(tokenizer, text: str) -> str:
    """*text* with a space in each control token, so that it is read as plain characters.

    "<|im_end|>" becomes "< |im_end|>". Letters with accents are one character each (Unicode's form
    NFC), which some tokenizers do, and GenAI does not. Raises LabError where the tokenizer still
    reads a control token.
    """
    text = unicodedata.normalize("NFC", whole_characters(text))
    marks, pattern = _control_tokens(tokenizer)
    broken = pattern.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
    if left := set(marks.values()).intersection(
        tokenizer(broken, add_special_tokens=False)["input_ids"]
    ):
        raise LabError(
            f"the text '{text[:60]}' is read as the control token "
            f"{tokenizer.convert_ids_to_tokens(min(left))}. Write it in other characters, or "
            "leave the record out."
        )
    return broken


def whole_characters(text: str) -> str:
    """*text* with a mark in the place of what is no character: U+FFFD for half of one (which a
    pasted text may hold, and no tokenizer takes), a space for NUL, at which GenAI stops reading.
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", " ")


def harmless_record(tokenizer, record: dict) -> dict:
    """*record* with each text as :func:`harmless` has it, for readers that have no such guard."""
    texts = {key: harmless(tokenizer, record[key]) for key in ("prompt", "response")}
    if "history" in record:
        texts["history"] = [
            turn | {"content": harmless(tokenizer, turn["content"])} for turn in record["history"]
        ]
    return record | texts


def control_tokens(tokenizer) -> dict[str, int]:
    """Text -> id of the tokens that can mean something to a chat format.

    These are the special ones, and all added ones with a mark. Not all are said to be special:
    Phi-4's role tokens are not, nor are <think> and <tool_call>.
    """
    return _control_tokens(tokenizer)[0]


def _control_tokens(tokenizer) -> tuple[dict[str, int], re.Pattern]:
    known = tokenizer.bos_token, tokenizer.eos_token, tokenizer.chat_template or ""
    return _marks(tokenizer, len(tokenizer), tokenizer.unk_token, known)


@lru_cache(maxsize=4)  # Gemma has 6,000 added tokens, and each text of each record asks
def _marks(
    tokenizer, size: int, unknown: str | None, known: tuple
) -> tuple[dict[str, int], re.Pattern]:
    """Text -> id, and the pattern of all these texts, of which the longest is found where several
    begin.
    """
    added = {
        token.content: (number, token.special)
        for number, token in tokenizer.added_tokens_decoder.items()
    }
    meant = {
        text for text, (_, special) in added.items() if special or re.search(r"[^\w\s▁]", text)
    }
    if unknown not in known[:2] and str(unknown) not in known[2]:
        meant.discard(unknown)  # an unknown character is no attack
    marks = {text: added[text][0] for text in meant if len(text) > 1}
    any_of_them = "|".join(map(re.escape, sorted(marks, key=len, reverse=True)))
    return marks, re.compile(any_of_them or r"(?!)")


def prompt_text(tokenizer, record: dict | str) -> str:
    """What the model reads before it answers: the chat template around a question, or around a
    record's turns.
    """
    messages = turns(tokenizer, {"prompt": record} if isinstance(record, str) else record)
    return _rendered(tokenizer, messages, add_generation_prompt=True)


def chat_ids(tokenizer, record: dict) -> tuple[list[int], int]:
    """(token ids of a record in the model's chat format, number of ids before the response).

    The ids end with the token that ends a turn: what the model must say, and nothing after it.
    Raises LabError where the template leaves something out, or where its prompt is not the
    beginning of its conversation: what is trained would not be what is asked.
    """
    messages, response = turns(tokenizer, record), harmless(tokenizer, record["response"].strip())
    prompt = _rendered(tokenizer, messages, add_generation_prompt=True)
    whole = _rendered(tokenizer, [*messages, {"role": "assistant", "content": response}])
    if not whole.startswith(prompt):
        raise LabError(
            f"the chat template asks with '...{prompt[-40:]}', but writes the same conversation "
            "otherwise: an answer would be trained after another text than it is asked with. "
            "Choose a model whose template does not begin the answer itself."
        )
    lost, at = [], 0
    for turn in messages:
        found = prompt.find(turn["content"].strip(), at)
        lost += [turn["content"]] * (found < 0)
        at = max(at, found + len(turn["content"].strip()))
    begin = len(whole) - len(whole[len(prompt) :].lstrip())
    if lost or not whole.startswith(response, begin):
        raise LabError(
            f"the chat template leaves out '{(lost or [response])[0][:60]}'. Choose a model "
            "whose template has a place for every turn of your data (some have none for a "
            "system turn), or leave these turns out of the data."
        )
    begin += len(response)
    marks, pattern = _control_tokens(tokenizer)
    end = pattern.search(whole, begin)
    stop = end.end() if end else begin
    head, ids = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, whole[:stop])
    )
    if (
        ids[: len(head)] != head
    ):  # a token reaches over the end of the prompt; a model that is asked gets the prompt alone
        ids = head + tokenizer(whole[len(prompt) : stop], add_special_tokens=False)["input_ids"]
    if not end or ids[-1] != marks[end[0]]:
        raise LabError(
            "the chat template ends an answer without a token that the tokenizer knows as "
            "special: the model could not learn to stop. Choose a model whose template ends a "
            "turn with such a token."
        )
    return ids, len(head)


def _rendered(tokenizer, messages: list[dict[str, str]], **options) -> str:
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except Exception as error:  # a template is a program
        roles, why = (
            ", ".join(turn["role"] for turn in messages),
            " ".join(str(error).split())[:200],
        )
        asked = next(
            (turn["content"] for turn in reversed(messages) if turn["role"] == "user"), ""
        )[:60]
        raise LabError(
            f"the model's chat template cannot write a conversation of the turns {roles} (the "
            f"question '{asked}'): {why}. Some templates take no system turn, and some demand "
            "one: change the turns of your records, or choose another model."
        ) from error
