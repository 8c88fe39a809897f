"""Every notebook survives being played with: cells twice, backwards, from the middle, and edited.

On the default model and on real products, made of a few records in two training steps.
"""

import json
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
from labs import ROOT, Player, notebook_of, run_lab

from labkit.course import LABS
from labkit.products import Products


class Edit(NamedTuple):
    """A text of one cell, what it becomes, and a text of the cell whose output must follow."""

    old: str
    new: str
    follows: str


EDITS = {
    "01": (
        Edit(
            "output.logits[:, -1:].argmax(-1)", "output.logits[:, -1:].argmin(-1)", "QUESTION = "
        ),
        Edit("return 100 * sum(name in known", "return 10 * sum(name in known", "HONEST, NO_"),
    ),
    "02": (
        Edit(
            "return ((line - zero) * step)",  # 16 lines; and then 4, as if 2 bits stored them
            "return ((5 * (line / 5).round() - zero) * step)",
            'lab.record("eval_loss", rtn_int4=rtn)',
        ),
        Edit("100 * (difference.norm()", "50 * (difference.norm()", "largest, middle_scale = "),
    ),
    "03": (Edit("self.scale * added", "0 * added", "student = sharing_weights("),),
    "04": (
        Edit(
            "return labkit.record_losses(logits, tokenizer, records)",
            "return labkit.record_losses(lambda *rows: logits(*rows) / 2, tokenizer, records)",
            "awq_losses, lora_losses = (",
        ),
    ),
    "05": (
        Edit(
            "yield pieces.decode(generator.get_next_tokens()[0])",
            "yield pieces.decode(generator.get_next_tokens()[0]).upper()",
            "compared = []",
        ),
        Edit("first_ids].argmax(-1)", "first_ids].argmin(-1)", 'lab.record("tone_accuracy"'),
        Edit(
            'return bool(re.match(r".{2,60}, in short',
            'return not bool(re.match(r".{2,60}, in short',
            'lab.record("answers_style"',
        ),
    ),
    "06": (
        Edit(
            "genai_tokenizer.decode(ids).strip()",
            'genai_tokenizer.decode(ids) + "!"',
            "messages = ",
        ),
    ),
}


# ---- the game


def play(player: Player) -> list[dict[int, str]]:
    """Each cell twice, then all backwards, then all but the first once more; what each printed.

    Of the first and of the last of these; errors are in ``player.errors``.
    """
    there = range(len(player.cells))
    first = {}
    for index in there:
        player.run(index, "forwards")
        first[index] = player.run(index, "forwards, a second time")
    player.run_all(reversed(there), "backwards")
    return [first, player.run_all(there[1:], "on from the second cell")]


def play_edit(player: Player, edit: Edit, before: list[dict[int, str]]) -> None:
    """Edits a cell and runs those below: the figure follows, and changes by nothing else."""
    target = player.find(edit.follows)
    at = player.edit(edit.old, edit.new)
    assert at <= target, "the cell that must follow is above the edited one"
    first, last = (printed.get(target) for printed in before)
    assert first == last, f"the output is another one each time:\n{first}\n{last}"
    after = player.run_all(range(at, target + 1), "after an edit")[target]
    assert after != last, f"{edit.new!r} changed nothing: {after}"
    player.edit(edit.new, edit.old)
    player.run_all(range(at, target + 1), "after the edit was undone")


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    """The settings of a run of its own, on the first cities of the labs' data."""
    work = tmp_path_factory.mktemp("play")
    records = [json.loads(line) for line in (ROOT / "data" / "travel.jsonl").open()]
    cities = list(dict.fromkeys(record["destination"] for record in records))
    few = [record for record in records if record["destination"] in cities[:8]]
    (work / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in few))
    return {
        "LAB_PROFILE": "cpu",
        "LAB_DATA": str(work / "data.jsonl"),
        "LAB_STEPS": "2",
        "LAB_RUNS": str(work / "runs"),
    }


def ready(number: str, settings: dict[str, str], tmp_path) -> None:
    """Runs those of the labs before *number* whose products are missing."""
    products = Products(Path(settings["LAB_RUNS"]) / "cpu")
    for earlier in LABS:
        if earlier < number and not products.is_current(LABS[earlier].makes[-1]):
            run_lab(earlier, settings, tmp_path)


@pytest.mark.slow  # minutes for each
@pytest.mark.parametrize("number", LABS)
def test_a_notebook_may_be_played_with(number, table, tmp_path):
    ready(number, table, tmp_path)
    with Player(notebook_of(number), table, ROOT / "notebooks") as player:
        printed = play(player)
        for edit in EDITS.get(number, ()):
            play_edit(player, edit, printed)
    assert not player.errors, "\n".join(player.errors)


# ---- that the game is hard enough: a small notebook with what must not be

GOOD = [
    "factor = 2\nwith open('log.txt', 'a') as log:\n    log.write('once more')",
    "def double(x):\n    return factor * x",
    "total = double(21)\nprint(total)",
    "print('sum', total + 1)",
]


@pytest.fixture
def sample(tmp_path):
    """A function that makes a player of a notebook with these cells."""

    def make(*sources):
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        for cell in cells:
            cell.metadata["tags"] = ["checkpoint"] if "checkpoint" in cell.source else []
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "sample.ipynb")
        return Player(tmp_path / "sample.ipynb", {}, tmp_path)

    return make


def test_the_game_is_won_by_plain_cells(sample, tmp_path):
    with sample(*GOOD) as player:
        printed = play(player)
        play_edit(player, Edit("factor * x", "10 * factor * x", "print('sum'"), printed)
    assert not player.errors
    assert printed[0][3] == printed[1][3] == "sum 43\n"
    assert (tmp_path / "log.txt").read_text().count("once more") == 3


@pytest.mark.parametrize(
    ("cells", "when"),
    [
        # it destroys what it needs
        (["a = [1]", "a.pop()"], "forwards, a second time: cell 1"),
        # a name that another cell gives to another kind of thing
        (["def f():\n    return 1", "f()", "f = {}"], "backwards: cell 1"),
        # a later cell takes what an earlier needs, and the cell that made it is not run again
        (["a = 1", "import os\nb = a", "del b", "os"], "forwards, a second time: cell 2"),
        (["import os\nos.fail = 0", "if os.fail: 1 / 0", "os.fail += 1"], "backwards: cell 1"),
    ],
)
def test_the_game_finds_a_cell_that_cannot_be_run_again(sample, cells, when):
    with sample(*cells) as player:
        play(player)
    assert any(error.startswith(when) for error in player.errors), player.errors


def test_only_a_checkpoint_that_judges_knowledge_may_fail(sample):
    raises = "from labkit.errors import LabError\nraise LabError('checkpoint {} failed: {}: no.')"
    for claim in (("1.4", "loss below an even guess"), ("1.4", "all is well"), ("9.9", "x")):
        with sample(raises.format(*claim)) as player:
            player.run(0, "once")
        assert bool(player.errors) == (claim[1] != "loss below an even guess")


CACHED = [
    "cache = {}",
    "def double(x):\n    return 2 * x",
    "total = cache.setdefault('total', double(21))\nprint(total)",
]
NOISE = ["import random", "def double(x):\n    return 2 * x", "print(double(random.random()))"]


@pytest.mark.parametrize(
    ("cells", "said"), [(CACHED, "changed nothing"), (NOISE, "another one each time")]
)
def test_the_game_finds_a_figure_that_does_not_follow_an_edit(sample, cells, said):
    with sample(*cells) as player:
        printed = play(player)
        with pytest.raises(AssertionError, match=said):
            play_edit(player, Edit("2 * x", "3 * x", cells[2].splitlines()[-1]), printed)
