"""GPU types to serverless pools: people name types, an endpoint takes pools (`ADA_24`) and what to leave out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scripts.deploying.errors import DeployError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

DOCUMENTED: Mapping[str, tuple[str, ...]] = {
    "AMPERE_16": (
        "NVIDIA RTX A4000",
        "NVIDIA RTX A4500",
        "NVIDIA RTX 4000 Ada Generation",
        "NVIDIA RTX 2000 Ada Generation",
    ),
    "AMPERE_24": ("NVIDIA L4", "NVIDIA RTX A5000", "NVIDIA GeForce RTX 3090"),
    "ADA_24": ("NVIDIA GeForce RTX 4090",),
    "AMPERE_48": ("NVIDIA RTX A6000", "NVIDIA A40"),
    "ADA_48_PRO": ("NVIDIA L40", "NVIDIA L40S", "NVIDIA RTX 6000 Ada Generation"),
    "AMPERE_80": ("NVIDIA A100 80GB PCIe", "NVIDIA A100-SXM4-80GB"),
    "ADA_80_PRO": ("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA H100 NVL"),
    "HOPPER_141": ("NVIDIA H200",),
}
"""RunPod's documented pools, for a dry run without a key; a deployment asks RunPod's catalogue instead."""


@dataclass(frozen=True)
class Selection:
    """What an endpoint takes: workers run on every type of `pools` but the `excluded` ones."""

    pools: tuple[str, ...]
    excluded: tuple[str, ...]


def pools_of(catalogue: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Types by pool, from the `gpus` of RunPod's catalogue; types outside every pool are left out."""
    found: dict[str, list[str]] = {}
    for gpu in catalogue:
        if isinstance(pool := gpu.get("pool"), str) and pool:
            found.setdefault(pool, []).append(str(gpu["id"]))
    return {pool: tuple(types) for pool, types in found.items()}


def select(wanted: Sequence[str], pools: Mapping[str, Sequence[str]]) -> Selection:
    """Pools for types and pools, in the order wanted; a pool named by its types alone loses its other types.

    Raises:
        DeployError: a name is neither a pool nor a type that serverless offers.

    """
    chosen: dict[str, set[str]] = {}
    for name in wanted:
        pool, types = _find(name, pools)
        chosen.setdefault(pool, set()).update(types)
    excluded = [gpu for pool, kept in chosen.items() for gpu in pools[pool] if gpu not in kept]
    return Selection(tuple(chosen), tuple(excluded))


def _find(name: str, pools: Mapping[str, Sequence[str]]) -> tuple[str, Sequence[str]]:
    asked = name.strip().casefold()
    for pool, types in pools.items():
        if pool.casefold() == asked:
            return pool, types
        for gpu in types:
            # "RTX 4090" and "H100 PCIe" are how people call what RunPod calls "NVIDIA GeForce RTX 4090"
            if asked in (gpu.casefold(), gpu.casefold().removeprefix("nvidia ").removeprefix("geforce ")):
                return pool, (gpu,)
    known = "; ".join(f"{pool} ({', '.join(types)})" for pool, types in pools.items())
    raise DeployError(f"RunPod serverless has no GPU type or pool '{name}'. There are: {known}.")
