"""Training: one update, many of them in one program, and the phases of a run."""

import optax

Optimizer = optax.GradientTransformationExtraArgs
