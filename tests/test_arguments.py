"""Arguments of public functions: bad values raise, by name, and good ones do not."""

import math
import re
from decimal import Decimal
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparse_optax

pytestmark = pytest.mark.quickly_compiled

PARAMS = {"dense": {"bias": jnp.arange(4.0), "kernel": jnp.ones((4, 4))}}
decay = sparse_optax.add_relevance_decay
by_magnitude = sparse_optax.prune_by_magnitude
to_sparsity = sparse_optax.prune_to_sparsity


def whole(**arguments):
    return sparse_optax.relevance_pruning(
        **{"optimizer": optax.sgd(0.1), "strength": 1e-3} | arguments
    )


def prune(**arguments):
    return sparse_optax.prune(PARAMS, by_magnitude().init(PARAMS), **arguments)


def penalty(**arguments):
    return sparse_optax.relevance_penalty(
        PARAMS, PARAMS, **{"strength": 0.1} | arguments
    )


def identity(state):
    return state


def iterate(**arguments):
    given = {
        "state": (PARAMS, by_magnitude().init(PARAMS)),
        "train": identity,
        "evaluate": lambda state: 1.0,
        "prune": identity,
        "bound": 0.0,
        "max_rounds": 1,
    }
    return sparse_optax.iterative_pruning(**given | arguments)


def loop(**arguments):
    given = {"train": identity, "evaluate": identity, "prune": identity, "bound": 0.0}
    return sparse_optax.pruning_loop(**given | arguments)


def update(make):
    """Calls `update` with an extra argument, of a transformation made for it."""
    tx = make()
    return lambda **extra: tx.update(PARAMS, tx.init(PARAMS), PARAMS, **extra)


# Values that are good, that are out of range, and that are of a wrong type.
NO_NUMBER = (
    *(True, np.bool_(False), "0.5", [0.5], (0.5,), {}, 1j, Fraction(1, 2)),
    *(Decimal("0.5"), jnp.array([0.5, 0.5]), jnp.array(True), np.array("a")),
)
# Arrays are taken as `every`: optax.inject_hyperparams makes them of integers.
NO_INTEGER = tuple(x for x in NO_NUMBER if not isinstance(x, jax.Array) or x.ndim)
UNIT = (
    (0, 1, 0.5, np.float32(0.5), jnp.float32(0.5), np.array(0.5)),
    (-0.1, -1, 1.0000001, 2, 10**400, math.nan, math.inf, np.float32(1.5)),
    NO_NUMBER,
)
POSITIVE = (
    (1e-30, 3, math.inf, np.float64(2), jnp.float32(3)),
    (0, 0.0, -1.0, -(10**400), math.nan, -math.inf, np.float32(0)),
    (*NO_NUMBER, None),
)
NOT_NEGATIVE = (
    (0, 1e9, jnp.float32(3)),
    (-1e-9, -1, -(10**400), 10**400, math.nan, math.inf),
    (*NO_NUMBER, None),
)
FINITE = ((-5, 0.0, 1e9, jnp.float32(0.5)), (math.nan, math.inf, -math.inf), NO_NUMBER)
FROM_1 = ((1, np.int64(7), 10**9), (0, -1, np.int32(-5)), (*NO_INTEGER, 2.5))
DISTRIBUTION = (("global", "uniform", "erk"), ("Global", "", None, 1, ["global"]), ())
# An amount may be a dict by name.
SHARE = (*UNIT[:2], tuple(x for x in NO_NUMBER if not isinstance(x, dict)))
CALLABLE = ((identity,), (), (None, 0.5, "exp", (jnp.exp,)))
FLAG = (
    (None, True, False, np.False_, np.array(False), jnp.array(False)),
    (),
    ("yes", 1, 0, 1.0, [True], {}, jnp.array(1.0), jnp.array(1), np.array(0)),
)
MIN_KEPT = (
    (0, 5, np.int64(3), {"dense": 3}),
    (-1,),
    (0.5, True, "3", jnp.ones([], int)),
)
MAX_SPARSITY = (
    (0, 1, 0.5, {"dense": 0.9}),
    (1.5, -0.1, math.nan),
    ("x", True, jnp.float32(0.5), math.sqrt),
)
OPTIMIZER = ((optax.adam(0.1),), (), (None, "adam", optax.adam, 0.1))


TRANSFORMATIONS = {
    "prune_by_magnitude": by_magnitude,
    "prune_to_sparsity": lambda **k: to_sparsity(**{"sparsity": 0.5} | k),
    "relevance_pruning": whole,
}
ROWS = {
    "irrelevance.scale": (
        lambda scale: sparse_optax.irrelevance(PARAMS, scale),
        POSITIVE,
    ),
    "is_relevant.threshold": (
        lambda threshold: sparse_optax.is_relevant(PARAMS, threshold=threshold),
        UNIT,
    ),
    "relevance_penalty.strength": (penalty, NOT_NEGATIVE),
    "relevance_penalty.scale": (penalty, POSITIVE),
    "add_relevance_decay.strength": (decay, NOT_NEGATIVE),
    "add_relevance_decay.scale": (lambda scale: decay(0.1, scale), POSITIVE),
    "add_relevance_decay.irrelevance_fn": (
        lambda irrelevance_fn: decay(0.1, irrelevance_fn=irrelevance_fn),
        ((None, lambda g, s: g), (), CALLABLE[2][1:]),
    ),
    "prune_by_magnitude.fraction": (by_magnitude, SHARE),
    "prune_to_sparsity.sparsity": (to_sparsity, SHARE),
    "prune_to_sparsity.every": (lambda every: to_sparsity(0.5, every=every), FROM_1),
    "relevance_pruning.strength": (whole, NOT_NEGATIVE),
    "relevance_pruning.scale": (whole, POSITIVE),
    "relevance_pruning.fraction": (whole, SHARE),
    "relevance_pruning.decoupled": (whole, ((True, False), (), (1, None))),
    "relevance_pruning.optimizer": (whole, OPTIMIZER),
    "prune.fraction": (prune, SHARE),
    "prune.sparsity": (prune, SHARE),
    "iterative_pruning.bound": (iterate, FINITE),
    "iterative_pruning.max_rounds": (iterate, FROM_1),
    "iterative_pruning.patience": (iterate, FROM_1),
    "iterative_pruning.finetune_rounds": (
        lambda finetune_rounds: iterate(
            finetune=identity, finetune_rounds=finetune_rounds
        ),
        (FROM_1[0], FROM_1[1][1:], FROM_1[2]),
    ),
    "iterative_pruning.finetune": (
        lambda finetune: iterate(finetune=finetune, finetune_rounds=1),
        (CALLABLE[0], (), CALLABLE[2][1:]),
    ),
    **{
        f"iterative_pruning.{name}": (iterate, CALLABLE)
        for name in ("train", "evaluate", "prune")
    },
    "pruning_loop.bound": (loop, FINITE),
    "pruning_loop.patience": (loop, FROM_1),
    "pruning_loop.train": (loop, CALLABLE),
    "pruning_loop.evaluate": (loop, CALLABLE),
    "pruning_loop.prune": (
        loop,
        ((None, identity), (), CALLABLE[2][1:]),
    ),
    **{
        f"{function}.{name}": (make, values)
        for function, make in TRANSFORMATIONS.items()
        for name, values in (
            ("min_kept", MIN_KEPT),
            ("max_sparsity", MAX_SPARSITY),
        )
    },
    "prune_by_magnitude.distribution": (by_magnitude, DISTRIBUTION),
    "prune_to_sparsity.distribution": (
        TRANSFORMATIONS["prune_to_sparsity"],
        DISTRIBUTION,
    ),
    "add_relevance_decay.update.prune": (update(lambda: decay(0.1)), FLAG),
    "prune_by_magnitude.update.prune": (update(lambda: by_magnitude(0.5)), FLAG),
    "relevance_pruning.update.prune": (update(whole), FLAG),
}


@pytest.mark.parametrize("row", ROWS)
def test_bad_values_raise_and_good_ones_do_not(row):
    call, (good, out_of_range, wrong_type) = ROWS[row]
    name = row.rpartition(".")[2]
    for values, error in ((out_of_range, ValueError), (wrong_type, TypeError)):
        for value in values:
            with pytest.raises(error, match=rf"(?s){name} .*{re.escape(repr(value))}"):
                call(**{name: value})
    for value in good:
        call(**{name: value})


def test_prune_takes_one_amount():
    for given, message in (
        ({}, "needs fraction, count or sparsity"),
        ({"fraction": 0.5, "sparsity": 0.5}, "give one of fraction, sparsity; got"),
        ({"count": -1}, "count must be at least 0; got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            prune(**given)


def test_prune_flags_must_be_scalars():
    with pytest.raises(ValueError, match=r"prune must be a scalar.*\(2,\)"):
        update(lambda: by_magnitude(0.5))(prune=jnp.array([True, False]))


def test_schedules_return_scalars():
    for make in (by_magnitude, to_sparsity, decay):
        tx = make(lambda count: jnp.ones(2))
        with pytest.raises(ValueError, match=r"must be a scalar; got \[1\. 1\.\]"):
            tx.update(PARAMS, tx.init(PARAMS), PARAMS, prune=True)


def test_other_bad_arguments_raise():
    two_of_a_name = {"a/b": jnp.ones((2, 2)), "a": {"b": jnp.ones((2, 2))}}
    sparse = sparse_optax.sparse_training
    sgd, key = optax.sgd(0.1), jax.random.key(0)
    by, hide = sparse_optax.prune_by, sparse_optax.hide_pruned
    scores = {"scores": PARAMS, "criterion": sparse_optax.magnitude}
    for call, error, message in (
        (lambda: by_magnitude().init(two_of_a_name), ValueError, "name: .'a/b'"),
        (lambda: sparse(sgd, 0.5, key=key), ValueError, "needs every; got None"),
        (lambda: sparse(sgd, 0.5, key=key, every=1), ValueError, "needs until; got"),
        (lambda: to_sparsity(None), TypeError, "sparsity must be .*; got None"),
        (lambda: by(sparse_optax.random), TypeError, "random makes a criterion"),
        (lambda: hide(by_magnitude(), sgd).init(PARAMS), ValueError, "pruning must be"),
        (lambda: sparse_optax.Block(4), TypeError, "shape must be .*; got 4"),
        (lambda: sparse_optax.Block((4,), -1), TypeError, "axes must be .*; got -1"),
        (lambda: sparse_optax.one_shot(PARAMS, 0.5, **scores), ValueError, "got both"),
    ):
        with pytest.raises(error, match=message):
            call()


def test_negative_strengths_of_schedules_are_zero():
    for make in (decay, sparse_optax.add_l1_decay, sparse_optax.add_lobster_decay):
        tx = make(lambda count: -1.0)
        updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS, grad=PARAMS)
        jax.tree.map(np.testing.assert_array_equal, updates, PARAMS)
