"""What one core of gateway carries: what `scripts/bench_gateway` measures."""
