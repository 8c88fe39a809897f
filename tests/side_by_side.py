"""All tests on several workers (pytest-xdist), in three phases: unit tests beside one another; the
notebooks alone; what takes their products, beside labs of other runs.

Alone, for they measure speed, and compute on all cores: each of their threads waits for the
slowest, so beside one other program lab 05 took 349 s in the place of 137.
"""

import gc
import os
import tempfile
import time
from pathlib import Path

import pytest

# Each of these takes the products of the notebooks of this test run, and may write beside them.
TAKE_PRODUCTS = (
    "test_browser.py",
    "test_azure_labs.py",
    "test_solutions.py",
    "test_outcome.py",
    "test_graph.py",
    "test_page.py",
    "test_route.py",
    "test_killed.py",
    "test_on_stage.py",
    "test_endpoint.py",
)
READ_PRODUCTS = ("test_serve.py",)  # and writes nothing
RUN_LABS = ("test_play.py", "test_trained.py")  # of their own, or judge a run that is named
# These take longest: taken first, they leave no worker without work at the end of their phase.
FIRST = ("test_phi.py", "test_architectures.py", "test_play.py")
# A minute and more each, on products that other tests have, too: every night, with --all.
SLOW_EXTRAS = ("07", "10", "11", "12", "13", "14", "15")
UNITS, NOTEBOOKS, AFTERWARDS, ENDED = range(4)


def phase(path: Path) -> int:
    """The phase in which the tests of the file *path* are run."""
    if path.suffix == ".ipynb":
        return AFTERWARDS if is_extra(path) else NOTEBOOKS
    afterwards = TAKE_PRODUCTS + READ_PRODUCTS + RUN_LABS
    return AFTERWARDS if path.name in afterwards else UNITS


def is_extra(path: Path) -> bool:
    """Whether *path* is the notebook of an extra, which takes the products of the labs."""
    return path.suffix == ".ipynb" and path.parent.name == "extras"


def pytest_configure(config):
    if workers := getattr(config, "workerinput", None):
        config.pluginmanager.register(Turns(Path(os.environ["LAB_TURNS"]), workers["workerid"]))
    elif config.getoption("tx", default=None):
        turns = tempfile.TemporaryDirectory(prefix="lab-turns-")
        os.environ["LAB_TURNS"] = turns.name
        config.add_cleanup(turns.cleanup)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Unit tests, then the notebooks in order, then what takes their products."""
    for item in items:
        if is_extra(item.path) and item.path.name.startswith(SLOW_EXTRAS):
            item.add_marker("slow")  # before pytest takes those away that are not asked for
    items.sort(key=lambda item: (phase(item.path), item.path.name not in FIRST))


def pytest_collection_finish():
    gc.collect()
    gc.freeze()  # lab.keep collects garbage, and need not look through all that was imported


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """It waits no more, and nobody for it."""
    (Path(os.environ["LAB_TURNS"]) / node.gateway.id).write_text(str(ENDED))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        """A worker takes whole files, in order; one takes all that write to the same folder."""

        def _split_scope(self, nodeid):
            file = Path(nodeid.partition("::")[0])
            if file.name in TAKE_PRODUCTS:
                return "what takes products"
            if is_extra(file):
                return "extras"  # beside the others, for each writes products of its own
            return "notebooks" if file.suffix == ".ipynb" else str(file)

        def remove_node(self, node):
            """The test that ended the worker, if any; what it had left is done next.

            xdist 3.8 hands on all that the worker ever had: another then waits for good for files
            that are finished, and runs again what has just ended a process.
            """
            units = self.assigned_work[node]
            left = {scope: tests for scope, tests in units.items() if not all(tests.values())}
            units.clear()
            super().remove_node(node)
            if not left:
                return None
            at, ended = next(
                (scope, test)
                for scope, tests in left.items()
                for test, done in tests.items()
                if not done
            )
            left[at][ended] = True
            for scope, tests in reversed(left.items()):
                if not all(tests.values()):
                    self.workqueue[scope] = tests
                    self.workqueue.move_to_end(scope, last=False)
            for other in self.assigned_work:
                self._reschedule(other)
            return ended

    config.option.loadscopereorder = False
    return Files(config, log)


class Turns:
    """A worker, which begins a phase when all others have come to it."""

    def __init__(self, folder: Path, worker: str):
        self.folder, self.worker = folder, worker
        self.come_to(UNITS)

    def come_to(self, now: int) -> None:
        self.now = now
        (self.folder / self.worker).write_text(str(now))
        # what starts before the other worker computes cannot see that it will
        settings = {UNITS: {"OMP_NUM_THREADS": "1"}, AFTERWARDS: {"OMP_WAIT_POLICY": "PASSIVE"}}
        for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
            os.environ.pop(name, None)
        os.environ.update(settings.get(now, {}))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item):
        if phase(item.path) == self.now:
            return
        self.come_to(phase(item.path))
        while not self.all_are_there():  # one that hangs is ended: see pyproject.toml
            time.sleep(0.1)

    def all_are_there(self) -> bool:
        # a file that is being written is empty
        return all(int(at.read_text() or 0) >= self.now for at in self.folder.iterdir())
