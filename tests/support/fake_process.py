"""The real processes with a fake engine: `python -m tests.support.fake_process server|worker`.

The engine's script comes from FAKE_ENGINE, a JSON object of FakeEngine's arguments; `load_s` delays loading,
`load_error` fails it, `break_after_s` makes the engine unhealthy.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import TYPE_CHECKING

import inference.__main__ as server
from inference import runpod_worker
from inference.engine.types import CheckpointError, EngineError
from tests.support.fake_engine import FakeEngine

if TYPE_CHECKING:
    from inference.settings import InferenceSettings


def open_fake(_: InferenceSettings) -> FakeEngine:
    script = json.loads(os.environ.get("FAKE_ENGINE", "{}"))
    time.sleep(script.pop("load_s", 0))
    if error := script.pop("load_error", None):
        raise CheckpointError(error)
    break_after_s = script.pop("break_after_s", None)
    script["failures"] = {prompt: EngineError(text) for prompt, text in script.pop("failures", {}).items()}
    engine = FakeEngine(**script)
    if break_after_s is not None:
        threading.Timer(break_after_s, setattr, (engine, "healthy", False)).start()
    return engine


if __name__ == "__main__":
    kind = sys.argv.pop(1)
    sys.exit((runpod_worker.main if kind == "worker" else server.main)(open_fake))
