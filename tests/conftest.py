"""What is collected where, and with how many threads."""

import os

import pytest


def pytest_ignore_collect(collection_path, config):
    """`-m cuda` runs on machines without the evaluation packages, so files without such tests are not even imported."""
    if config.option.markexpr == "cuda" and collection_path.suffix == ".py":
        return "mark.cuda" not in collection_path.read_text() or None
    return None


@pytest.fixture(autouse=True, scope="module")
def threads():
    """As many threads as pay beside whatever else this machine does now; this process's share where there are more."""
    from dlmbench.threads import THREADS, settle

    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
        THREADS.at_most(max((os.cpu_count() or 1) // int(workers), 1))
    settle()
