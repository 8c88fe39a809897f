"""./lab test --quick: what a commit is tried with, in some 90 s on two quiet cores."""

from side_by_side import UNITS, phase

# What is left out, beside the notebooks and what comes after them.
NOT_QUICK = (
    "faults",
    "passes",
    "test_architectures.py",
    "test_azure.py",
    "test_azure_faults.py",
    "test_azure_jobs.py",
    "test_azure_rig.py",
    "test_azure_room.py",
    "test_models.py",
    "test_network.py",
    "test_nightly.py",
    "test_original.py",
    "test_phi.py",
    "test_side_by_side.py",
)


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="the tests of ./lab test --quick")


def pytest_ignore_collect(collection_path, config):
    left_out = phase(collection_path) > UNITS or collection_path.name in NOT_QUICK
    return True if config.getoption("--quick") and left_out else None
