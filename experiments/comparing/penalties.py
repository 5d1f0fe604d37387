"""The comparison of penalties: which shape of the pull on a weight prunes best?

Adam divides by the size of a weight's gradients, so even l2 shrinks relevant weights
less. Penalties may differ more in how hard they pull at small weights. An arm is one of
four penalties, through the gradient or proximal, on all weights alike or weighed by
irrelevance: that of the paper, or relative to the gradients of the leaf.

Rules, made before any run:

1. All arms are screened on digits, tuned over the same number of settings to begin
   with, and compared on three new seeds.
2. Arms go on in the order of the weights they keep there (geometric mean): the best
   four other than plain l2 and l1, at most two of them with the same penalty. With them
   go l2 and l1, their opponents, and `none`.
3. On every further task they are tuned again, and compared on paired seeds. The form
   with the smallest mean over the tasks of the logarithm of what it keeps, relative to
   l2, is chosen.
4. The chosen form is confirmed once, on nine new seeds, against l2, l1 and, where it
   knows relevance, its controls. It joins the library if it keeps fewer weights than
   tuned l2 *and* tuned l1, with p < 0.01 over the tasks together after Holm's
   correction, and more on no task beyond chance.
"""

import dataclasses
from typing import Any

from experiments.comparing import study
from experiments.comparing.engine import Arm, Task, Variant
from experiments.config import PENALTIES, Form, ImageConfig

# Typical slopes differ: multiples of the strength of a task, and of that for a step
# that Adam does not divide by the size of the gradients.
FACTORS = {"l2": 1.0, "l1": 1.0, "root": 0.3, "log": 0.03}
PROXIMAL = 100.0


def scaled(values: tuple[float, ...], factor: float) -> tuple[float, ...]:
    # Rounded: the last bits of a product would be another run.
    return tuple(float(f"{factor * value:.3g}") for value in values)


def arms_of(penalty: Any, proximal: bool) -> dict[str, Arm]:
    """Returns the three arms of a penalty: plain, and weighed in two ways."""
    factor = FACTORS[penalty] * (PROXIMAL if proximal else 1)
    name = f"{penalty}, proximal" if proximal else penalty
    changes: dict[str, Any] = {"proximal": True} if proximal else {}
    strengths = scaled(study.STRENGTHS, factor)
    leaf = Form(penalty=penalty, unit="leaf", memory=0.99)
    return {
        name: study.arm(scaled(study.FINE, factor), regularizer=penalty, **changes),
        f"{name}, relevance": study.arm(
            strengths, study.PAPER, form=Form(penalty=penalty), **changes
        ),
        f"{name}, leaf": study.arm(strengths, study.SCALES, form=leaf, **changes),
    }


ARMS = {
    "none": study.ARMS["none"],
    **{
        name: arm
        for proximal in (False, True)
        for penalty in PENALTIES
        for name, arm in arms_of(penalty, proximal).items()
    },
}

TASKS = {
    "digits": Task(
        study.DIGITS,
        "LeNet-300-100 on the digits of scikit-learn.",
        num_seeds=3,
    ),
}


def alone(task: Task, config: ImageConfig) -> list[Variant]:
    del task, config
    return [{}]


COMPARISON = dataclasses.replace(
    study.STUDY,
    name="penalties",
    tasks=TASKS,
    arms=ARMS,
    variants=alone,
)
