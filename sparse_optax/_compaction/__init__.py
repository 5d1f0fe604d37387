"""Units of a traced function, and smaller dense networks with the same outputs.

The files, in the order in which a function passes through them: `program` (its
equations), `units` (what is removed as a whole), `rules` and `calls` (which axes of an
equation have the same units), `liveness` (which units nothing reads), `evaluate` (the
equations on smaller arrays), `groups` and `compact` (the two public functions).
"""
