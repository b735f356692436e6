"""A whole feed framed by one process, without server or database: what `scripts/frame_feed` does.

Read in the order of the flow: `options` (the command line into a plan), `manifest` (what is done, so that a run can
be stopped anywhere and go on), `framing` (fetch, compose, write), `report` (what comes out beside the pictures).
"""
