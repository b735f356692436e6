from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(tmp_path_factory.mktemp("igen"))
    try:
        made.start()
        yield made
    finally:
        code = made.stop()
    assert code == 0, made.output
