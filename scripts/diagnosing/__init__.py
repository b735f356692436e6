"""A configuration looked over part by part: what `scripts/doctor` does.

`finding` is what a check says; `parts` lists the checks in their order; the others each look at one part.
"""
