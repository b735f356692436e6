"""The generator: a server of RunPod's queue API around one step-level batching engine.

A job flows `routes` → `jobs` → `handler` → `engine` → `pictures` → `uploads` or the answer.
"""
