"""The chat cell of lab 05: a question is typed, its answer streams."""

import html
import time
from collections.abc import Callable, Iterable, Mapping

import ipywidgets as widgets

from labkit.charts import VERBATIM

LEAST = 16  # tokens; with less room an answer stops in its first sentence
BOX = f'<pre style="{VERBATIM}; font-size: {{}}px; line-height: 1.6">'
TURN = BOX.format(15) + "<b>Question</b> (adapter: {})<br>{}<br><br><b>Answer</b><br>{}</pre>"
STATUS = BOX.format(13) + "{}</pre>"


def chat_box(
    stream: Callable[[str, str | None], Iterable[str]],
    *,
    adapters: Mapping[str, str | None],
    example: str,
    room: Callable[[str], int],
) -> widgets.VBox:
    """A box to ask *stream*, a token a piece, with one of *adapters* (label -> name or None); *example* is asked at once.

    *room* says how many tokens a question leaves for its answer. Nothing is raised: the box says what went wrong.
    """
    return _ChatBox(stream, adapters, example, room)


class _ChatBox(widgets.VBox):
    def __init__(self, stream, adapters, example, room):
        self._stream, self._adapters, self._room = stream, adapters, room
        first = next(
            (label for label, name in adapters.items() if name is not None), next(iter(adapters))
        )
        self.adapter = widgets.Dropdown(
            options=list(adapters), value=first, description="Adapter", layout={"width": "240px"}
        )
        self.question = widgets.Text(
            example, description="Question", placeholder="Type a question", layout={"flex": "1"}
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
            self._answer(self.question.value.strip(), self.adapter.value)
        except Exception as error:  # whatever the reader's own generator raises
            self._say(f"{type(error).__name__}: {error}")
        finally:
            for control in controls:
                control.disabled = False

    def _answer(self, question, adapter):
        if not question:
            return self._say("Type a question first.")
        if (left := self._room(question)) < LEAST:
            return self._say(
                f"The question is {LEAST - left} tokens too long. Shorten it and ask again."
            )
        text, times = "", []
        self._show(adapter, question, text, times)
        for piece in self._stream(question, self._adapters[adapter]):
            text += piece
            times.append(time.perf_counter())
            self._show(adapter, question, text, times)

    def _show(self, adapter, question, text, times):
        self.turn.value = TURN.format(*map(html.escape, (adapter, question, text.lstrip())))
        # from the first token on, as in lab 05's measurement: until then the question is read
        speed = (
            f", {(len(times) - 1) / (times[-1] - times[0]):.0f} tokens/s" if len(times) > 1 else ""
        )
        self._say(f"{len(times)} token{'s' * (len(times) != 1)}{speed}")

    def _say(self, text):
        self.status.value = STATUS.format(html.escape(text))

    def _repr_mimebundle_(self, **kwargs):
        # for pages without a kernel: the report, GitHub
        return super()._repr_mimebundle_(**kwargs) | {
            "text/html": self.turn.value + self.status.value
        }
