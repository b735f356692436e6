"""The rows of the table: who draws, with which levers, in which order they are measured."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from inference.engine.levers import Levers
from inference.engine.tuning import MARGIN

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
REGIONAL_S, WHOLE_S = 45.0, 240.0
"""Least seconds of compiling on a GPU, guessed: a row is not begun where there is less time than that."""


def single_rows(batches: tuple[int, ...]) -> Iterator[Row]:
    """Stock and each lever alone at the smallest batch; what takes long to compile comes with `slow_rows`."""
    first = batches[0]
    for name in ("eager", "xformers"):
        yield Row("stock", name, first, needs=stock_needs(name))
    for name, levers in SINGLE.items():
        if levers.compile == "off":
            yield Row("engine", name, first, levers, needs=needs_of(levers))
    yield Row("engine", "channels first", first, channels_last=False)


def batched_rows(batches: tuple[int, ...], results: Results) -> Iterator[Row]:
    """What gained alone, together, at every batch, beside the plain ones."""
    best = best_levers(results, batches[0])
    for batch in batches:
        yield Row("engine", "all that gained", batch, best, needs=needs_of(best))
        if batch != batches[0]:
            yield Row("stock", "eager", batch)
            yield Row("engine", "plain", batch)


def regional_rows(batches: tuple[int, ...], results: Results) -> Iterator[Row]:
    """The transformer blocks compiled: alone, and with all that gained."""
    first, best = batches[0], best_levers(results, batches[0])
    alone = SINGLE["compile regional"]
    yield Row("engine", "compile regional", first, alone, needs=needs_of(alone))
    together = {
        "the same, regional": replace(best, compile="regional"),
        "the same, graphs + regional": replace(best, cuda_graphs=True, compile="regional"),
    }
    for batch in batches:
        for name, levers in together.items():
            yield Row("engine", name, batch, levers, needs=needs_of(levers))


def lossy_rows(batches: tuple[int, ...], results: Results) -> Iterator[Row]:
    """What changes the pictures."""
    first, best = batches[0], best_levers(results, batches[0])
    yield Row("engine", "every other step shallow", first, best_eager(best), lossy="caching")
    fp8 = replace(best_eager(best), compile="regional")
    yield Row("engine", "fp8 linear layers", first, fp8, lossy="fp8", needs=("cuda", "torchao"))


def slow_rows(batches: tuple[int, ...], results: Results) -> Iterator[Row]:
    """The whole UNet compiled, which takes minutes a row."""
    first, best = batches[0], best_levers(results, batches[0])
    alone, together = SINGLE["compile whole"], replace(best, compile="whole")
    for batch in batches:
        if batch in (first, WHOLE_AGAIN):
            yield Row("engine", "the same, whole", batch, together, needs=needs_of(together))
    yield Row("stock", "compiled", first, needs=stock_needs("compiled"))
    yield Row("engine", "compile whole", first, alone, needs=needs_of(alone))


def least_seconds(row: Row) -> float:
    """What a row takes at least on a GPU."""
    if row.levers.compile == "whole" or (row.who, row.name) == ("stock", "compiled"):
        return WHOLE_S
    return REGIONAL_S if row.levers.compile == "regional" else 0.0


def best_eager(levers: Levers) -> Levers:
    """The same without graphs and compilation."""
    return replace(levers, cuda_graphs=False, compile="off", fused_qkv=False)


def best_levers(results: Results, batch: int) -> Levers:
    """Every lever that alone made the UNet or the VAE faster than the plain engine, set; compilation is not.

    Faster by more than measurements spread.
    """
    plain = results.value("engine", "plain", batch, "step_ms")
    if plain is None:
        return PLAIN
    steps = {name: results.value("engine", name, batch, "step_ms") for name in SINGLE}
    gains = {name: plain / found for name, found in steps.items() if found and found < (1 - MARGIN) * plain}
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
        vae="fp16" if quick < (1 - MARGIN) * slow else "fp32",
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
