"""Helpers of `scripts/bench_ingest`: made-up feeds, parsing beside lxml, whole ingests and publishings, memory."""
