"""The chat box, clicked without a browser."""

import html
import re
import time

import nbformat
import pytest

import labkit
from labkit.commands.report import WIDGET, write_report
from labkit.course import notebook_path
from labkit.products import Products

ADAPTERS = {"none": None, "travel": "travel"}
EXAMPLE = {"prompt": "Where to?"}


def plain(markup: str) -> str:
    """What a reader sees of *markup*."""
    return html.unescape(" ".join(re.sub(r"<[^>]+>", " ", markup).split()))


@pytest.fixture
def asked():
    """What the stream was asked, in order."""
    return []


@pytest.fixture
def box(asked):
    """A box whose answers repeat the question, a word a token; 30 are left, less one a letter."""

    def room(record):
        return labkit.room_for_answer(record["prompt"], 30)

    def stream(record, adapter):
        asked.append((record["prompt"], adapter))
        for word in record["prompt"].split():
            time.sleep(0.001)
            yield f" {word}"
        yield ""  # a token that ends no letter

    return labkit.chat_box(stream, adapters=ADAPTERS, example=EXAMPLE, room=room)


def ask(box, question):
    box.question.value = question
    box.button.click()


def test_the_example_is_answered_at_once_with_the_first_adapter(box, asked):
    assert asked == [("Where to?", "travel")]
    assert "(adapter: travel) Where to?" in plain(box.turn.value) and "Answer Where to?" in plain(
        box.turn.value
    )
    assert re.search(r"\b3 tokens, \d+ tokens/s", box.status.value)


def test_without_any_adapter_the_example_is_answered_too(asked):
    box = labkit.chat_box(
        lambda record, adapter: iter(["Home"]),
        adapters={"none": None},
        example={"prompt": "?"},
        room=lambda _: 99,
    )
    assert "Answer Home" in plain(box.turn.value) and plain(box.status.value) == "1 token"


def test_a_click_streams_piece_by_piece_with_the_chosen_adapter(box, asked):
    pages, states = [], []
    box.turn.observe(
        lambda change: pages.append(plain(change.new).partition("Answer ")[2]), "value"
    )
    box.status.observe(
        lambda change: states.append((plain(change.new), box.button.disabled)), "value"
    )
    box.adapter.value = "none"
    ask(box, "  one two  ")
    assert asked[1:] == [("one two", None)]
    assert pages == ["", "one", "one two"]
    assert [text.split(",")[0] for text, _ in states] == [
        "0 tokens",
        "1 token",
        "2 tokens",
        "3 tokens",
    ]
    assert all(busy for _, busy in states) and not box.button.disabled


def test_enter_asks(box, asked):
    box.question.value = "again"
    box.question._handle_custom_msg({"event": "submit"}, [])
    assert asked[1:] == [("again", "travel")]


@pytest.mark.parametrize("question", ["", " \t "])
def test_an_empty_question_is_told(box, asked, question):
    ask(box, question)
    assert plain(box.status.value) == "Type a question first."
    assert len(asked) == 1 and not box.button.disabled


def test_a_question_that_leaves_no_room_is_told(box, asked):
    ask(box, "x" * 34)
    assert "takes 34 of the 30 tokens" in box.status.value
    assert "Shorten it by 20" in box.status.value and "LabError" not in box.status.value
    assert len(asked) == 1 and not box.button.disabled
    ask(box, "x" * 14)
    assert len(asked) == 2


def test_an_answer_may_be_shorter_than_the_least_room():
    """Where all answers of the data are short, so is the limit."""
    box = labkit.chat_box(
        lambda *_: iter(["Home."]),
        adapters=ADAPTERS,
        example=EXAMPLE,
        room=lambda record: labkit.room_for_answer(record["prompt"], 512, 3),
    )
    assert plain(box.turn.value).endswith("Answer Home.")


def test_half_of_a_character_is_shown_as_a_mark(box, asked):
    ask(box, "To \ud83d or \0?")
    assert asked[1][0] == "To \ufffd or  ?" and "\ufffd" in box.turn.value


def test_a_failing_stream_is_told_and_can_be_asked_again():
    def stream(record, adapter):
        yield "half"
        raise RuntimeError("the <cache> is full")

    box = labkit.chat_box(stream, adapters=ADAPTERS, example={"prompt": "?"}, room=lambda _: 99)
    assert (
        plain(box.status.value) == "RuntimeError: the <cache> is full"
        and "<cache>" not in box.status.value
    )
    assert "half" in box.turn.value
    assert not any(control.disabled for control in (box.button, box.question, box.adapter))
    box = labkit.chat_box(
        stream, adapters=ADAPTERS, example={"prompt": "?"}, room=lambda _: 1 // 0
    )
    assert "ZeroDivisionError" in box.status.value and not box.button.disabled


def test_an_answer_that_is_cut_ends_at_a_sentence(box):
    ask(box, "One two. Three")  # 16 tokens are left, and 4 are needed
    assert plain(box.turn.value).endswith("Answer One two. Three")
    endless = labkit.chat_box(
        lambda *_: iter(["Go up. ", "Then ", "down"] * 9),
        adapters=ADAPTERS,
        example=EXAMPLE,
        room=lambda _: 17,
    )
    assert plain(endless.turn.value).endswith("Answer " + "Go up. Then down" * 5 + "Go up.")
    assert plain(endless.status.value).startswith("17 tokens, ")
    assert plain(endless.status.value).endswith("; shown up to its last whole sentence")


@pytest.mark.parametrize(
    "text, shown",
    [
        ("Go up. Then down", "Go up."),
        ("Is it 3.5 km? (Yes.) Then", "Is it 3.5 km? (Yes.)"),
        ("It costs 3.5", "It costs 3.5"),
        ("No end", "No end"),
        ("東京。そして", "東京。"),
        ("", ""),
    ],
)
def test_whole_sentences(text, shown):
    assert labkit.whole_sentences(text) == shown


def test_typed_questions_get_the_system_turns_of_the_example():
    system = {"role": "system", "content": "Be brief."}
    turns = [system, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    asked = []
    box = labkit.chat_box(
        lambda record, _: asked.append(record) or iter(["Home"]),
        adapters=ADAPTERS,
        example={"prompt": "Where to?", "history": turns},
        room=lambda _: 99,
    )
    ask(box, "And then?")
    assert asked[1] == {"prompt": "And then?", "history": [system]}


def test_html_is_shown_as_text(box):
    ask(box, "<b onclick=1>&")
    assert (
        "<b onclick" not in box.turn.value
        and box.turn.value.count("&lt;b onclick=1&gt;&amp;") == 2
    )
    box = labkit.chat_box(
        lambda *_: ["{}<i>"], adapters={"<u>": "u"}, example={"prompt": "{0}"}, room=lambda _: 99
    )
    assert (
        "&lt;u&gt;" in box.turn.value
        and "{0}" in box.turn.value
        and "{}&lt;i&gt;" in box.turn.value
    )


def test_pages_without_a_kernel_show_the_example(box):
    bundle = box._repr_mimebundle_()
    assert (
        WIDGET in bundle
        and "Where to?" in bundle["text/html"]
        and "3 tokens" in bundle["text/html"]
    )


def test_the_report_keeps_the_example_and_drops_bare_widgets(box, tmp_path):
    bar = {WIDGET: {"model_id": "bar"}, "text/plain": "HBox(children=a progress bar)"}
    outputs = [
        nbformat.v4.new_output("display_data", data=data)
        for data in (box._repr_mimebundle_(), bar)
    ]
    outputs.append(nbformat.v4.new_output("stream", text="a line"))
    path = tmp_path / "notebooks" / notebook_path("05").name
    path.parent.mkdir()
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("box", outputs=outputs)]), path
    )
    report = write_report(Products(tmp_path)).read_text()
    assert (
        "Question (adapter: travel) Where to? Answer Where to? 3 tokens" in plain(report)
        and "a line" in report
    )
    assert WIDGET not in report and "a progress bar" not in report and box.model_id not in report
