"""What this server draws with and what it accepts, for `/info`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from inference.engine.types import UnknownCheckpointError
from inference.pictures import MEDIA_TYPES
from models.wire_fields import STYLES_MAX
from models.wire_input import LORAS_MAX

if TYPE_CHECKING:
    from inference.bounds import Bounds
    from inference.engine.types import Engine, EngineInfo
    from inference.styles import Styles


def describe_server(engine: Engine, styles: Styles, bounds: Bounds, max_waiting: int) -> dict[str, Any]:
    """The body of `/info`. May read files of checkpoints that are not loaded, so it runs on a thread."""
    loaded = engine.info
    return {
        "checkpoint": loaded.checkpoint,
        "checkpoint_sha256": loaded.sha256,
        "demonstration": loaded.demonstration,
        "device": loaded.device,
        "dtype": loaded.dtype,
        "attention": loaded.attention,
        "memory_mode": loaded.memory_mode,
        "levers": dict(loaded.levers),
        "schedulers": list(loaded.schedulers),
        "scheduler_aliases": list(loaded.scheduler_aliases),
        "defaults": asdict(loaded.defaults),
        "checkpoints": {name: _checkpoint(engine, name) for name in engine.checkpoints()},
        "refiners": list(engine.refiners()),
        "loras": list(engine.loras()),
        "styles": list(styles.names()),
        "formats": list(MEDIA_TYPES),
        "bounds": {
            **asdict(bounds),
            "max_waiting": max_waiting,
            "max_loras": LORAS_MAX,
            "max_styles": STYLES_MAX,
        },
        "versions": loaded.versions,
    }


def _checkpoint(engine: Engine, name: str) -> dict[str, Any]:
    """One that is broken says so; the others stay usable."""
    try:
        info: EngineInfo = engine.describe(name)
    except UnknownCheckpointError as problem:
        return {"error": str(problem)}
    return {
        "sha256": info.sha256 or None,
        "demonstration": info.demonstration,
        "schedulers": list(info.schedulers),
        "defaults": asdict(info.defaults),
    }
