"""The house's own rules: who imports whom, what lies where, and that the papers say what the code does."""

from __future__ import annotations

import ast
import os
import re
import stat
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest

from scripts import env_example, pin

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("models", "inference", "gateway", "compositor", "scripts")
TOP_LEVEL = {
    # fixed by the design
    *("inference", "gateway", "compositor", "models", "scripts", "tests", "pyproject.toml", "README.md"),
    *("Dockerfile.gpu", "Dockerfile.gateway", "runpod.toml", "compose.yaml", ".runpod"),
    *("docs", "CHANGELOG.md", "LICENSE", "constraints.txt", ".env.example"),
    # the usual dot files
    *(".ci", ".gitignore", ".dockerignore", ".gitattributes"),
}
ENGINE_MAY_IMPORT = {"torch", "diffusers", "transformers", "safetensors", "numpy", "inference", "xformers"}
ENGINE_MAY_IMPORT_OF_OURS = "inference.engine"
VERSION_IS_ANOTHERS = {"huggingface-hub", "pydantic-core"}
"""Parts of diffusers and of pydantic, which ask for the one version that fits."""

BEHAVIOURS = {
    # tests of what several modules do together
    "compositor/feed/test_memory",
    "compositor/test_crash_recovery",
    "compositor/test_whole_runs",
    "gateway/test_idempotency",
    "gateway/test_recovery",
    "inference/engine/test_pretend_card",
    "gateway/test_sweeping_beside_runs",
    "inference/test_endurance",
    "inference/test_features",
    "inference/test_reproducibility",
    "inference/test_runpod_client",
}
# written in pieces, so that this file passes its own test
REGISTRY_HOSTS = ("py" + "pi.org", "python" + "hosted.org", "registry.npm" + "js.org", "deb.deb" + "ian.org")
FORBIDDEN_TEXT = (
    *REGISTRY_HOSTS,
    "download.py" + "torch.org",
    "/wo" + "rk/",
    "/tmp/ba" + "sh_jobs",
    "/opt/wh" + "eels",
)


@cache
def tracked() -> tuple[Path, ...]:
    """Files that are, or are about to be, in the repository."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    return tuple(path for name in listed if name and (path := ROOT / name).is_file())


def text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def modules_of(package: str) -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] == package]


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
    return found


def test_import_contracts() -> None:
    code = (
        "import sys; from importlinter.cli import lint_imports_command as lint; sys.argv[1:] = ['--no-cache']; lint()"
    )
    command = [sys.executable, "-c", code]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout


def test_the_engine_imports_only_what_it_may() -> None:
    for path in modules_of("inference"):
        if path.parent.name != "engine":
            continue
        for name in imports_of(path):
            top = name.partition(".")[0]
            assert top in sys.stdlib_module_names | ENGINE_MAY_IMPORT, f"{path.name} imports {name}"
            assert top != "inference" or name.startswith(ENGINE_MAY_IMPORT_OF_OURS), f"{path.name} imports {name}"


@pytest.mark.parametrize(
    "module", ["inference.app", "inference.__main__", "gateway.app", "scripts.supervise.__main__"]
)
def test_importing_a_program_does_not_load_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("IGEN_")}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)


def test_every_third_party_import_is_declared() -> None:
    declared = set(pin.declared())
    names = packages_distributions()
    for package in (*PACKAGES, "tests"):
        for path in modules_of(package):
            for name in imports_of(path):
                top = name.partition(".")[0]
                if top in sys.stdlib_module_names or top in (*PACKAGES, "tests"):
                    continue
                distributions = {pin.canonicalize_name(name) for name in names.get(top, [top])}
                assert distributions & (declared | VERSION_IS_ANOTHERS), f"{path.relative_to(ROOT)} imports {top}"


def test_constraints_pin_everything_as_installed() -> None:
    pins = pin.read_pins()
    closure, missing = pin.closure()
    assert missing <= pin.OPTIONAL, "run scripts/test, which installs everything"
    assert set(closure) <= set(pins)
    assert {name: pins[name] for name in closure} == closure
    assert set(pin.declared()) <= set(pins), "each declared package has a pin, installed here or not"
    assert version("torch").partition("+")[0] == pins["torch"]


def test_nothing_else_lies_at_the_top() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in tracked()} <= TOP_LEVEL


def test_each_command_has_a_wrapper_of_two_lines() -> None:
    commands = {path.stem for path in (ROOT / "scripts").glob("*.py")} - {"__init__"}
    files = {path.name for path in tracked() if path.parent == ROOT / "scripts" and not path.suffix}
    assert files == commands | {"up", "test"}
    for name in commands:
        wrapper = (ROOT / "scripts" / name).read_text()
        assert wrapper.startswith("#!/bin/sh\n")
        assert wrapper.count("\n") == 2
        assert f"-m scripts.{name} " in wrapper


def test_programs_are_executable_and_valid_shell() -> None:
    for path in (ROOT / ".ci" / "run", *(ROOT / "scripts").glob("*")):
        if path.suffix or path.is_dir():
            continue
        assert path.stat().st_mode & stat.S_IXUSR, path
        shell = "bash" if "bash" in path.read_text().splitlines()[0] else "sh"
        subprocess.run([shell, "-n", path], check=True)


def test_test_modules_mirror_the_code() -> None:
    for package in PACKAGES:
        for path in (ROOT / "tests" / package).rglob("test_*.py"):
            relative = path.relative_to(ROOT / "tests").with_suffix("")
            if str(relative) in BEHAVIOURS:
                continue
            folder = ROOT / relative.parent
            name = path.stem.removeprefix("test_")
            first, _, rest = name.partition("_")
            candidates = [
                folder / name,
                folder / f"{name}.py",
                folder / f"__{name}__.py",
                folder / first / f"{rest}.py",
            ]
            assert any(candidate.exists() for candidate in candidates), f"{relative} mirrors no module"


def test_no_file_names_a_registry_or_a_machine() -> None:
    found = [(path.name, text) for path in tracked() for text in FORBIDDEN_TEXT if text in text_of(path)]
    assert found == []


def test_readme_table_and_env_example_are_those_of_the_settings_classes() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert env_example.with_table(readme) == readme, "run scripts/env_example"
    assert (ROOT / ".env.example").read_text(encoding="utf-8") == env_example.env_example(), "run scripts/env_example"


def test_a_variable_that_is_read_by_several_programs_means_one_thing() -> None:
    types: dict[str, set[str]] = {}
    for program, kind in env_example.GROUPS:
        for field, info in kind.model_fields.items():
            assert info.description, f"{program}: {field} has no description"
            types.setdefault(field, set()).add(env_example._default(info))
    # the supervisor takes an empty value where the others know the default themselves
    different = {field: values - {""} for field, values in types.items() if len(values - {""}) > 1}
    assert different == {}


def test_every_variable_that_is_spoken_of_exists() -> None:
    known = {variable.name for variable in env_example.variables()}
    for path in tracked():
        if path.relative_to(ROOT).parts[0] == "tests":
            continue
        spoken = set(re.findall(r"\bIGEN_[A-Z][A-Z0-9_]*[A-Z0-9]\b", text_of(path)))
        assert spoken <= known, f"{path.relative_to(ROOT)} speaks of {spoken - known}"


def test_readme_links_lead_somewhere() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in readme.splitlines()
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", readme):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif not target.startswith("https://"):
            assert (ROOT / target).is_file(), target


def test_readme_has_no_unfilled_place() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "<!-- measured" not in readme
    assert "<!-- first answer" not in readme


def test_package_metadata_matches_the_changelog() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"\n## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()
