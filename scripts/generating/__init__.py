"""Many prompts through a gateway, each paid for once: what `scripts/generate` does.

Read in the order of the flow: `prompts` (a file into checked requests), `manifest` (which request has which key and
what became of it, so that a run can be killed anywhere and go on), `drawing` (send, wait, fetch, write), `report`.
"""
