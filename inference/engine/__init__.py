"""The engine: turns picture specifications into pixels, many at once on one device.

It knows no HTTP, no users, no storage and no JSON. It imports only torch, diffusers, transformers, safetensors,
numpy and the standard library.
"""
