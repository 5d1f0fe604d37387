"""Trees and states of another kind, or that do not fit: errors say what to pass."""

import re

import equinox as eqx
import flax.serialization
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from helpers import (
    PRUNING,
    TRANSFORMATIONS,
    make_step,
    num_kept,
    num_nonzero,
    random_tree,
)

import sparse_optax
from sparse_optax import get_masks

pytestmark = pytest.mark.quickly_compiled

PARAMS = random_tree(0)
MASKS = jax.tree.map(lambda w: w > 0, PARAMS)
TX = sparse_optax.prune_by_magnitude(0.5, mask=None)
WHOLE = sparse_optax.relevance_pruning(optax.sgd(0.1), 0.1, mask=None)
STATE = TX.init(PARAMS)
MASKED = optax.MaskedNode()

every_pruning = pytest.mark.parametrize("name", PRUNING)

# What takes weights and a state with masks.
WEIGHTS_AND_STATE = (
    lambda params, state: sparse_optax.prune(params, state, 0.5),
    lambda params, state: sparse_optax.masks_from_zeros(params, state, mask=None),
    sparse_optax.check_sparsity,
)
STATE_ALONE = (
    lambda params, state: get_masks(state),
    lambda params, state: sparse_optax.set_masks(state, MASKS),
)
WITH_MASKS = (
    lambda params, state: sparse_optax.apply_masks(params, get_masks(state)),
    lambda params, state: sparse_optax.sparsity_report(params, get_masks(state)),
)
WEIGHTS_ALONE = (
    lambda params, state: sparse_optax.sparsity(params),
    lambda params, state: sparse_optax.sparsity_report(params),
    lambda params, state: sparse_optax.irrelevance(params),
    lambda params, state: sparse_optax.relevance_penalty(params, params, 0.1),
    lambda params, state: sparse_optax.matrices_only(params),
    lambda params, state: TX.init(params),
    lambda params, state: WHOLE.init(params),
)


def assert_each_raises(functions, params, state, message, error=ValueError):
    for function in functions:
        with pytest.raises(error, match=message):
            function(params, state)


OTHER_MODELS = {
    "another tree": ({"conv": jnp.ones((6, 6))}, "dense/bias"),
    "a leaf less": ({"dense": {"kernel": jnp.ones((6, 6))}}, "dense/bias"),
    "a leaf more": ({"dense": PARAMS["dense"] | {"scale": jnp.ones(4)}}, "dense/scale"),
    "another shape": (
        {"dense": {"bias": jnp.ones(4), "kernel": jnp.ones((6, 5))}},
        r"\(6, 5\) at dense/kernel.*\(6, 6\)",
    ),
    "a shape that broadcasts": (
        {"dense": {"bias": jnp.ones(4), "kernel": jnp.ones((1, 6))}},
        r"\(1, 6\) at dense/kernel.*\(6, 6\)",
    ),
    "no array": ({"dense": {"bias": jnp.ones(4), "kernel": MASKED}}, "dense/kernel"),
}


@pytest.mark.parametrize("case", OTHER_MODELS)
def test_states_of_other_models_raise(case):
    other, message = OTHER_MODELS[case]
    functions = [*WEIGHTS_AND_STATE, *WITH_MASKS]
    assert_each_raises(functions, other, STATE, f"params .*{message}")
    for name in PRUNING:
        tx = TRANSFORMATIONS[name](mask=None)
        for extra in ({}, {"prune": True}):
            with pytest.raises(ValueError, match=f"params .*{message}"):
                tx.update(other, tx.init(PARAMS), other, **extra)


def test_gradients_of_another_model():
    wrong = {"dense": PARAMS["dense"] | {"kernel": jnp.ones((6, 1))}}
    missing = {"dense": {"bias": PARAMS["dense"]["bias"]}}
    for grads, message in ((wrong, r"\(6, 1\) at dense/kernel"), (missing, "dense/ke")):
        with pytest.raises(ValueError, match=rf"grads .*{message}"):
            sparse_optax.relevance_penalty(PARAMS, grads, 0.1, mask=None)
        for make in TRANSFORMATIONS.values():
            tx = make(mask=None)
            with pytest.raises(ValueError, match=rf"updates .*{message}"):
                tx.update(grads, tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_update_without_params(name):
    tx = TRANSFORMATIONS[name](mask=None)
    with pytest.raises(ValueError, match=r"not passing `params`.*params=None"):
        tx.update(PARAMS, tx.init(PARAMS))


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_masks_of_another_dtype(dtype):
    cast = jax.tree.map(lambda m: m.astype(dtype), MASKS)
    state = STATE._replace(masks=cast)
    whole_state = WHOLE.init(PARAMS)._replace(pruning=state)
    functions = [
        *(*WEIGHTS_AND_STATE, *WITH_MASKS),
        lambda params, state: TX.update(params, state, params),
        lambda params, state: WHOLE.update(params, whole_state, params),
    ]
    message = f"masks must be boolean; got an array of {dtype}.* at dense/bias"
    assert_each_raises(functions, PARAMS, state, message, TypeError)


@pytest.mark.parametrize("dtype", ["bool", "int32", "complex64"])
def test_params_that_are_not_weights_raise(dtype):
    other = jax.tree.map(lambda w: w.astype(dtype), MASKS)
    hint = "Use set_masks to put masks into a state" if dtype == "bool" else ""
    message = f"params has an array of {dtype}, .* at dense/bias.*{hint}"
    functions = [*WEIGHTS_AND_STATE, *WITH_MASKS]
    assert_each_raises(functions, other, STATE, message, TypeError)


WITHOUT_MASKS = {
    "adam": optax.adam(0.1).init(PARAMS),
    "decay": sparse_optax.add_relevance_decay(0.1).init(PARAMS),
    "an empty tuple": (),
    "None": None,
    "params": PARAMS,
}


@pytest.mark.parametrize("case", WITHOUT_MASKS)
def test_states_without_masks_raise(case):
    functions = [*WEIGHTS_AND_STATE, *STATE_ALONE]
    message = "opt_state has no masks"
    assert_each_raises(functions, PARAMS, WITHOUT_MASKS[case], message)


# States of other transformations, as after a change of arguments.


@every_pruning
@pytest.mark.parametrize("masks", [(None, "matrices"), ("matrices", None)])
def test_another_mask_than_in_the_state(name, masks):
    before, after = (TRANSFORMATIONS[name](mask=mask) for mask in masks)
    message = r"mask does not select the leaves .* first at dense/bias.*set_masks"
    for update in (after.update, jax.jit(after.update)):
        with pytest.raises(ValueError, match=message):
            update(PARAMS, before.init(PARAMS), PARAMS)


@every_pruning
def test_states_of_other_transformations_raise(name):
    without = TRANSFORMATIONS[name]()
    for caps in ({"min_kept": 3}, {"max_sparsity": 0.9}, {"min_kept": {".*": 3}}):
        tx, message = (
            TRANSFORMATIONS[name](**caps),
            f"different {next(iter(caps))} than",
        )
        tx.update(PARAMS, TRANSFORMATIONS[name](**caps).init(PARAMS), PARAMS)
        for before, after in ((tx, without), (without, tx)):
            with pytest.raises(ValueError, match=message):
                after.update(PARAMS, before.init(PARAMS), PARAMS)


def test_prune_by_and_prune_to_sparsity_states_do_not_mix():
    by_magnitude, to_sparsity = (TRANSFORMATIONS[name]() for name in PRUNING[:2])
    with pytest.raises(ValueError, match="belongs to prune_by, not to prune_to_spar"):
        to_sparsity.update(PARAMS, by_magnitude.init(PARAMS), PARAMS)
    with pytest.raises(
        ValueError, match=r"belongs to prune_to_sparsity or .*, not to prune_by"
    ):
        by_magnitude.update(PARAMS, to_sparsity.init(PARAMS), PARAMS)


# States that have lost their types.


def restored_by_flax(state, folder):
    return flax.serialization.to_state_dict(state)


def restored_by_orbax(state, folder):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "state")


@pytest.mark.parametrize("restored", [restored_by_flax, restored_by_orbax])
def test_states_of_plain_dicts_raise(restored, tmp_path):
    state = restored(optax.chain(optax.adam(0.1), TX).init(PARAMS), tmp_path)
    functions = [*WEIGHTS_AND_STATE, *STATE_ALONE]
    message = r"plain dicts.*tx.init\(params\)"
    assert_each_raises(functions, PARAMS, state, message)


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_update_with_a_state_of_plain_dicts(name):
    tx = TRANSFORMATIONS[name]()
    restored = restored_by_flax(tx.init(PARAMS), None)
    with pytest.raises(TypeError, match=r"state must be the .* that init returns"):
        tx.update(PARAMS, restored, PARAMS)


# Trees that are not those of the parameters.


def test_training_states_instead_of_their_parts_raise():
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=TX)
    functions = [*WEIGHTS_AND_STATE, *WITH_MASKS, *WEIGHTS_ALONE]
    message = "pass the params and the opt_state"
    assert_each_raises(functions, state, state.opt_state, message, TypeError)
    assert_each_raises(WEIGHTS_AND_STATE, STATE, PARAMS, message, TypeError)
    with pytest.raises(TypeError, match=message):
        sparse_optax.set_masks(STATE, state)
    for fraction in (0.5, jnp.float32(0.5)):
        with pytest.raises(TypeError, match=r"opt_state must be .*state.opt_state"):
            sparse_optax.prune(state, fraction)


class Mlp(eqx.Module):
    linear: eqx.nn.Linear
    activation: object
    steps: jax.Array


def test_an_equinox_module_that_is_not_filtered():
    model = Mlp(eqx.nn.Linear(6, 6, key=jax.random.key(0)), jax.nn.relu, jnp.int32(0))
    state = TX.init(eqx.filter(model, eqx.is_inexact_array))
    functions = [
        *(*WEIGHTS_AND_STATE, *WITH_MASKS, *WEIGHTS_ALONE),
        lambda params, state: TX.update(params, state, params),
    ]
    advice = re.escape("pass eqx.filter(model, eqx.is_inexact_array)")
    assert_each_raises(functions, model, state, advice, (TypeError, ValueError))
    with pytest.raises(TypeError, match=r"params has .* at activation"):
        TX.init(model)


class Network(nnx.Module):
    def __init__(self):
        self.linear = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(4, rngs=nnx.Rngs(0))


def test_an_nnx_module_in_place_of_its_state():
    model = Network()
    state = nnx.Optimizer(model, TX, wrt=nnx.Param).opt_state
    functions = [
        *(*WEIGHTS_AND_STATE, *WITH_MASKS, *WEIGHTS_ALONE),
        lambda params, state: sparse_optax.set_masks(state, params),
        lambda params, state: sparse_optax.to_bcoo(params),
        lambda params, state: WHOLE.init({"network": params}),
    ]
    advice = r"pass nnx.state\(model, nnx.Param\)"
    assert_each_raises(functions, model, state, advice, TypeError)


def test_wrappers_that_make_other_arrays_of_the_weights_are_named():
    state = optax.flatten(TX).init(PARAMS)
    functions = [*WEIGHTS_AND_STATE, *WITH_MASKS, STATE_ALONE[1]]
    assert_each_raises(functions, PARAMS, state, "optax.flatten makes one vector")
    kernel = PARAMS["dense"]["kernel"]  # a tree that is one array
    state = optax.flatten(TX).init(kernel)
    assert_each_raises(functions[:5], kernel, state, "optax.flatten makes one vector")
    params = PARAMS | {"c": jnp.ones((3, 3), jnp.complex64)}
    state = optax.contrib.split_real_and_imaginary(TX).init(params)
    message = "split_real_and_imaginary makes two arrays"
    assert_each_raises(functions[:5], params, state, message)


def test_functions_that_need_concrete_arrays_raise_for_tracers():
    def in_jit(function, x):
        jax.jit(lambda x: str(function(x)))(x)

    for function, given in (
        (lambda params: sparse_optax.check_sparsity(params, STATE), PARAMS),
        (lambda state: sparse_optax.check_sparsity(PARAMS, state), STATE),
    ):
        with pytest.raises(TypeError, match=r"check_sparsity needs .*`revived`"):
            in_jit(function, given)
    message = "sparsity_report needs concrete arrays"
    with pytest.raises(TypeError, match=message):
        in_jit(sparse_optax.sparsity_report, PARAMS)
    with pytest.raises(TypeError, match=message):
        sparse_optax.sparsity_report(jax.eval_shape(lambda: PARAMS))


def test_weights_that_are_denser_than_the_masks_raise_until_the_next_update():
    state = sparse_optax.set_masks(STATE, MASKS)
    pruned = 36 - num_kept(MASKS["dense"]["kernel"])
    with pytest.raises(ValueError, match=rf"not zero: .*{pruned} of {pruned} at dense"):
        sparse_optax.check_sparsity(PARAMS, state)
    params, state = make_step(TX)(PARAMS, state, PARAMS)
    sparse_optax.check_sparsity(params, state)
    assert num_nonzero(params) == num_kept(MASKS)
