"""In a real browser, in JupyterLab as './lab open' starts it: working copies, links, lab 05's chat
cell, and texts that look like markup.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from urllib.parse import urlsplit

import pytest

from labkit.commands.open import command
from labkit.commands.report import write_report
from labkit.presenting import write_notes, write_slides
from labkit.products import Products
from labkit.profiles import ROOT

INSTALL = (
    "no Chromium or Chrome on the path: 'sudo apt-get install chromium', or any Google Chrome"
)
ANSWER = re.compile(r"Answer\s*\w")
SPEED = re.compile(r"[1-9]\d* tokens, [1-9]\d* tokens/s")
TOKEN = "browser-test"
SLOW_MS = 240_000  # a machine that also does other things
WATCH = """box => {
    window.seen = [];
    const watch = new MutationObserver(() => window.seen.push(box.innerText));
    watch.observe(box, {childList: true, subtree: true});
}"""


@pytest.fixture
def browser():
    """Path of a browser; without one the test is skipped, but fails on a build server."""
    path = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if not path and os.environ.get("CI"):
        pytest.fail(INSTALL, pytrace=False)
    return path or pytest.skip(INSTALL)


@contextlib.contextmanager
def jupyterlab(clone, log, **settings):
    """Address of a notebook in a JupyterLab on the *clone*, without settings of the user."""
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JUPYTER", "XDG_", "IPYTHON"))
    }
    env |= {"HOME": str(clone.parent), "PYTHONPATH": str(ROOT), "JUPYTER_PREFER_ENV_PATH": "1"}
    env |= settings
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with open(log, "w") as file:
        arguments = [*command(clone, port), f"--IdentityProvider.token={TOKEN}"]
        server = subprocess.Popen(
            arguments, cwd=clone, env=env, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(f"{address}/api?token={TOKEN}", server, log)
        yield f"{address}/lab/tree/notebooks/{{}}?token={TOKEN}".format
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:  # JupyterLab has been seen to hang in its own end
            server.kill()
            server.wait()


@pytest.fixture
def clone(tmp_path):
    """A clone without labkit, which the kernel has from PYTHONPATH, as git sees it."""
    clone = tmp_path / "clone"
    for name in ("notebooks", "docs"):
        shutil.copytree(
            ROOT / name,
            clone / name,
            symlinks=True,
            ignore=shutil.ignore_patterns(".ipynb_checkpoints"),
        )
    shutil.copy(ROOT / ".gitignore", clone)
    git(clone, "init", "--quiet")
    git(clone, "add", "--all")
    git(clone, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "-m", "t")
    return clone


def git(clone, *arguments) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=clone, check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture
def address(browser, notebook_runs, clone):
    """Address of lab 05, up to its chat cell, in a JupyterLab on a clone."""
    path = clone / "notebooks" / "05_infer.ipynb"
    book = json.loads(path.read_text())
    at = next(i for i, cell in enumerate(book["cells"]) if "chat_box(" in "".join(cell["source"]))
    del book["cells"][at + 1 :]
    path.write_text(json.dumps(book))
    with jupyterlab(clone, notebook_runs / "logs" / "browser-jupyterlab.log") as address:
        yield address("05_infer.ipynb")


def wait_for(url, server, log):
    for _ in range(SLOW_MS // 100):
        assert server.poll() is None, f"JupyterLab ended at once:\n{log.read_text()[-3000:]}"
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(url).close()
        time.sleep(0.1)
    pytest.fail(f"JupyterLab does not answer:\n{log.read_text()[-3000:]}")


@pytest.fixture
def page(browser):
    """A page of a laptop's size."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=SLOW_MS)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser)
        page = chromium.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(SLOW_MS)
        yield page
        chromium.close()


MINE = "print('mine:', ' '.join(['wordofsixteenchr'] * 20))"
SIDEWAYS = """[...document.querySelectorAll('.jp-Notebook *')]
    .filter(e => ['auto', 'scroll'].includes(getComputedStyle(e).overflowX))
    .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.innerText)"""


def test_what_is_run_and_saved_leaves_the_clone_clean(clone, page, tmp_path):
    from playwright.sync_api import expect

    with jupyterlab(clone, tmp_path / "jupyterlab.log") as address:
        page.goto(address("01_setup.ipynb"))
        expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible()
        cell = page.locator(".jp-CodeCell").first
        cell.locator(".cm-content").click()
        page.keyboard.press("Control+a")
        page.keyboard.type(f"{MINE}  # {'a comment that is too long for a laptop ' * 3}")
        page.keyboard.press("Control+Enter")
        printed = cell.locator(".jp-OutputArea-output pre")
        expect(printed).to_contain_text("mine: wordof")
        assert words(printed) == ["mine:", *["wordofsixteenchr"] * 20]
        assert page.evaluate(SIDEWAYS) == []
        page.keyboard.press("Control+s")
        copy = clone / "runs" / "working" / "01_setup.ipynb"
        wait_until(copy.exists)
        wait_until(lambda: "mine: wordof" in copy.read_text())
        assert git(clone, "status", "--porcelain") == ""
        # JupyterLab asks before it is left, as long as it waits for the answer to its saving
        page.on("dialog", lambda dialog: dialog.accept())
        page.reload()
        expect(page.locator(".jp-CodeCell .cm-content").first).to_contain_text("print('mine:'")
        page.get_by_role("link", name="glossary").first.click()

        def glossary_is_shown():
            # a page that restores its tabs late brings the notebook back to the front
            page.get_by_role("tab", name="GLOSSARY.md").click()
            return page.get_by_role("heading", name="Glossary").is_visible()

        wait_until(glossary_is_shown)


STAGE = [
    "import time\nimport labkit\nfrom labkit.profiles import PROFILES\n"
    "from labkit.progress import report\nfrom labkit.session import Lab\n"
    "from labkit import pictures\nfrom labkit.charts import show_with_alternative_text\n"
    "show_with_alternative_text()\npictures.route('03');",
    "def train(recipe, out):\n"
    "    for step in range(31):\n"
    "        report('steps', step, 30, loss=5 - step / 15)\n"
    "        time.sleep(0.2)\n"
    "    out.write_text('weights')\n\n\n"
    "lab = Lab('03', PROFILES['cpu'])\n"
    "made = lab.keep('lora', train)",
    "made = lab.keep('lora', train)",
    f"# {'x' * 88}",
    "labkit.table([{'question': 'Where to?', 'answer': 'wordofsixteenchr ' * 20}])",
]
POINTS = """element => {  // on a slide of 960 points
    const size = element.tagName == 'IMG'
        ? 13 / 72 * 200 * element.clientWidth / element.naturalWidth
        : parseFloat(getComputedStyle(element).fontSize);
    return size / innerWidth * 960;
}"""
CHART, LARGE = 'img[alt*=" of 30 steps"]', f"one => ({POINTS})(one) >= 17.9"


@pytest.mark.slow
def test_on_stage_all_is_large_and_a_recording_says_that_it_is_one(page, clone, tmp_path):
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
    from playwright.sync_api import expect

    path = clone / "notebooks" / "03_finetune.ipynb"
    book = new_notebook(metadata=json.loads(path.read_text())["metadata"])
    book.cells = [new_markdown_cell("## Step 3: Train\n\nProse of the lab.")]
    book.cells += [new_code_cell(text) for text in STAGE]
    path.write_text(json.dumps(book))
    write_slides(clone)
    write_notes(clone, Products(clone / "runs" / "cpu"))
    page.set_viewport_size({"width": 1280, "height": 720})
    log = tmp_path / "jupyterlab.log"
    with jupyterlab(clone, log, LAB_PRESENT="1", LAB_RUNS=str(clone / "runs")) as address:
        slides = address("03_finetune.ipynb").replace("/lab/tree/", "/doc/tree/")
        page.goto(slides)
        expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible()
        expect(page.get_by_role("heading", name="Step 3: Train")).to_be_visible()
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        outputs = page.locator(".jp-OutputArea-output")
        live = outputs.filter(has_text="RECORDED: lora, ")
        expect(live.locator("progress")).to_be_visible()
        page.wait_for_function(f"() => [...document.querySelectorAll('{CHART}')].some({LARGE})")
        page.screenshot(path=tmp_path / "replay.png")
        said = outputs.filter(has_text="that was a recording of")
        expect(said).to_contain_text("Nothing was made now")
        expect(outputs.filter(has_text="30 steps in 6 s, loss 5.00 to 3.00")).to_have_count(2)
        page.screenshot(path=tmp_path / "stage.png")
        picture = page.locator("img[alt^='The route']")
        assert picture.evaluate(POINTS) >= 17.9
        for text, least in ((".cm-content", 14), ("td pre", 18), (".jp-Notebook h2", 20)):
            assert page.locator(text).first.evaluate(POINTS) >= least, text
        line = page.locator(".cm-line").filter(has_text="x" * 88)
        height = float(line.evaluate("e => parseFloat(getComputedStyle(e).lineHeight)"))
        assert line.bounding_box()["height"] < 1.5 * height  # 90 columns, in one line
        assert page.evaluate(SIDEWAYS) == []
        assert words(page.locator("td pre").last) == ["wordofsixteenchr"] * 20
        assert "Prose of the lab" not in page.content()
        assert "Prose of the lab" in path.read_text()
        page.on("dialog", lambda dialog: dialog.accept())
        notes = "runs/presenting/03_finetune.md"
        page.goto(slides.replace("notebooks/03_finetune.ipynb", notes))
        expect(page.get_by_role("heading", name="speaker notes")).to_be_visible()


def words(element) -> list[str]:
    """The words of *element*, those cut that go over the end of a line."""
    return element.evaluate(
        """pre => {
            const words = [], range = document.createRange(), text = pre.firstChild;
            for (const word of text.data.matchAll(/\\S+/g)) {
                range.setStart(text, word.index);
                range.setEnd(text, word.index + word[0].length);
                const parts = range.getClientRects().length;
                words.push(parts == 1 ? word[0] : `${word[0]} on ${parts} lines`);
            }
            return words;
        }"""
    )


def wait_until(condition):
    for _ in range(SLOW_MS // 100):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("it does not come true")


def test_a_question_is_answered_in_the_browser(page, address, notebook_runs):
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("websocket", lambda socket: requests.append(socket.url))
    try:
        use(page, address)
    finally:
        page.screenshot(path=notebook_runs / "browser.png")
    hosts = {urlsplit(url).hostname for url in requests if not url.startswith(("data:", "blob:"))}
    assert hosts == {"127.0.0.1"}


HOSTILE = [
    '<img src=x onerror="window.ran = 1">',
    "<script>window.ran = 2</script>",
    "</pre></td></table><svg onload='window.ran = 3'>",
    "from $5 to $10, and $$x^2$$",
    r"\(a + b\) and \[c\]",
    r"\begin{align}x\end{align}",
    "&lt;b&gt; **bold** `code` [link](javascript:window.ran=4)",
    "two lines,\n  the second one indented",
    "{{ 7 * 7 }} {% raw %}",
]
CELLS = [
    "import labkit\nfrom labkit.charts import show_with_alternative_text\n"
    "from labkit.errors import LabError",
    f"show_with_alternative_text()\nTEXTS = {HOSTILE!r}",
    "labkit.table([{TEXTS[0]: text, TEXTS[3]: text} for text in TEXTS])",
    "labkit.chat_box(lambda *_: iter(TEXTS), adapters={TEXTS[3]: None}, "
    "example={'prompt': ' '.join(TEXTS)}, room=lambda _: 99)",
    "print(*TEXTS, sep='\\n')",
    "TEXTS",
    "labkit.bars(dict.fromkeys(TEXTS, 1.0), ylabel='$', title='$x_{$ ' + TEXTS[0]);",
    "raise LabError(' '.join(TEXTS))",
]


def test_texts_that_look_like_markup_are_shown_and_run_nothing(page, tmp_path):
    """As an opened notebook that nobody trusts, run in JupyterLab, and in the report."""
    import nbclient
    import nbformat
    from playwright.sync_api import expect

    formula = nbformat.v4.new_markdown_cell(
        "A formula of ours: $a + b$."
    )  # once it is set, so would the others be
    notebook = nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_code_cell, CELLS), formula])
    nbclient.NotebookClient(
        notebook, kernel_name="python3", allow_errors=True, coalesce_streams=True
    ).execute(env=os.environ | {"PYTHONPATH": str(ROOT), "JUPYTER_PREFER_ENV_PATH": "1"})
    home = tmp_path / "brackets [1]::é"  # no glob, and no address of a loader
    executed = home / "notebooks" / "05_infer.ipynb"
    executed.parent.mkdir(parents=True)
    nbformat.write(notebook, executed)
    report = write_report(Products(home))
    page.set_viewport_size({"width": 1280, "height": 4000})
    with jupyterlab(home, tmp_path / "jupyterlab.log") as address:
        page.goto(address("05_infer.ipynb"))
        shown_as_they_are(page, box='[data-mime-type="text/html"]')
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        expect(page.get_by_role("button", name="Ask", exact=True)).to_be_enabled()
        shown_as_they_are(page, box=".widget-vbox")
        page.goto(report.as_uri())
        shown_as_they_are(page, box=None)


def shown_as_they_are(page, *, box):
    """The texts are in table, chat box, printed lines, values and error; the formula is set where
    MathJax is, and no other.
    """
    from playwright.sync_api import expect

    outputs = page.locator(".jp-OutputArea-output")
    expect(outputs.filter(has_text="LabError")).to_have_count(1)
    if box:
        expect(page.locator(".jp-MarkdownOutput mjx-container")).to_have_count(1)
        expect(page.locator(box).filter(has_text="Question")).to_have_count(1)
    page.wait_for_timeout(3000)  # what would run or be set, is by then
    assert page.evaluate("window.ran") is None
    expect(page.locator(".jp-OutputArea-output mjx-container")).to_have_count(0)
    expect(
        page.locator(".jp-OutputArea-output svg, .jp-OutputArea-output img:not([alt])")
    ).to_have_count(0)
    cells = page.locator(".jp-OutputArea-output td").all_inner_texts()
    assert cells == [text for text in HOSTILE for _ in range(2)]
    assert page.locator(".jp-OutputArea-output th").all_inner_texts() == [HOSTILE[0], HOSTILE[3]]
    chat = outputs.filter(has_text="Question").first.inner_text()
    said = outputs.filter(has_text="LabError").inner_text()
    printed = outputs.filter(has_text=HOSTILE[1]).all_inner_texts()
    assert (
        chat.count("".join(HOSTILE)) == 1
        and " ".join(HOSTILE[:4]) in chat
        and " ".join(HOSTILE) in said
    ), (chat, said)
    assert any("\n".join(HOSTILE) in text for text in printed)
    alternative = page.locator("img[alt]").first.get_attribute("alt")
    assert all(text in alternative for text in HOSTILE)


def use(page, address):
    from playwright.sync_api import expect

    page.goto(address)
    expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    waiting = page.get_by_text("[*]:", exact=True)
    expect(waiting).not_to_have_count(0)
    expect(waiting).to_have_count(0)
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
    seen = [
        text.partition("Answer")[2].strip()
        for text in page.evaluate("window.seen")
        if "Lisbon?" in text
    ]
    *growing, whole = dict.fromkeys(seen)  # an answer that reaches its limit is cut at a sentence
    assert len(growing) >= 4 and all(map(str.startswith, growing[1:], growing)), seen
    assert whole.startswith(growing[-1]) or growing[-1].startswith(whole), seen

    adapter.select_option("none")
    question.press("Enter")
    expect(turn).to_contain_text("(adapter: none)What should I pack for Lisbon?")
    expect(question).to_be_focused()
    expect(turn).to_contain_text(ANSWER)
    expect(status).to_have_text(SPEED)

    question.fill("and why " * 2000)
    button.click()
    expect(status).to_have_text(
        re.compile(r"the question takes \d+ of the 512 tokens .* Shorten it by \d+ and ask again.")
    )
    question.fill("")
    button.click()
    expect(status).to_have_text("Type a question first.")
    expect(button).to_be_enabled()
