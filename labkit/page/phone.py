"""The page in a headless browser of a phone's size, asked by a program."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from labkit.errors import LabError

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SIZE = {"width": 390, "height": 844}  # CSS pixels
PATIENCE = 300_000  # ms


def browser() -> str:
    """Path of a Chromium or Chrome; "" where there is none."""
    return next(filter(None, map(shutil.which, BROWSERS)), "")


async def ask(folder: Path, questions: Iterable[tuple[str, str]], *, options: str = "") -> dict:
    """What the page in *folder* answers to *questions*, pairs of an adapter and a text.

    *options* are those of the page's address. Returns "answers" (each with text, ids, tokens,
    first in ms, perSecond), "memory_mb" of the page's process once the model is loaded, "foreign"
    (the addresses on other hosts that were asked for; they are refused), and "picture", a PNG of
    the first answer. Raises LabError where the page does not load the model.
    """
    from playwright.async_api import async_playwright

    from labkit.commands.page import listen

    server, port = listen(folder, 0)
    foreign = []

    async def here_only(route):
        if urlsplit(route.request.url).hostname == "localhost":
            return await route.continue_()
        foreign.append(route.request.url)
        return await route.abort()

    try:
        async with async_playwright() as playwright:
            chromium = await playwright.chromium.launch(executable_path=browser())
            page = await chromium.new_page(viewport=SIZE, device_scale_factor=2)
            page.set_default_timeout(PATIENCE)
            await page.route("**/*", here_only)
            await page.goto(f"http://localhost:{port}/?{options}")
            await page.locator("#form, #note[data-failed]").first.wait_for()
            if not await page.locator("#form").is_visible():
                said = await page.locator("#note").inner_text()
                raise LabError(f"the page did not load the model in {browser()}. It says: {said}")
            memory, answers, picture = _memory_mb(), [], b""
            for adapter, question in questions:
                await page.get_by_label("Adapter").select_option(adapter)
                await page.get_by_label("Question").fill(question)
                await page.evaluate("delete document.getElementById('answer').dataset.done")
                await page.get_by_role("button", name="Ask").click()
                answer = page.locator("#answer[aria-busy=false][data-done]")
                await answer.wait_for(state="attached")  # it may be empty
                answers.append(json.loads(await answer.get_attribute("data-done")))
                picture = picture or await page.screenshot()
            await chromium.close()
    finally:
        server.stop()
    return {"answers": answers, "memory_mb": memory, "foreign": foreign, "picture": picture}


def _memory_mb() -> float:
    """Resident memory of the largest process that shows a page, of those that this one started."""
    import psutil

    pages = [
        process.memory_info().rss
        for process in psutil.Process().children(recursive=True)
        if "--type=renderer" in process.cmdline()
    ]
    return max(pages, default=0) / 1e6
