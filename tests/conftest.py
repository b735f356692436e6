"""What all tests share: signals as in a terminal, and the checks that only a GPU can make.

The latter are left out where there is no GPU, and the summary says so. They are not skipped: nothing that can be
installed would make them run. Each of them whose question makes sense on a CPU has a twin there, which always runs.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable


def pytest_configure() -> None:
    """A shell's background job ignores Ctrl-C and so would every program that a test starts and interrupts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


LEFT_OUT = pytest.StashKey[int]()
KEY = "gpu_left_out"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
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
