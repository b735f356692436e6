"""Helpers of `scripts/bench_compositor`: made-up products, the same by other libraries, the contact sheet."""
