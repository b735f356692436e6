"""Helpers of `scripts/checkpoints`: downloads that resume, whole checkpoints by way of a staging folder, records."""
