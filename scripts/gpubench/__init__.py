"""Parts of scripts/bench_gpu: they need torch, diffusers, transformers, safetensors and inference.engine alone."""
