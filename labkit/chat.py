"""The chat cell of lab 05: a question is typed, its answer streams."""

import html
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import islice

import ipywidgets as widgets

from labkit.answers import whole_sentences
from labkit.charts import VERBATIM
from labkit.errors import LabError
from labkit.prompts import whole_characters

BOX = f'<pre style="{VERBATIM}; font-size: {{}}px; line-height: 1.6">'
TURN = BOX.format(15) + "<b>Question</b> (adapter: {})<br>{}<br><br><b>Answer</b><br>{}</pre>"
STATUS = BOX.format(13) + "{}</pre>"


def chat_box(
    stream: Callable[[dict, str | None], Iterable[str]],
    *,
    adapters: Mapping[str, str | None],
    example: dict,
    room: Callable[[dict], int],
) -> widgets.VBox:
    """A box that asks *stream*, which yields a token a piece, with one of *adapters*.

    *adapters* maps labels to names (None: no adapter). The *example*, a record of the data, is
    asked at once; questions that are typed get its system turns. An answer ends by itself, or
    after as many tokens as *room* says of its question, or raises LabError: then it is shown up to
    its last whole sentence. Nothing is raised: the box says what went wrong.
    """
    return _ChatBox(stream, adapters, example, room)


class _ChatBox(widgets.VBox):
    def __init__(self, stream, adapters, example, room):
        self._stream, self._adapters, self._room = stream, adapters, room
        turns = example.get("history", ())
        self._history = [turn for turn in turns if turn["role"] == "system"]
        named = (label for label, name in adapters.items() if name is not None)
        first = next(named, next(iter(adapters)))
        self.adapter = widgets.Dropdown(
            options=list(adapters), value=first, description="Adapter", layout={"width": "240px"}
        )
        self.question = widgets.Text(
            example["prompt"],
            description="Question",
            placeholder="Type a question",
            layout={"flex": "1"},
        )
        self.button = widgets.Button(
            description="Ask", button_style="primary", layout={"width": "90px"}
        )
        self.turn, self.status = widgets.HTML(), widgets.HTML()
        row = widgets.HBox([self.question, self.button])
        super().__init__(
            [self.adapter, row, self.turn, self.status], layout={"max_width": "760px"}
        )
        self.button.on_click(self._ask)
        self.question.on_msg(self._enter)  # the value would change on leaving the field, too
        self._ask()

    def _enter(self, _, content, __):
        if content.get("event") == "submit":
            self._ask()
            self.question.focus()  # which a disabled field loses

    def _ask(self, *_):
        controls = (self.adapter, self.question, self.button)
        for control in controls:
            control.disabled = True
        try:
            self._answer(whole_characters(self.question.value).strip(), self.adapter.value)
        except LabError as error:
            self._say(str(error))
        except Exception as error:  # whatever the reader's own generator raises
            self._say(f"{type(error).__name__}: {error}")
        finally:
            for control in controls:
                control.disabled = False

    def _answer(self, text, adapter):
        if not text:
            return self._say("Type a question first.")
        record = {"prompt": text, "history": self._history}
        left = self._room(record)
        answer, times = "", []
        self._show(adapter, text, answer, times)
        for piece in islice(self._stream(record, self._adapters[adapter]), left):
            answer += piece
            times.append(time.perf_counter())
            self._show(adapter, text, answer, times)
        if len(times) == left:
            answer = whole_sentences(answer)
            self._show(adapter, text, answer, times, "; shown up to its last whole sentence")

    def _show(self, adapter, question, answer, times, note=""):
        self.turn.value = TURN.format(*map(html.escape, (adapter, question, answer.lstrip())))
        count = len(times)
        # from the first token on, as in lab 05's measurement: until then the question is read
        speed = f", {(count - 1) / (times[-1] - times[0]):.0f} tokens/s" if count > 1 else ""
        self._say(f"{count} token{'s' * (count != 1)}{speed}{note}")

    def _say(self, text):
        self.status.value = STATUS.format(html.escape(text))

    def _repr_mimebundle_(self, **kwargs):
        # for pages without a kernel: the report, GitHub
        return super()._repr_mimebundle_(**kwargs) | {
            "text/html": self.turn.value + self.status.value
        }
