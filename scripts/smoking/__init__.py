"""A live deployment tried from end to end: what `scripts/smoke` does.

`steps` runs a list of named steps and times them; `drawing` and `framing` are the steps; `origin` serves two
product pictures to a deployment that may fetch from here.
"""
