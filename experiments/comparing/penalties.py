"""The comparison of penalties: which shape of the pull on a weight prunes best?

Adam divides by the size of a weight's gradients, so even l2 shrinks relevant weights
less. Penalties may differ more in how hard they pull at small weights. An arm is one of
four penalties, through the gradient or proximal, on all weights alike or weighed by
irrelevance: that of the paper, or relative to the gradients of the leaf. SMOOTH, which
shapes root and log, is fixed.

The rules, written before the runs. The study has shown l2, l1 and l2 weighed by
relevance on digits; nothing was known of the others.

1. Screening, on digits: every arm is tuned over nine settings at first, and then on all
   sides of the best one, as in the study. The page reports the number of its runs. All
   are compared on nine new seeds, 30 to 38. `kept` counts weights that no pruning step
   removed, also those that a proximal step left at zero.
2. In the order of the weights that they keep there (geometric mean), the first four go
   on, other than the arms "none", "l2" and "l1", which go on in any case. At most two
   of the four have the same penalty. An arm of which a run diverged does not go on.
3. Further tasks: digits-few-images, digits-noise and mnist with nine seeds, and fashion
   with five, from seed 40. On each, an arm is tuned again, on mnist and fashion with
   FEW_SEEDS, as their runs take a minute. The one of the four with the smallest mean of
   log(kept) over these tasks is chosen. It also runs on Multi30k at a fixed sparsity,
   beside l1, with three strengths on seed 0 and the best one on seeds 1 to 3.
4. Confirmation: the chosen arm is run once more at its settings, on nine further seeds
   of each of the four tasks, from seed 100, against l2, l1, its own penalty on all
   weights alike, and both controls if it weighs by irrelevance. The test is the
   one-sided sign-flip test of log(kept) over pairs of equal task and seed, and its
   statistic the mean over tasks of the means over seeds. The arm joins the library if
   p < 0.01 against all opponents, by Holm's correction, if on no task the 95 % interval
   of its ratio to l2 or l1 lies above 1, and if its mean test error is above that of l1
   by at most 0.1 points.

After the further tasks on digits, all of the four fail the condition on the intervals.
So none can join, there is no confirmation, and Multi30k is left out. On mnist and
fashion, only ONE_MORE of them runs, with the smallest mean of log(kept) over the three
tasks on digits.
"""

import dataclasses
from collections import defaultdict
from statistics import mean
from typing import Any

from experiments.comparing import study
from experiments.comparing.engine import Arm, Rounds, Task, Variant
from experiments.config import PENALTIES, Form, ImageConfig, Penalty
from experiments.records import Row

# Multiples of the strength of a task in the middle of the grids: slopes differ.
FACTORS: dict[Penalty, float] = {"l2": 1.0, "l1": 1.0, "root": 0.3, "log": 0.03}
# Adam does not divide a proximal step by the size of the gradients.
PLAIN_APART = tuple(100 * value for value in study.FINE)


def arms_of(penalty: Penalty, proximal: bool) -> dict[str, Arm]:
    """Returns the three arms of a penalty: plain, and weighed in two ways."""
    factor = FACTORS[penalty]
    fine, few = study.FINE, study.STRENGTHS
    name = f"{penalty}, proximal" if proximal else penalty
    changes: dict[str, Any] = {"proximal": True} if proximal else {}
    if proximal:
        fine, few = PLAIN_APART, study.APART
    fine, few = (tuple(factor * x for x in values) for values in (fine, few))
    weighed: dict[str, Any] = {"counterpart": name, "penalty": penalty, **changes}
    leaf = Form(unit="leaf", memory=0.99)
    return {
        name: study.arm(fine, regularizer=penalty, **changes),
        f"{name}, relevance": study.arm(few, study.PAPER, **weighed),
        f"{name}, leaf": study.arm(few, study.SCALES, form=leaf, **weighed),
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

ALWAYS = "none", "l2", "l1"
GOING_ON = (
    *ALWAYS,
    # What `going_on` returns for the stored rows.
    "root, proximal, leaf",
    "log, proximal, leaf",
    "root, leaf",
    "l1, proximal, leaf",
)
ONE_MORE = "root, proximal, leaf"
FEW = (*ALWAYS, ONE_MORE)
FEW_SEEDS: Rounds = (((0,), 3), ((1,), 1))


def task(
    name: str,
    arms: tuple[str, ...] = GOING_ON,
    rounds: Rounds = (),
    first_seed: int = 40,
    num_seeds: int = 9,
) -> Task:
    """Returns a task of the study, with seeds that the study has not seen."""
    return study.TASKS[name]._replace(
        arms=arms, rounds=rounds, first_seed=first_seed, num_seeds=num_seeds
    )


TASKS = {
    "digits": task("digits", tuple(ARMS), first_seed=30),
    "digits-few-images": task("digits-few-images"),
    "digits-noise": task("digits-noise"),
    "mnist": task("mnist", FEW, rounds=FEW_SEEDS),
    "fashion": task("fashion", FEW, rounds=FEW_SEEDS, num_seeds=5),
}


def going_on(rows: list[Row]) -> list[str]:
    """Returns the arms that rule 2 takes from all rows of the screening."""
    barred = {*ALWAYS} | {row["arm"] for row in rows if row.get("diverged")}
    sizes = defaultdict(list)
    for row in rows:
        if row["stage"] == "comparison" and row["arm"] not in barred:
            sizes[row["arm"]].append(study.STUDY.size(row, study.DIGITS))
    found: list[str] = []
    for arm in sorted(sizes, key=lambda x: mean(sizes[x])):
        alike = [x for x in found if x.split(",")[0] == arm.split(",")[0]]
        if len(alike) < 2:
            found.append(arm)
    return found[:4]


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
