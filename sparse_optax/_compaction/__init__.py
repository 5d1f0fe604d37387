"""Units of a traced function, and smaller dense networks with the same outputs.

The modules, in the order in which they process a function:

- `program`: the traced equations. `units`: what is removed as a whole.
- `rules`: a rule for each primitive, made of `labels` (which axes have the same units),
  `moves` (the same for reshape, slice and the like), and `facts` (where results are
  known to be zero). `calls`: primitives with inner functions.
- `analysis`: a function with the units of its axes. `find_groups` and `groups`: these
  units as groups, and as a structure for pruning.
- `liveness`, `folding`, `stacks`: which units nothing reads.
- `evaluate`: runs the equations on smaller arrays. `compact`, `compacted`, `leaves`,
  `sizes`: the smaller network.
"""
