"""Product feeds into framed product pictures.

Read in the order of the flow: `design` (what a frame does with a product), `feed` (entries out of a file), `runs`
(the rows that are the truth), `jobs` (what a worker does), `sources` (pictures fetched), `compose` (pixels),
`publish` (the feed that comes out).
"""
