"""Executes the Dockerfiles' steps without Docker: each RUN in a chroot, one overlay layer an instruction.

    sudo debootstrap --variant=minbase --include=ca-certificates bookworm /var/tmp/igen-debian
    sudo .venv/bin/python -m tests.deploy.run_steps --base /var/tmp/igen-debian

Then starts what was built as its own user on a read-only root, draws a picture and frames a feed with it. As root,
on Linux. The base images themselves are not fetched: a plain Debian 12 stands for them, with its Python 3.11 where
the image brings a Python and its PostgreSQL 15's client for 17's, so that what a base image brings is not tried.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.deploy.drive import drive
from tests.support.dockerfile import expand, health_command, parse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.dockerfile import Instruction, Stage

ROOT = Path(__file__).resolve().parents[2]
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ALONE = "RUN_STEPS_HAS_ITS_OWN_MOUNTS"
PASSED_ON = ("PIP_", "SSL_", "http_proxy", "https_proxy", "no_proxy")
"""Variables of this machine's network settings that a build gets, as Docker hands on its proxy settings."""


@dataclass
class Image:
    """What a stage leaves: its layers, newest last, and what its programs are started with."""

    layers: list[Path]
    environment: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "0:0"
    shell: tuple[str, ...] = ("/bin/sh", "-c")
    command: tuple[str, ...] = ()
    health: tuple[str, ...] = ()
    sizes: list[tuple[str, float]] = field(default_factory=list)


class Builder:
    """Builds one Dockerfile under `work`, from the Debian root at `base`."""

    def __init__(
        self, base: Path, work: Path, arguments: dict[str, str], binds: Sequence[str], *, again: bool = False
    ) -> None:
        self._again = again
        self._base = base
        self._work = work
        self._arguments = arguments
        self._binds = binds
        self._count = 0
        self._stages: dict[str, Image] = {}

    def build(self, file: Path) -> Image:
        """The last stage's image."""
        image = Image([])
        for stage in parse(file):
            print(f"== {file.name}: {stage.name} from {stage.base}")
            image = self._stage(stage)
            self._stages[stage.name] = image
        return image

    def _stage(self, stage: Stage) -> Image:
        image = self._start(stage.base)
        arguments: dict[str, str] = {}
        for step in stage.instructions:
            self._step(image, step, arguments)
        return image

    def _step(self, image: Image, step: Instruction, arguments: dict[str, str]) -> None:
        variables = {**arguments, **image.environment}
        match step.word:
            case "ARG":
                name, _, default = step.text.partition("=")
                arguments[name] = self._arguments.get(name, default.strip('"'))
            case "ENV":
                pairs = [word.partition("=") for word in step.words]
                image.environment |= {name: expand(value, variables) for name, _, value in pairs}
            case "RUN":
                self._run(image, step.text, variables)
            case "COPY":
                self._copy(image, step.words)
            case _:
                _describe(image, step)

    def _start(self, base: str) -> Image:
        if made := self._stages.get(base):
            return Image([*made.layers], {**made.environment}, made.folder, made.user, sizes=[*made.sizes])
        image = Image([self._base], {"PATH": PATH, "LANG": "C.UTF-8"})
        if base.startswith("python:"):
            if not (ready := self._work / "python-base").is_dir():
                script = (
                    "apt-get update && apt-get install -y --no-install-recommends python3.11 python3.11-venv && "
                    "rm -rf /var/lib/apt/lists/* && ln -s python3.11 /usr/bin/python"
                )
                self._run(image, script, {}, "(stands for the base image)")
                image.layers.pop().rename(ready)
                self._count -= 1  # it is not the image's
            image.layers.append(ready)
        image.sizes = [(f"{base} (a stand-in; not counted)", 0.0)]
        return image

    def _layer(self) -> Path:
        self._count += 1
        layer = self._work / f"layer-{self._count:02}"
        shutil.rmtree(layer, ignore_errors=True)
        layer.mkdir(parents=True)
        return layer

    def _is_there(self, image: Image) -> bool:
        """With `--again`, whether an instruction's layer is left from before; it is taken then."""
        layer = self._work / f"layer-{self._count + 1:02}"
        if not self._again or not layer.is_dir():
            return False
        self._count += 1
        image.layers.append(layer)
        return True

    def _run(self, image: Image, script: str, variables: dict[str, str], label: str = "") -> None:
        if self._is_there(image):
            return
        passed = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
        layer = self._layer()
        begun = time.monotonic()
        with Mounted(image.layers, self._work, upper=layer, binds=self._binds) as root:
            command = ["chroot", str(root), *image.shell, f"mkdir -p {image.folder} && cd {image.folder} && {script}"]
            done = subprocess.run(command, env={**passed, **variables, **image.environment}, check=False)
        if done.returncode:
            raise SystemExit(f"RUN {script}\nended with {done.returncode}")
        self._keep(image, layer, label or f"RUN {script}", time.monotonic() - begun)

    def _copy(self, image: Image, words: list[str]) -> None:
        if self._is_there(image):
            return
        layer = self._layer()
        begun = time.monotonic()
        source = words[-2]
        label = f"COPY {' '.join(words)}"
        with Mounted(image.layers, self._work, upper=layer) as root:
            target = root / str(Path(image.folder, words[-1])).lstrip("/")
            if words[0].startswith("--from="):
                origin = self._stages[words[0].removeprefix("--from=")]
                with Mounted(origin.layers, self._work, name="from") as other:
                    _copy_into(other / source.lstrip("/"), target)
            else:
                _copy_into(ROOT / source, target)
        self._keep(image, layer, label, time.monotonic() - begun)

    @staticmethod
    def _keep(image: Image, layer: Path, label: str, seconds: float) -> None:
        size = int(subprocess.check_output(["du", "-sxm", layer]).split()[0])
        image.layers.append(layer)
        image.sizes.append((label, size))
        print(f"   {size:6} MB {seconds:6.1f} s  {label[:90]}", flush=True)


def _describe(image: Image, step: Instruction) -> None:
    """An instruction that changes no file."""
    match step.word:
        case "WORKDIR":
            image.folder = step.text
        case "USER":
            image.user = step.text
        case "SHELL":
            image.shell = tuple(step.words)
        case "ENTRYPOINT" | "CMD":
            image.command += tuple(step.words)
        case "HEALTHCHECK":
            image.health = tuple(health_command(step))
        case "VOLUME" | "EXPOSE":
            pass  # nothing to execute while building
        case unknown:
            raise SystemExit(f"{unknown} is not known here")


def _copy_into(source: Path, target: Path) -> None:
    left_out = shutil.ignore_patterns("__pycache__", "*.pyc")  # .dockerignore's
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, ignore=left_out, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)


class Mounted:
    """Layers as one tree for as long as the block lasts, writable with `upper`."""

    def __init__(
        self,
        layers: list[Path],
        work: Path,
        *,
        upper: Path | None = None,
        name: str = "root",
        binds: Sequence[str] = (),
    ) -> None:
        self._layers = layers
        self._upper = upper
        self._root = work / name
        self._scratch = work / f"{name}-scratch"
        self._binds = binds
        self._done: list[Path] = []

    def __enter__(self) -> Path:
        self._root.mkdir(parents=True, exist_ok=True)
        options = "lowerdir=" + ":".join(str(layer) for layer in reversed(self._layers))
        if self._upper:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch.mkdir()
            options += f",upperdir={self._upper},workdir={self._scratch}"
        self._mount("-t", "overlay", "-o", options, "overlay", target=self._root)
        for source in ("/proc", "/dev", *self._binds):
            target = self._root / source.lstrip("/")
            if not target.exists() and Path(source).is_dir():
                target.mkdir(parents=True)
            elif not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.touch()
            self._mount("--bind", source, target=target)
        return self._root

    def add(self, *arguments: str, target: Path) -> None:
        """One more mount, undone with the rest."""
        self._mount(*arguments, target=target)

    def _mount(self, *arguments: str, target: Path) -> None:
        subprocess.run(["mount", *arguments, str(target)], check=True)
        self._done.append(target)

    def __exit__(self, *_: object) -> None:
        for target in reversed(self._done):
            subprocess.run(["umount", "-l", str(target)], check=True)


def main() -> int:
    """Build both images and drive them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="a Debian root, made by debootstrap")
    parser.add_argument("--work", type=Path, default=Path("/var/tmp/igen-images"), help="where layers are kept")
    parser.add_argument(
        "--build-arg", action="append", default=["PYTHON=3.11", "GCC=12", "POSTGRES=15"], metavar="NAME=VALUE"
    )
    parser.add_argument("--bind", action="append", default=["/etc/resolv.conf"], help="path that builds see too")
    parser.add_argument("--again", action="store_true", help="drive what is built already, build what is missing")
    options = parser.parse_args()
    if not os.environ.get(ALONE):
        # mounts of its own, which end with it however it ends: what is left in `--work` is safe to remove
        again = ["unshare", "--mount", sys.executable, "-m", "tests.deploy.run_steps", *sys.argv[1:]]
        return subprocess.run(again, env={**os.environ, ALONE: "1"}, check=False).returncode
    arguments = dict(each.split("=", 1) for each in options.build_arg)
    images = {}
    for name in ("gateway", "gpu"):
        builder = Builder(options.base, options.work / name, arguments, options.bind, again=options.again)
        images[name] = builder.build(ROOT / f"Dockerfile.{name}")
        if not options.again:
            print(f"-- {name}: {sum(size for _, size in images[name].sizes):.0f} MB beside its base image")
    with (
        Mounted(images["gateway"].layers, options.work / "gateway", name="started") as gateway,
        Mounted(images["gpu"].layers, options.work / "gpu", name="started") as gpu,
    ):
        asyncio.run(drive(gateway, images["gateway"], gpu, images["gpu"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
