"""What all tests share: signals as in a terminal, the order of the files, and the checks that only a GPU can make.

The latter are left out where there is no GPU, and the summary says so. They are not skipped: nothing that can be
installed would make them run. Each of them whose question makes sense on a CPU has a twin there, which always runs.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable


def pytest_configure() -> None:
    """A shell's background job ignores Ctrl-C and so would every program that a test starts and interrupts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


FOLDER = Path(__file__).parent
LONGEST_FIRST = (
    "scripts/test_bench_ingest.py",
    "deploy/test_topology.py",
    "e2e/test_spine.py",
    "inference/test_endurance.py",
    "compositor/test_whole_runs.py",
    "scripts/test_bench_gpu.py",
    "inference/test_runpod_worker.py",
    "inference/test_reproducibility.py",
    "scripts/test_backup.py",
    "inference/test_main.py",
    "e2e/test_framing.py",
    "e2e/test_requests.py",
    "scripts/test_generate.py",
    "scripts/test_bench_compositor.py",
    "compositor/test_crash_recovery.py",
    "gateway/test_main.py",
    "gpu/test_serving.py",
    "scripts/test_up.py",
    "gateway/test_recovery.py",
    "scripts/test_frame_feed.py",
    "inference/engine/test_engine.py",
    "e2e/test_operators.py",
    "scripts/test_train_tiny.py",
    "inference/engine/test_pool.py",
    "inference/test_runpod_client.py",
)
"""Files that take half a minute or more. The workers share out whole files, and one that began last would keep one
worker busy while the others have nothing left to do."""

LEFT_OUT = pytest.StashKey[int]()
KEY = "gpu_left_out"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    _put_the_longest_first(items)
    _leave_out_what_needs_a_gpu(config, items)


def _put_the_longest_first(items: list[pytest.Item]) -> None:
    places = {FOLDER / name: place for place, name in enumerate(LONGEST_FIRST)}
    if missing := [str(path) for path in places if not path.is_file()]:
        raise pytest.UsageError(f"{__file__} names what is not there: {', '.join(missing)}")
    items.sort(key=lambda item: places.get(item.path, len(places)))  # a stable sort: the others stay as they were


def _leave_out_what_needs_a_gpu(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = [item for item in items if item.get_closest_marker("gpu")]
    if not wanted:
        return
    import torch  # costs seconds, so only where it matters

    if torch.cuda.is_available():
        return
    config.hook.pytest_deselected(items=wanted)
    items[:] = [item for item in items if item not in wanted]
    config.stash[LEFT_OUT] = len(wanted)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Under pytest-xdist the workers collect, and the process that prints does not."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[KEY] = session.config.stash.get(LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    count = getattr(node, "workeroutput", {}).get(KEY, 0)
    node.config.stash[LEFT_OUT] = max(count, node.config.stash.get(LEFT_OUT, 0))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if count := config.stash.get(LEFT_OUT, 0):
        terminalreporter.section("left out", sep="=", yellow=True)
        terminalreporter.write_line(
            f"{count} checks need a CUDA device, and there is none here: "
            "run `python -m pytest tests/gpu -m gpu` where there is one"
        )
    for line in _measured(terminalreporter.stats.get("passed", ())):
        terminalreporter.write_line(line)


def _measured(reports: Iterable[Any]) -> list[str]:
    """What passing checks of tests/gpu measured."""
    return [
        f"{report.nodeid}: {name} = {value}"
        for report in reports
        if report.nodeid.startswith("tests/gpu")
        for name, value in report.user_properties
    ]
