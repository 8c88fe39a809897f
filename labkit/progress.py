"""What goes on in a long command or cell: one live line in a terminal, one output with a bar in a
notebook, and a line now and then where nothing can be written over.

Deep code says how far it is with :func:`report`, and need not know who shows it.
"""

import base64
import contextlib
import html
import io
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from labkit.errors import plain
from labkit.screen import css_width, dots

MARK = {"labkit": "progress"}  # metadata of an output while it is written over
CHART_S = 5.0  # seconds between two drawings of a chart: one holds the training up for some 0.1 s
CHART_INCHES = (6, 2)
MOST_REPORTS = 600  # that are remembered; with more, every second one is forgotten

Report = tuple[float, str, float, float, dict[str, float]]
"""Seconds since the block began, the unit, how many are done of how many, and what was measured"""


def report(unit: str, done: float, total: float, **values: float) -> None:
    """Says that *done* of *total* things, named *unit* ("steps"), are done.

    *values* are figures of just now, such as loss=3.9. Costs nothing where no Progress runs.
    """
    if _running:
        _running[-1].advance(unit, done, total, values)


def track(items: Iterable, unit: str, total: int | None = None) -> Iterator:
    """Yields *items*, and reports how many of them (of *total*, else their number) are done.

    Where no Progress runs, one of its own shows it, and leaves nothing behind.
    """
    total = len(items) if total is None else total
    with contextlib.nullcontext() if _running else Progress() as own:
        if own:
            own.show("")
        report(unit, 0, total)
        for done, item in enumerate(items, 1):
            yield item
            report(unit, done, total)


@dataclass
class Stage:
    """How much of *total* is done, since when (seconds, monotonic), and what was measured."""

    unit: str
    total: float
    first: float
    began: float
    done: float = 0.0
    at: float = 0.0
    values: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    now: Callable[[], float] = time.monotonic

    def left(self) -> float | None:
        """Seconds to the end at the pace up to now; None where that is not known."""
        if not self.first < self.done < self.total:
            return None
        pace = (self.at - self.began) / (self.done - self.first)
        waited = min(pace, self.now() - self.at)  # the next one is not done yet
        return pace * (self.total - self.done) - waited

    def __str__(self):
        parts = [f"{self.done:,.0f} of {self.total:,.0f} {self.unit}"]
        parts += [f"{name} {points[-1][1]:.2f}" for name, points in self.values.items()]
        left = self.left()
        return ", ".join(parts if left is None else [*parts, f"{clock(left)} left"])

    def end(self) -> str:
        """What is worth a line that stays: what was measured first and last; "" if nothing was."""
        if not self.values:
            return ""
        count = f"{self.done:,.0f}" + f" of {self.total:,.0f}" * (self.done < self.total)
        ends = [f"{k} {p[0][1]:.2f} to {p[-1][1]:.2f}" for k, p in self.values.items()]
        return ", ".join([f"{count} {self.unit} in {clock(self.at - self.began)}", *ends])


class Progress:
    """Within the block, shows what goes on and for how long, until the next :meth:`show`.

    *every* is the time in seconds between two lines where there is no terminal. In a notebook it
    is one output, from the first second on; of what was measured its last state keeps a line.
    """

    def __init__(self, every: float = 30.0):
        self.out = sys.stdout  # as it is now: what libraries print later goes into a log
        self.in_notebook = type(self.out).__module__.startswith("ipykernel")
        self.live = self.in_notebook or self.out.isatty()
        self.every = 1.0 if self.in_notebook else every
        self.text, self.since, self.expected, self.told = "", 0.0, None, 0.0
        self.detail: Callable[[], str] = str
        self.going, self.stage, self.is_displayed = False, None, False
        self.chart, self.drawn, self.drawn_at, self.chart_every = "", 0, 0.0, CHART_S
        self.reports: list[Report] = []
        self.began = self.since
        self.lock, self.done = threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self):
        self.began = self.now()
        _running.append(self)
        self.thread.start()
        return self

    def __exit__(self, *_):
        _running.remove(self)
        self.done.set()
        self.thread.join()
        end = self.stage.end() if self.stage else ""
        end = f"{self.text}: {end}" if self.text and end else end
        if self.is_displayed:
            self._display({"text/plain": plain(end)} | ({} if end else {"text/html": ""}), {})
        else:
            self.line(end)

    def show(
        self,
        text: str,
        *,
        expected: float | None = None,
        restart: bool = True,
        detail: Callable[[], str] = str,
    ) -> None:
        """What goes on now. *expected* seconds in all; *restart* starts the clock anew.

        *detail* is asked for the latest news at each tick, as long as nothing is reported.
        """
        with self.lock:
            self.text, self.expected, self.detail = text, expected, detail
            self.going, self.stage = True, None
            if restart:
                self.since, self.told = self.now(), time.monotonic()

    def advance(self, unit: str, done: float, total: float, values: dict[str, float]) -> None:
        """What :func:`report` is told; another unit, or fewer done than before, begins anew."""
        with self.lock:
            now, stage = self.now(), self.stage
            self.reports.append((round(now - self.began, 3), unit, done, total, values))
            if len(self.reports) > MOST_REPORTS:
                del self.reports[1::2]
            if not stage or stage.unit != unit or done < stage.done:
                self.stage = stage = Stage(unit, total, done, now, now=self.now)
                self.chart, self.drawn = "", 0
            stage.total, stage.done, stage.at = total, done, now
            for name, value in values.items():
                stage.values.setdefault(name.replace("_", " "), []).append((done, value))

    def line(self, text: str) -> None:
        """Prints *text* as a line that stays; nothing goes on until the next show."""
        with self.lock:
            self.going = False
            print(self._over(plain(text)), end="\n" if text else "", flush=True, file=self.out)

    def now(self) -> float:
        """Seconds, monotonic."""
        return time.monotonic()

    def elapsed(self) -> float:
        """Seconds since the clock was started."""
        return self.now() - self.since

    def _over(self, text: str) -> str:
        return f"\r\x1b[K{text}" if self.live and not self.in_notebook else text

    def _tick(self) -> None:
        while not self.done.wait(0.5):
            with self.lock:
                if not self.going:
                    continue
                due = time.monotonic() - self.told >= self.every
                if self.in_notebook and due:
                    self._display(self._page(), MARK)
                elif self.live and not self.in_notebook:
                    width = shutil.get_terminal_size().columns - 1
                    print(self._over(self._line(width)), end="", flush=True, file=self.out)
                elif due:
                    print(f"  ... {self._line()}", flush=True, file=self.out)
                if due:
                    self.told = time.monotonic()

    def _news(self) -> str:
        return str(self.stage) if self.stage else self.detail()

    def _line(self, width: int = 10**6) -> str:
        """The text, the time and the news; the text is cut where there is no room for all."""
        about = f" of about {clock(self.expected)}" if self.expected and not self.stage else ""
        rest = plain("  ".join(filter(None, [f"{clock(self.elapsed())}{about}", self._news()])))
        text = plain(self.text)[: max(16, width - len(rest) - 2)]
        return f"{text}  {rest}".lstrip()[:width]

    def _page(self) -> dict[str, str]:
        """The output of a notebook: with a bar and a chart, or as the text for others than it."""
        news = ": ".join(filter(None, [self.text, self._news()]))
        page = [f'<span style="white-space: pre-wrap">{html.escape(self._line())}</span>']
        if self.stage:
            page += [
                f'<progress value="{self.stage.done}" max="{self.stage.total}" '
                f'style="width: {css_width(CHART_INCHES[0])}; max-width: 100%"></progress>',
                self._chart(self.stage),
            ]
        return {"text/plain": plain(news), "text/html": "<br>".join(filter(None, page))}

    def _chart(self, stage: Stage) -> str:
        """An image of what was measured up to now; "" where that is less than two points."""
        count = sum(map(len, stage.values.values()))
        if count == self.drawn or time.monotonic() - self.drawn_at < self.chart_every or count < 2:
            return self.chart
        from matplotlib.figure import Figure  # not pyplot, which belongs to the main thread

        figure = Figure(figsize=CHART_INCHES, dpi=dots(), layout="constrained")
        axes = figure.subplots()
        for (name, points), style in zip(stage.values.items(), ("-", "--", ":"), strict=False):
            axes.plot(*zip(*points, strict=True), style, marker=".", label=name)
        axes.set(xlim=(0, stage.total), xlabel=stage.unit)
        axes.legend(loc="upper right")
        file = io.BytesIO()
        figure.savefig(file, format="png")
        data = base64.b64encode(file.getvalue()).decode()
        self.chart = (
            f'<img style="width: {css_width(CHART_INCHES[0])}" alt="{html.escape(str(stage))}" '
            f'src="data:image/png;base64,{data}">'
        )
        self.drawn, self.drawn_at = count, time.monotonic()
        return self.chart

    def _display(self, data: dict[str, str], metadata: dict) -> None:
        from IPython.display import publish_display_data

        with contextlib.suppress(ValueError):  # it flushes the log, which may just be closed
            publish_display_data(
                data,
                metadata,
                transient={"display_id": f"labkit-{id(self)}"},
                update=self.is_displayed,
            )
            self.is_displayed = True


_running: list[Progress] = []  # the innermost is the last


def clock(seconds: float) -> str:
    """ "48 s" or "2 min 05 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
