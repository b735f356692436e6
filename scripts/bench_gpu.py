"""Full-size SDXL with random weights: stock diffusers beside our engine, lever by lever, in one table.

`python scripts/bench_gpu.py` on a machine with a GPU; needs torch, diffusers, transformers, safetensors and this
repository. `--tiny` runs its logic on a CPU with the bundled checkpoint; those times mean nothing. What matters most
is measured first, what compiles for minutes last. With `--json` a run that was cut off, by `--minutes` or by a kill,
goes on where it ended.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # started as a file: then this folder is searched, not the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from scripts.gpubench import choices
from scripts.gpubench.options import STEPS, TINY_STEPS, read_options
from scripts.gpubench.rows import (
    Row,
    batched_rows,
    least_seconds,
    lossy_rows,
    regional_rows,
    single_rows,
    slow_rows,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence

    from scripts.gpubench.report import Results
    from scripts.gpubench.sdxl import Cost, Models

BATCHES, TINY_BATCHES = (1, 2, 4, 8, 16), (1, 2)
COLD_START_S = 60.0  # to write 7 GB and start twice, at least
GOALS = ((30, "goal: 30 steps"), (20, "goal: 20 steps"))
"""What is shown for every row by its step time, and measured in full for the best."""


def main(words: Sequence[str] | None = None) -> int:
    """Run the bench; the process's exit code is 1 where the engine's pictures are wrong or a row failed."""
    options = read_options(words, __doc__)
    if options.travel:
        from scripts.gpubench import travel  # noqa: PLC0415 - reads nothing of torch

        return travel.show()
    if options.start:
        from scripts.gpubench import cold  # noqa: PLC0415 - the import of torch is part of what is timed

        print(json.dumps(cold.start_once(options.start, options.home, options.device, options.compile)))
        return 0
    return Bench(options).run()


class Bench:
    """One run of it."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Read what an earlier run left."""
        from inference.engine.checkpoint import choose_device  # noqa: PLC0415 - torch takes seconds
        from inference.engine.libraries import quiet_libraries  # noqa: PLC0415
        from inference.engine.types import CheckpointError  # noqa: PLC0415
        from scripts.gpubench.report import Results, describe_device  # noqa: PLC0415

        quiet_libraries()
        self.options = options
        try:
            self.device = choose_device(options.device)
        except CheckpointError as problem:
            raise SystemExit(str(problem)) from None
        if self.device.type != "cuda" and not options.tiny:
            raise SystemExit("no CUDA device: on a CPU there is --tiny, whose times mean nothing, and --travel")
        self.began = time.monotonic()
        self.batches: tuple[int, ...] = options.batches or (TINY_BATCHES if options.tiny else BATCHES)
        self.steps: int = options.steps or (TINY_STEPS if options.tiny else STEPS)
        about = describe_device(self.device, 0 if options.tiny else 1024, self.steps)
        self.results: Results = Results.open(options.json, about)
        try:
            self.results.save()
        except OSError as problem:
            raise SystemExit(f"--json: {options.json} cannot be written: {problem.strerror}") from None
        self.late: list[str] = []
        self.asked = False
        print(json.dumps(about))

    def run(self) -> int:
        """Measure what is not measured yet, as long as there is time."""
        from scripts.gpubench.report import print_all, print_head  # noqa: PLC0415

        models = self._models()
        cost = self._two_numbers(models)
        self._check(models, "plain")
        print_head()
        self._measure(models, cost, single_rows(self.batches))
        self._measure(models, cost, batched_rows(self.batches, self.results))
        self._measure_goals(models, cost)
        self._measure(models, cost, regional_rows(self.batches, self.results))
        self._measure_goals(models, cost)
        self._check(models, "best")
        self._measure(models, cost, lossy_rows(self.batches, self.results))
        self._cold_start(models)
        self._measure(models, cost, slow_rows(self.batches, self.results))
        self._measure_goals(models, cost)
        print_all(self.results)
        self._summary()
        failed = [name for name, found in self.results.rows.items() if "failed" in found]
        wrong = [name for name, found in self.results.accuracy.items() if not found["right"]]
        return 1 if failed or wrong else 0

    # ---- steps

    def _models(self) -> Models:
        from scripts.gpubench import sdxl  # noqa: PLC0415

        started = time.monotonic()
        models = sdxl.tiny(self.device) if self.options.tiny else sdxl.full_size(self.device)
        print(f"{models.weight_bytes / 1e9:.2f} GB of weights on {self.device} in {time.monotonic() - started:.1f} s")
        return models

    def _two_numbers(self, models: Models) -> Cost:
        from scripts.gpubench import sdxl  # noqa: PLC0415
        from scripts.gpubench.ceilings import measure_ceilings  # noqa: PLC0415

        counted = sdxl.count(models.unet, models.vae, models.size) if self.options.tiny else sdxl.count_full_size()
        self.results.cost = dataclasses.asdict(counted)
        if not self.results.ceilings:
            self.results.ceilings = dataclasses.asdict(measure_ceilings(self.device, models.dtype))
            self.results.save()
        tflops, gbs = self.results.ceilings["tflops"], self.results.ceilings["gbs"]
        print(f"ceilings: matrix product {tflops:.1f} TFLOP/s, copy {gbs:.0f} GB/s")
        print(f"a UNet row is {counted.unet_flop / 1e12:.3g} TFLOP, a decoded picture {counted.vae_flop / 1e12:.3g}")
        for steps, _ in GOALS:
            floor = counted.picture(steps) / tflops / 1e12
            print(f"floor of {steps} steps with guidance: {floor:.3f} s a picture")
        read_ms = 1000 * counted.unet_bytes / gbs / 1e9
        print(f"reading the UNet's weights once: {read_ms:.2f} ms; its operations, two rows: ", end="")
        print(f"{2000 * counted.unet_flop / tflops / 1e12:.2f} ms", flush=True)
        return counted

    def _check(self, models: Models, which: str) -> None:
        """The pictures against stock diffusers in float32: first with no lever, last with those that gained."""
        from inference.engine.levers import Levers  # noqa: PLC0415
        from scripts.gpubench import accuracy  # noqa: PLC0415
        from scripts.gpubench.watching import DoesNotFitError  # noqa: PLC0415

        levers = Levers() if which == "plain" else choices.best(self.results, self.batches)
        known = self.results.accuracy.get(which, {}).get("levers") == str(levers)
        if known or self._late(f"accuracy, {which}"):
            return
        import torch  # noqa: PLC0415

        try:
            exact = accuracy.reference(models, models.size)
            found = accuracy.check(models, levers, models.size, exact)
        except (DoesNotFitError, torch.OutOfMemoryError):
            print("accuracy: a float32 copy of the UNet does not fit beside the models; not checked")
            return
        self.results.accuracy[which] = found
        self.results.save()
        verdict = "as near as its precision allows" if found["right"] else "WRONG"
        print(
            f"accuracy, {which} ({levers}): relative error of the picture against stock in float32: engine "
            f"{found['engine']:.2e}, stock {found['stock']:.2e}: {verdict}",
            flush=True,
        )

    def _measure(self, models: Models, cost: Cost, rows: Iterable[Row], steps: int | None = None) -> None:
        for row in rows:
            if self.options.only not in row.id:
                continue
            self.asked = True
            if not self.results.has(row) and not self._late(row.id, row):
                self.results.add(row, self._row(models, cost, row, steps or self.steps))
        self._write_table()

    def _row(self, models: Models, cost: Cost, row: Row, steps: int) -> dict[str, Any]:
        from scripts.gpubench.contestants import Load, time_engine, time_stock  # noqa: PLC0415
        from scripts.gpubench.watching import DoesNotFitError  # noqa: PLC0415

        if missing := self._missing(row):
            return {"skipped": f"needs {missing}"}
        load = Load(row.batch, models.size, steps)
        try:
            timing = (time_stock if row.who == "stock" else time_engine)(models, row, load)
            difference = self._difference(models, load, timing.pixels) if row.lossy else None
        except (DoesNotFitError, ImportError) as problem:
            return {"skipped": str(problem)}
        except Exception as problem:  # noqa: BLE001 - a row's fault must not cost the others; shown and counted
            traceback.print_exc()
            return {"failed": f"{type(problem).__name__}: {str(problem).strip()[:200]}".replace("\n", " ")}
        found = figures(timing, load, cost, self.results.ceilings["tflops"])
        return found if difference is None else {**found, "difference": difference}

    def _difference(self, models: Models, load: Any, pixels: Any) -> float:
        """How far a lossy row's pictures are from the plain engine's."""
        from scripts.gpubench.accuracy import relative_error  # noqa: PLC0415
        from scripts.gpubench.contestants import time_engine  # noqa: PLC0415

        return relative_error(pixels, time_engine(models, Row("engine", "plain", load.batch), load).pixels)

    def _missing(self, row: Row) -> str:
        from scripts.gpubench.report import version_of  # noqa: PLC0415

        there = {"cuda": self.device.type == "cuda"}
        return ", ".join(name for name in row.needs if not there.get(name, version_of(name) is not None))

    def _late(self, what: str, row: Row | None = None, least_s: float = 0.0) -> bool:
        """Whether there is no time left for this; it is remembered then."""
        compiles = row is not None and self.device.type == "cuda" and not self._missing(row)
        least_s = least_seconds(row) if compiles and row is not None else least_s
        late = bool(time.monotonic() - self.began + least_s > 60 * self.options.minutes)
        if late and what not in self.late:
            self.late.append(what)
        return late

    # ---- conclusions

    def _measure_goals(self, models: Models, cost: Cost) -> None:
        """Whole pictures with the fastest levers so far: for one batch the first, for images a second any."""
        for (steps, name), batches in zip(GOALS, (self.batches[:1], self.batches), strict=True):
            levers, batch = choices.fastest(self.results, batches)
            shown = self.steps if self.options.tiny else steps
            self._measure(models, cost, [Row("engine", name, batch, levers)], shown)

    def _cold_start(self, models: Models) -> None:
        from scripts.gpubench import cold  # noqa: PLC0415

        if self.options.no_cold_start or self.results.cold_start:
            return
        if self._late("cold start", least_s=COLD_START_S if self.device.type == "cuda" else 0):
            return
        compile_mode = choices.best(self.results, self.batches).compile
        self.results.cold_start = cold.measure(models, compile_mode=compile_mode)
        self.results.save()
        print("cold start:", json.dumps(self.results.cold_start), flush=True)

    def _summary(self) -> None:
        print("\ns/img, img/s: measured", self.steps, "steps, scaled to 30 and 20 by the step's time; goals in full")
        print("% peak: operations of 20 steps with guidance, over the time, of the matrix product measured above")
        if self.late:
            print(f"not measured for lack of time ({self.options.minutes:g} min): {'; '.join(self.late)}")
            print("run again with the same --json to go on")
        if not self.asked:
            print(f"no row has '{self.options.only}' in its name")
        if (path := self._write_table()) is not None:
            chosen = choices.best(self.results, self.batches)
            print(f"the engine's choices for {self.results.device['name']} ({chosen}) are in {path}")

    def _write_table(self) -> Path | None:
        """What the engine's `auto` goes by on this device; written after each part, for a run may be cut off."""
        path: Path | None = self.options.table
        if path is None and self.device.type == "cuda" and not self.options.tiny:
            path = Path(os.environ.get("IGEN_HOME") or Path(__file__).resolve().parents[1] / "var") / "tuning.json"
        return None if path is None else choices.write(path, self.results, self.batches)


def figures(timing: Any, load: Any, cost: Cost, ceiling_tflops: float) -> dict[str, Any]:
    """A row's numbers. What is not steps (texts, VAE, our own work) is as measured; steps are scaled."""
    beside_s = max(0.0, timing.total_s - load.steps * timing.step_s)
    whole = {steps: beside_s + steps * timing.step_s for steps, _ in GOALS}
    found = {f"s_image_{steps}": seconds / load.batch for steps, seconds in whole.items()}
    work = load.batch * cost.picture(20)
    return {
        **found,
        "images_s_20": load.batch / whole[20],
        "step_ms": 1000 * timing.step_s,
        "it_s": 1 / timing.step_s if timing.step_s else None,
        "share_of_ceiling": 100 * work / whole[20] / ceiling_tflops / 1e12,
        "vae_ms": 1000 * timing.vae_s,
        "peak_gb": None if timing.peak_bytes is None else timing.peak_bytes / 1e9,
        "warm_up_s": timing.warm_up_s,
        "measured_steps": load.steps,
        "measured_s": timing.total_s,
    }


if __name__ == "__main__":
    raise SystemExit(main())
