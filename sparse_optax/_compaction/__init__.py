"""Units of a traced function, and smaller dense networks with the same outputs.

The files, in the order in which a function passes through them:

- `program`: its equations. `units`: what is removed as a whole.
- `rules`: what there is to know of each primitive. It takes this from `labels` and
  `wirings` (which axes have the same units), `moves` (the same for reshape, slice and
  the like), `facts` and `facts_of` (where results are known to be zero). `calls`:
  primitives that hold functions.
- `analysis`: a function with the units of its axes. `find_groups` and `groups`: these
  units as groups, and as a structure for pruning.
- `liveness`, `folding`, `stacks`: which units nothing reads.
- `evaluate`: the equations on smaller arrays. `compact`, `compacted`, `leaves`,
  `sizes`: the smaller network.
"""
