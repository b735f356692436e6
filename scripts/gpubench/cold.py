"""From a folder of weights to the first picture, in a process of its own: files from disk, then from memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.gpubench.sdxl import BUNDLED, ROOT

if TYPE_CHECKING:
    from scripts.gpubench.sdxl import Models

FULL_SIZE = 1024
SPARE_BYTES = 2_000_000_000
TIMEOUT_S = 900


def write_folder(models: Models, folder: Path) -> None:
    """A checkpoint as diffusers writes one. The tokenizers are the bundled checkpoint's."""
    models.unet.save_pretrained(folder / "unet")
    models.vae.save_pretrained(folder / "vae")
    models.encoders[0].save_pretrained(folder / "text_encoder")
    models.encoders[1].save_pretrained(folder / "text_encoder_2")
    # without igen.json a checkpoint is drawn at 1024x1024, which the bundled one is not
    for name in (
        "tokenizer",
        "tokenizer_2",
        "model_index.json",
        *(("igen.json",) if models.size < FULL_SIZE else ()),
    ):
        source = BUNDLED / "tiny" / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(dict(models.scheduler)))


def measure(models: Models, *, compile_mode: str = "auto") -> dict[str, Any]:
    """Seconds of each part of a start. Needs room on the disk for the weights."""
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as made:
        home = Path(made)
        free, needed = shutil.disk_usage(home).free, models.weight_bytes + SPARE_BYTES
        if free < needed:
            return {"skipped": f"{free / 1e9:.1f} GB of disk are free, {needed / 1e9:.1f} are needed"}
        folder = home / "checkpoints" / "random"
        folder.mkdir(parents=True)
        write_folder(models, folder)
        starts = {}
        for name in ("cold", "again"):
            if name == "cold":
                _drop_from_memory(folder)
            starts[name] = _start(folder, home, str(models.device), compile_mode)
        return {"compile": compile_mode, **starts}


def _drop_from_memory(folder: Path) -> None:
    """Ask that the files be read from the disk again; a kernel may ignore it."""
    os.sync()
    for path in folder.rglob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _start(folder: Path, home: Path, device: str, compile_mode: str) -> dict[str, Any]:
    words = ["--start", str(folder), "--home", str(home), "--compile", compile_mode]
    command = [sys.executable, "-m", "scripts.bench_gpu", *words, "--device", device]
    started = time.perf_counter()
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    if answer.returncode:
        return {"failed": answer.stderr.strip().rsplit("\n", maxsplit=1)[-1]}
    found: dict[str, Any] = json.loads(answer.stdout.strip().rsplit("\n", maxsplit=1)[-1])
    return {**found, "process_s": time.perf_counter() - started}


def start_once(folder: Path, home: Path, device: str, compile_mode: str) -> dict[str, float]:
    """What the process does that `measure` starts: import, load, first picture."""
    began = time.perf_counter()
    from inference.engine.factory import EngineOptions, open_engine  # noqa: PLC0415 - the import is what is timed
    from inference.engine.libraries import quiet_libraries  # noqa: PLC0415

    quiet_libraries()
    imported = time.perf_counter()
    options = EngineOptions(
        str(folder), device=device, compile=compile_mode, compile_cache=home / "cache", max_batch=1
    )
    engine = open_engine(options)
    ready = time.perf_counter()
    engine.close()
    return {"import_s": imported - began, "ready_s": ready - imported}
