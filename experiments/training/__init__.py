"""Training: what one update does, many of them in one program, and the phases."""

import optax

Optimizer = optax.GradientTransformationExtraArgs
