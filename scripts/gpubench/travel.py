"""What must be brought to a machine that has a GPU, Python and PyTorch's CUDA build, and cannot fetch anything.

The bench is then run in a process that finds nothing else, as it would be there.
"""

from __future__ import annotations

import subprocess
import sys
import zlib
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.gpubench.sdxl import BUNDLED, ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

NEEDED = ("torch", "diffusers", "transformers", "safetensors", "numpy")
THERE_ALREADY = ("torch", "numpy")
FOR_TESTS = ("pytest", "pytest-asyncio", "pytest-timeout", "aiohttp", "pydantic-settings", "pillow", "runpod")
OURS = ("scripts.bench_gpu", "scripts.gpubench", "inference.engine")
OURS_ABOVE = ("scripts", "inference")
NOT_OURS = ("models", "gateway", "compositor", "tests")
TIMEOUT_S = 600
MB = 1e6


def show() -> int:
    """Print what travels and run the bench without the rest; the process's exit code."""
    there = closure(THERE_ALREADY)
    carried = sorted(closure(NEEDED) - there)
    print(f"There already, with what they need: {', '.join(THERE_ALREADY)}\n")
    total = _print_packages("To carry as wheels, for the machine's own Python", carried)
    own = list(own_files())
    size = sum(path.stat().st_size for path in own)
    print(f"\nOf this repository: {len(own)} files, {size / MB:.1f} MB")
    for folder in ("inference/engine", "inference/checkpoints/tiny", "scripts/gpubench"):
        there_size = sum(path.stat().st_size for path in own if path.is_relative_to(ROOT / folder))
        print(f"  {folder}: {there_size / MB:.2f} MB")
    print(f"\nIn all about {(total + size) / MB:.0f} MB; weights are made there at random, none travel.")
    _print_packages("\nFor tests/gpu in addition", sorted(closure(FOR_TESTS) - closure(NEEDED)))
    print("\nThe bench with only these, on a CPU:", flush=True)
    return try_here(("--tiny", "--no-cold-start", "--batches", "1", "--only", "plain"))


def _print_packages(title: str, names: Sequence[str]) -> float:
    print(f"{title}:")
    total = 0.0
    for name in names:
        size = packed_size(name)
        total += size
        print(f"  {name}=={metadata.version(name)}".ljust(44), f"{size / MB:7.1f} MB")
    print(f"  about {total / MB:.0f} MB")
    return total


def closure(names: Iterable[str]) -> set[str]:
    """The distributions and all that they need, as installed here; what is not installed here is left out."""
    from packaging.requirements import Requirement  # noqa: PLC0415 - comes with transformers
    from packaging.utils import canonicalize_name  # noqa: PLC0415 - as above

    found: set[str] = set()
    waiting = [canonicalize_name(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        wanted = (each for each in map(Requirement, needs) if not each.marker or each.marker.evaluate({"extra": ""}))
        waiting.extend(canonicalize_name(each.name) for each in wanted)
    return found


def packed_size(name: str) -> float:
    """Bytes of a distribution's files, each packed as in a wheel."""
    files = metadata.files(name) or []
    paths = (Path(str(file.locate())) for file in files if "__pycache__" not in str(file))
    return float(sum(len(zlib.compress(path.read_bytes(), 1)) for path in paths if path.is_file()))


def own_files() -> Iterable[Path]:
    """The repository's files that the bench reads."""
    yield from (ROOT / "inference" / "__init__.py", ROOT / "scripts" / "__init__.py")
    yield ROOT / "scripts" / "bench_gpu.py"
    yield from sorted((ROOT / "inference" / "engine").glob("*.py"))
    yield from sorted((ROOT / "scripts" / "gpubench").glob("*.py"))
    yield from sorted(path for path in (BUNDLED / "tiny").rglob("*") if path.is_file())


def try_here(arguments: Sequence[str]) -> int:
    """Run the bench in a process that finds only what travels; its exit code."""
    packages = closure(NEEDED)
    narrowing = f"narrow({sorted(modules_of(packages))!r}, {sorted(packages)!r})"
    code = f"from scripts.gpubench.travel import narrow; {narrowing}; from scripts.bench_gpu import main"
    command = [sys.executable, "-c", f"{code}; raise SystemExit(main({list(arguments)!r}))"]
    return subprocess.run(command, cwd=ROOT, check=False, timeout=TIMEOUT_S).returncode


def modules_of(names: Iterable[str]) -> set[str]:
    """The top-level modules of distributions."""
    wanted = set(names)
    found = metadata.packages_distributions()
    return {module for module, owners in found.items() if wanted & {_normal(owner) for owner in owners}}


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def narrow(modules: Iterable[str], packages: Iterable[str]) -> None:
    """From now on this process finds nothing but these, the standard library and what the bench is made of."""
    finder = NarrowFinder(modules, packages)
    sys.meta_path[:] = [finder if entry is PathFinder else entry for entry in sys.meta_path]


class NarrowFinder:
    """Finds as Python does, and what is not to be there it does not find, as if it were not installed."""

    def __init__(self, modules: Iterable[str], packages: Iterable[str]) -> None:
        self._modules = {*modules, *sys.stdlib_module_names, "_distutils_hack"}
        self._packages = set(packages)

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        return PathFinder.find_spec(name, path, target) if self.finds(name) else None

    def finds(self, name: str) -> bool:
        """Whether a module is to be there."""
        top = name.partition(".")[0]
        if top in NOT_OURS:
            return False
        if top in OURS_ABOVE:
            return name in OURS_ABOVE or any(f"{name}.".startswith(f"{own}.") for own in OURS)
        return top in self._modules or top.startswith(("_sysconfigdata", "__editable__"))

    def find_distributions(self, context: Any = None) -> Iterator[metadata.Distribution]:
        """As PathFinder's, for `importlib.metadata`: libraries look there whether others are installed."""
        found = PathFinder.find_distributions(context) if context else PathFinder.find_distributions()
        yield from (each for each in found if _normal(each.metadata["Name"] or "") in self._packages)

    def invalidate_caches(self) -> None:
        """See `importlib.abc.MetaPathFinder`."""
        PathFinder.invalidate_caches()
