"""What `scripts/up` runs: the installation, then Redis, the inference server and the gateway under one supervisor.

In the order in which it happens: `install` (standard library only, runs before anything is installed), `checks`,
`services` (the registry, as data), `supervisor`.
"""
