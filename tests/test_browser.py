"""Lab 05's chat cell in a real browser, in JupyterLab as './lab open' starts it."""

import contextlib
import os
import re
import shutil
import subprocess
import time
import urllib.request
from urllib.parse import urlsplit

import pytest

from labkit.commands.open import command, free_port
from labkit.profiles import ROOT

INSTALL = "no Chromium or Chrome on the path: 'sudo apt-get install chromium', or any Google Chrome"
ANSWER = re.compile(r"Answer\s*\w")
SPEED = re.compile(r"[1-9]\d* tokens, [1-9]\d* tokens/s")
TOKEN = "browser-test"
WATCH = """box => {
    window.seen = [];
    new MutationObserver(() => window.seen.push(box.innerText)).observe(box, {childList: true, subtree: true});
}"""


@pytest.fixture
def browser():
    """Path of a browser; without one the test is skipped, but fails on a build server."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not path and os.environ.get("CI"):
        pytest.fail(INSTALL, pytrace=False)
    return path or pytest.skip(INSTALL)


@pytest.fixture
def address(browser, notebook_runs, tmp_path):
    """Address of a JupyterLab on a copy of the notebooks, which it may save; it reads no settings of the user's own."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    env = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "XDG_", "IPYTHON"))}
    env |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "JUPYTER_PREFER_ENV_PATH": "1"}
    port = free_port(8988)
    log = notebook_runs / "logs" / "browser-jupyterlab.log"
    with open(log, "w") as file:
        arguments = [*command(tmp_path / "notebooks", port), f"--IdentityProvider.token={TOKEN}"]
        server = subprocess.Popen(arguments, cwd=tmp_path, env=env, stdout=file, stderr=subprocess.STDOUT)
    try:
        home = f"http://127.0.0.1:{port}"
        wait_for(f"{home}/api?token={TOKEN}", server, log)
        yield f"{home}/lab/tree/05_infer.ipynb?token={TOKEN}"
    finally:
        server.terminate()
        server.wait(60)


def wait_for(url, server, log):
    for _ in range(600):
        assert server.poll() is None, f"JupyterLab ended at once:\n{log.read_text()[-3000:]}"
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(url).close()
        time.sleep(0.1)
    pytest.fail(f"JupyterLab does not answer:\n{log.read_text()[-3000:]}")


def test_a_question_is_answered_in_the_browser(browser, address, notebook_runs):
    from playwright.sync_api import sync_playwright

    requests = []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser)
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        page.on("request", lambda request: requests.append(request.url))
        page.on("websocket", lambda socket: requests.append(socket.url))
        try:
            use(page, address)
        finally:
            page.screenshot(path=notebook_runs / "browser.png")
            chromium.close()
    hosts = {urlsplit(url).hostname for url in requests if not url.startswith(("data:", "blob:"))}
    assert hosts == {"127.0.0.1"}


def use(page, address):
    from playwright.sync_api import expect

    expect.set_options(timeout=60_000)
    page.goto(address)
    expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    waiting = page.get_by_text("[*]:", exact=True)
    expect(waiting).not_to_have_count(0)
    expect(waiting).to_have_count(0, timeout=300_000)
    errors = page.locator('[data-mime-type="application/vnd.jupyter.stderr"]').all_inner_texts()
    button = page.get_by_role("button", name="Ask", exact=True)
    expect(button, "\n".join(["there is no chat cell", *errors])).to_be_visible(timeout=10_000)
    box = page.locator(".widget-vbox").filter(has=button)
    adapter, question = box.get_by_label("Adapter"), box.get_by_label("Question")
    turn, status = box.locator(".widget-html-content").all()
    expect(turn).to_contain_text(ANSWER)  # the example's
    expect(page.locator(".Toastify__toast")).to_have_count(0)  # JupyterLab's question about news

    turn.evaluate(WATCH)
    question.fill("What should I pack for Lisbon?")
    button.click()
    expect(turn).to_contain_text("(adapter: travel)What should I pack for Lisbon?")
    expect(button).to_be_enabled()
    expect(status).to_have_text(SPEED)
    seen = [text.partition("Answer")[2].strip() for text in page.evaluate("window.seen") if "Lisbon?" in text]
    assert len(set(seen)) >= 5 and all(map(str.startswith, seen[1:], seen)), seen

    adapter.select_option("none")
    question.press("Enter")
    expect(turn).to_contain_text("(adapter: none)What should I pack for Lisbon?")
    expect(question).to_be_focused()
    expect(turn).to_contain_text(ANSWER)
    expect(status).to_have_text(SPEED)

    question.fill("and why " * 2000)
    button.click()
    expect(status).to_have_text(re.compile(r"The question is \d+ tokens too long. Shorten it and ask again."))
    question.fill("")
    button.click()
    expect(status).to_have_text("Type a question first.")
    expect(button).to_be_enabled()
