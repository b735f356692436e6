"""What can be turned to make a checkpoint draw faster, and how each choice is made; free of torch.

A choice is forced by the operator, or read from a table that the GPU benchmark wrote for this device, or measured
when a checkpoint is loaded. What is neither is left at its plain value: nothing is switched on because it usually
helps.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

if TYPE_CHECKING:
    from collections.abc import Mapping

Attention = Literal["sdpa", "cudnn", "flash", "efficient", "xformers"]
"""`sdpa` leaves the kernel to PyTorch; `cudnn`, `flash` and `efficient` are PyTorch's kernels, asked for by name."""
Compile = Literal["off", "regional", "whole"]
"""`regional` compiles the transformer blocks once for all, `whole` the UNet as one graph."""
VaePrecision = Literal["fp32", "fp16"]
"""Of a VAE that overflows in half precision: kept in float32, or rescaled so that it does not; see `half_vae`."""
Origin = Literal["forced", "table", "measured", "plain"]

ATTENTIONS: tuple[str, ...] = get_args(Attention)
COMPILES: tuple[str, ...] = get_args(Compile)
PRECISIONS: tuple[str, ...] = get_args(VaePrecision)


@dataclass(frozen=True, slots=True)
class Levers:
    """What a loaded checkpoint runs with. The defaults are what stock diffusers does."""

    attention: str = "sdpa"
    compile: str = "off"
    cuda_graphs: bool = False
    fused_qkv: bool = False
    vae: str = "fp32"

    @property
    def plain(self) -> bool:
        """Whether the UNet is called as it is."""
        return self.attention in {"sdpa", "xformers"} and not self.cuda_graphs and not self.twin

    @property
    def twin(self) -> bool:
        """Whether a second set of modules over the same weights is needed."""
        return self.compile != "off" or self.fused_qkv

    def named(self) -> dict[str, str]:
        """Each by its name, in the words of the settings."""
        words = {True: "on", False: "off"}
        return {name: words.get(value, value) for name in sorted(NAMES) for value in (getattr(self, name),)}

    def __str__(self) -> str:
        on = [name for name in ("cuda_graphs", "fused_qkv") if getattr(self, name)]
        return ", ".join([f"{self.attention} attention", f"compile {self.compile}", *on, f"VAE {self.vae}"])


@dataclass(frozen=True, slots=True)
class WantedLevers:
    """What an operator forces; `auto` leaves the choice open. `cuda_graphs` and `fused_qkv` are `on` or `off`."""

    attention: str = "auto"
    compile: str = "auto"
    cuda_graphs: str = "auto"
    fused_qkv: str = "auto"
    vae: str = "auto"

    @classmethod
    def exactly(cls, levers: Levers) -> WantedLevers:
        """Forces all of these but the VAE's precision, which hangs on the VAE."""
        words = {True: "on", False: "off"}
        values = {name: getattr(levers, name) for name in NAMES if name != "vae"}
        return cls(**{name: words.get(value, value) for name, value in values.items()})

    def forced(self) -> dict[str, Any]:
        """The levers that are not left open, as `Levers` has them."""
        switches = {"on": True, "off": False}
        named = {name: getattr(self, name) for name in NAMES}
        return {name: switches.get(value, value) for name, value in named.items() if value != "auto"}


NAMES = ("attention", "vae", "fused_qkv", "cuda_graphs", "compile")
"""In the order in which they are measured: the later ones are timed with the earlier ones set."""
ALLOWED: Mapping[str, tuple[Any, ...]] = {
    "attention": ATTENTIONS,
    "compile": COMPILES,
    "cuda_graphs": (True, False),
    "fused_qkv": (True, False),
    "vae": PRECISIONS,
}


class Gauge(Protocol):
    """Measures one lever on the device, in milliseconds of its time."""

    def choose(self, lever: str, levers: Levers) -> Any:
        """The fastest value of a lever with the others as given; None where it cannot be told in a moment."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Levers and where each came from."""

    levers: Levers = Levers()
    origins: Mapping[str, Origin] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.levers} ({', '.join(f'{name} {origin}' for name, origin in self.origins.items())})"


def choose_levers(wanted: WantedLevers, table: Mapping[str, Any], gauge: Gauge | None) -> Chosen:
    """Set every lever: what is forced, else what the table says, else what the gauge measures, else the plain value.

    `table` holds values of `Levers` by name; `gauge` is None on a device where nothing but the plain values works.
    """
    forced = wanted.forced()
    levers = replace(Levers(), **forced)
    origins: dict[str, Origin] = dict.fromkeys(forced, "forced")
    if gauge is not None:
        known = {name: table[name] for name in NAMES if name in table and name not in forced}
        levers = replace(levers, **known)
        origins |= dict.fromkeys(known, "table")
        for name in NAMES:
            if name not in origins and (found := gauge.choose(name, levers)) is not None:
                levers = replace(levers, **{name: found})
                origins[name] = "measured"
    return Chosen(levers, {name: origins.get(name, "plain") for name in NAMES})
