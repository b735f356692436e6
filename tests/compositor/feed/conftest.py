from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def feed_file(tmp_path: Path) -> Callable[[str | bytes], Path]:
    """Writes a feed and gives its path."""

    def write(content: str | bytes, name: str = "feed") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write
