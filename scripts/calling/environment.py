"""The environment as scripts/up would see it: with the checkout's `.env`, and one home from whatever folder."""

from __future__ import annotations

import os
from pathlib import Path

from scripts.supervise.env_file import apply_env_file

ROOT = Path(__file__).resolve().parents[2]
HOME = "IGEN_HOME"
DEFAULT_HOME = "var"


def adopt_environment(*, root: Path = ROOT, enter: bool = False) -> None:
    """Add the lines of `.env`, and make IGEN_HOME absolute: from the caller's folder, else from the checkout.

    With `enter` the checkout becomes the working folder, so that other relative paths mean what they mean there; the
    caller's own paths are to be made absolute before.
    """
    if os.environ.get(HOME):
        os.environ[HOME] = str(Path(os.environ[HOME]).absolute())
    apply_env_file(root / ".env", os.environ)
    os.environ[HOME] = str(root / (os.environ.get(HOME) or DEFAULT_HOME))
    if enter:
        os.chdir(root)
