"""The rows of the table: who draws, with which levers, in which order they are measured."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from inference.engine.levers import Levers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from scripts.gpubench.report import Results


@dataclass(frozen=True, slots=True)
class Row:
    """One thing to measure. `lossy` names what makes its pictures others; `needs` what must be there."""

    who: str
    name: str
    batch: int
    levers: Levers = field(default_factory=Levers)
    channels_last: bool = True
    lossy: str = ""
    needs: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Unique, and the same from run to run."""
        return f"{self.who} | {self.name} | {self.batch}"


PLAIN = Levers()
SINGLE: Mapping[str, Levers] = {
    "plain": PLAIN,
    "cudnn": replace(PLAIN, attention="cudnn"),
    "flash": replace(PLAIN, attention="flash"),
    "efficient": replace(PLAIN, attention="efficient"),
    "xformers": replace(PLAIN, attention="xformers"),
    "fused qkv": replace(PLAIN, fused_qkv=True),
    "fp16-safe VAE": replace(PLAIN, vae="fp16"),
    "cuda graphs": replace(PLAIN, cuda_graphs=True),
    "compile regional": replace(PLAIN, compile="regional"),
    "compile whole": replace(PLAIN, compile="whole"),
}
"""Our engine with one lever each, which is how one learns what each does."""
WHOLE_AGAIN = 8  # compiling the whole UNet takes minutes for each batch size: at the smallest, and once more
STOCK = ("eager", "xformers", "compiled")


def single_rows(batches: tuple[int, ...]) -> Iterator[Row]:
    """Everything alone at the smallest batch, then the plain ones at each."""
    first = batches[0]
    for name in STOCK:
        yield Row("stock", name, first, needs=stock_needs(name))
    for name, levers in SINGLE.items():
        yield Row("engine", name, first, levers, needs=needs_of(levers))
    yield Row("engine", "channels first", first, channels_last=False)
    for batch in batches[1:]:
        yield Row("stock", "eager", batch)
        yield Row("engine", "plain", batch)


def combined_rows(batches: tuple[int, ...], results: Results) -> Iterator[Row]:
    """What gained alone, together, at every batch; with each way to compile; then what changes the pictures."""
    first = batches[0]
    best = best_levers(results, first)
    together = {
        "all that gained": best,
        "the same, regional": replace(best, compile="regional"),
        "the same, whole": replace(best, compile="whole"),
        "the same, graphs + regional": replace(best, cuda_graphs=True, compile="regional"),
    }
    for name, levers in together.items():
        for batch in batches:
            if levers.compile != "whole" or batch in (first, WHOLE_AGAIN):
                yield Row("engine", name, batch, levers, needs=needs_of(levers))
    yield Row("engine", "every other step shallow", first, best_eager(best), lossy="caching")
    fp8 = replace(best_eager(best), compile="regional")
    yield Row("engine", "fp8 linear layers", first, fp8, lossy="fp8", needs=("cuda", "torchao"))


def best_eager(levers: Levers) -> Levers:
    """The same without graphs and compilation."""
    return replace(levers, cuda_graphs=False, compile="off", fused_qkv=False)


def best_levers(results: Results, batch: int) -> Levers:
    """Every lever that alone made the UNet or the VAE faster than the plain engine did, set; compilation is not."""
    plain = results.value("engine", "plain", batch, "step_ms")
    if plain is None:
        return PLAIN
    steps = {name: results.value("engine", name, batch, "step_ms") for name in SINGLE}
    gains = {name: plain / found for name, found in steps.items() if found and found < plain}
    attention = max(
        ("sdpa", *(name for name in ("cudnn", "flash", "efficient", "xformers") if name in gains)),
        key=lambda name: gains.get(name, 1.0),
    )
    decode = (results.value("engine", name, batch, "vae_ms") for name in ("plain", "fp16-safe VAE"))
    slow, quick = (found or math.inf for found in decode)
    return Levers(
        attention=attention,
        fused_qkv="fused qkv" in gains and attention != "xformers",
        cuda_graphs="cuda graphs" in gains,
        vae="fp16" if quick < slow else "fp32",
    )


def needs_of(levers: Levers) -> tuple[str, ...]:
    """What the levers need to be there; what is left runs on a CPU."""
    cuda = levers.cuda_graphs or levers.compile != "off" or levers.vae == "fp16" or levers.attention != "sdpa"
    return (*(("cuda",) if cuda else ()), *(("xformers",) if levers.attention == "xformers" else ()))


def stock_needs(name: str) -> tuple[str, ...]:
    """As `needs_of`, for stock diffusers."""
    return {"eager": (), "xformers": ("cuda", "xformers"), "compiled": ("cuda",)}[name]


def as_json(row: Row) -> dict[str, Any]:
    """For the file of results."""
    return asdict(row)
