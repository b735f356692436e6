"""Parts of `scripts/bench_engine`: the contestants, the load they are put under, and what the engine itself costs."""
