"""What callers give by mistake, or from other libraries: errors that say what to do."""

import os
import stat

import equinox as eqx
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen, nnx
from flax.training.train_state import TrainState
from helpers import num_nonzero, random_tree
from jax.experimental.sparse import BCOO, sparsify

import sparse_optax

PARAMS = random_tree(0)
GRADS = random_tree(1)
MAGNITUDE = sparse_optax.prune_by_magnitude

# States of other transformations, as after a change of arguments.

LINKS = {
    "prune_by_magnitude": lambda **k: sparse_optax.prune_by_magnitude(0.5, **k),
    "prune_to_sparsity": lambda **k: sparse_optax.prune_to_sparsity(0.5, **k),
    "relevance_pruning": lambda **k: sparse_optax.relevance_pruning(
        optax.sgd(0.0), 0.0, fraction=0.5, **k
    ),
}
every_link = pytest.mark.parametrize("link", LINKS)


@every_link
@pytest.mark.parametrize("masks", [(None, "matrices"), ("matrices", None)])
def test_another_mask_than_in_the_state_raises(link, masks):
    before, after = (LINKS[link](mask=mask) for mask in masks)
    state = before.init(PARAMS)
    message = r"mask selects other leaves .* first at dense/bias.*set_masks"
    with pytest.raises(ValueError, match=message):
        after.update(GRADS, state, PARAMS)
    with pytest.raises(ValueError, match=message):
        jax.jit(after.update)(GRADS, state, PARAMS)


@every_link
def test_other_floors_than_in_the_state_take_effect(link):
    state = LINKS[link](min_kept=30).init(PARAMS)
    after = LINKS[link](min_kept=20)
    for update in (after.update, jax.jit(after.update)):
        updates, _ = update(GRADS, state, PARAMS, prune=True)
        kernel = optax.apply_updates(PARAMS, updates)["dense"]["kernel"]
        assert num_nonzero(kernel) == 20  # of 36, half of which should have gone


@every_link
@pytest.mark.parametrize("given", [{"min_kept": 3}, {"max_sparsity": 0.9}], ids=str)
def test_floors_that_the_state_lacks_or_has_raise(link, given):
    with_floors, without = LINKS[link](**given), LINKS[link]()
    for before, after in ((with_floors, without), (without, with_floors)):
        with pytest.raises(
            ValueError, match="min_kept and max_sparsity are part of th"
        ):
            after.update(GRADS, before.init(PARAMS), PARAMS)


def test_states_of_the_two_transformations_are_not_mistaken():
    gated, gradual = LINKS["prune_by_magnitude"](), LINKS["prune_to_sparsity"]()
    with pytest.raises(
        ValueError, match="that of prune_by_magnitude, and this is prun"
    ):
        gradual.update(GRADS, gated.init(PARAMS), PARAMS)
    with pytest.raises(
        ValueError, match="that of prune_to_sparsity, and this is prune"
    ):
        gated.update(GRADS, gradual.init(PARAMS), PARAMS)
    _, state = sparse_optax.prune(PARAMS, gated.init(PARAMS), 0.5)
    masks = sparse_optax.get_masks(state)
    state = sparse_optax.set_masks(gradual.init(PARAMS), masks)
    gradual.update(GRADS, state, PARAMS)


# States that have lost their types.


def as_flax_restores(state):
    return flax.serialization.to_state_dict(state)


def as_orbax_restores(state, folder):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "state")


@pytest.mark.parametrize("how", ["flax", "orbax"])
def test_a_state_of_plain_dicts_is_named(how, tmp_path):
    tx = optax.chain(optax.adam(0.1), MAGNITUDE(0.5))
    state = tx.init(PARAMS)
    if how == "flax":
        restored = as_flax_restores(state)
    else:
        restored = as_orbax_restores(state, tmp_path)
    for call in (
        lambda: sparse_optax.prune(PARAMS, restored, 0.5),
        lambda: sparse_optax.get_masks(restored),
        lambda: sparse_optax.masks_from_zeros(PARAMS, restored),
        lambda: sparse_optax.set_masks(restored, jax.tree.map(jnp.isnan, PARAMS)),
        lambda: sparse_optax.check_sparsity(PARAMS, restored),
    ):
        with pytest.raises(ValueError, match=r"in plain dicts.*tx.init\(params\)"):
            call()


@pytest.mark.parametrize("link", [*LINKS, "add_relevance_decay"])
def test_update_with_a_state_of_plain_dicts(link):
    links = {
        **LINKS,
        "add_relevance_decay": lambda: sparse_optax.add_relevance_decay(1),
    }
    tx = links[link]()
    restored = as_flax_restores(tx.init(PARAMS))
    with pytest.raises(TypeError, match=r"state must be the .*State that init returns"):
        tx.update(GRADS, restored, PARAMS)


# Trees that are not those of the parameters.


def test_a_training_state_in_place_of_its_parts():
    tx = MAGNITUDE(0.5)
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=tx)
    with pytest.raises(TypeError, match=r"opt_state must be .*0\.5.*state.opt_state"):
        sparse_optax.prune(state, 0.5)
    with pytest.raises(
        TypeError, match=r"opt_state must be .*float32.*state.opt_state"
    ):
        sparse_optax.prune(state, jnp.float32(0.5))
    masks = sparse_optax.get_masks(state)
    for call in (
        lambda: sparse_optax.prune(state, state.opt_state, 0.5),
        lambda: sparse_optax.prune(state.opt_state, PARAMS, 0.5),
        lambda: sparse_optax.check_sparsity(state, state.opt_state),
        lambda: sparse_optax.masks_from_zeros(state, state.opt_state),
        lambda: sparse_optax.apply_masks(state, masks),
        lambda: sparse_optax.sparsity(state),
        lambda: sparse_optax.sparsity_report(state, masks),
        lambda: sparse_optax.set_masks(state.opt_state, state),
        lambda: tx.init(state),
    ):
        with pytest.raises(TypeError, match="pass its params and its opt_state"):
            call()


class Mlp(eqx.Module):
    layers: list
    activation: object
    steps: jax.Array

    def __init__(self):
        keys = jax.random.split(jax.random.key(0))
        self.layers = [eqx.nn.Linear(6, 6, key=key) for key in keys]
        self.activation = jax.nn.relu
        self.steps = jnp.zeros([], jnp.int32)

    def __call__(self, x):
        return self.layers[1](self.activation(self.layers[0](x)))


def test_an_equinox_module_that_is_not_filtered_is_named():
    model, tx = Mlp(), MAGNITUDE(0.5)
    advice = r"pass eqx.filter\(model, eqx.is_inexact_array\)"
    with pytest.raises(TypeError, match=rf"params has .* at activation.*{advice}"):
        tx.init(model)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    opt_state = tx.init(params)
    for call in (
        lambda: sparse_optax.prune(model, opt_state, 0.5),
        lambda: sparse_optax.check_sparsity(model, opt_state),
        lambda: sparse_optax.masks_from_zeros(model, opt_state),
        lambda: sparse_optax.apply_masks(model, sparse_optax.get_masks(opt_state)),
        lambda: sparse_optax.sparsity(model),
        lambda: sparse_optax.sparsity_report(model),
        lambda: sparse_optax.irrelevance(model),
        lambda: sparse_optax.relevance_penalty(model, model, 0.1),
        lambda: tx.update(params, opt_state, model),
    ):
        with pytest.raises((TypeError, ValueError), match=advice):
            call()
    pruned, opt_state = sparse_optax.prune(params, opt_state, 0.5)
    assert eqx.combine(pruned, static)(jnp.ones(6)).shape == (6,)


def test_an_nnx_module_for_its_state_is_named():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(4, 4, rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)

    model = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, MAGNITUDE(0.5), wrt=nnx.Param)
    opt_state = optimizer.opt_state
    for call in (
        lambda: sparse_optax.prune(model, opt_state, 0.5),
        lambda: sparse_optax.check_sparsity(model, opt_state),
        lambda: sparse_optax.masks_from_zeros(model, opt_state),
        lambda: sparse_optax.apply_masks(model, sparse_optax.get_masks(opt_state)),
        lambda: sparse_optax.sparsity_report(model, sparse_optax.get_masks(opt_state)),
        lambda: sparse_optax.sparsity_report(model),
        lambda: sparse_optax.sparsity(model),
        lambda: sparse_optax.set_masks(opt_state, model),
        lambda: sparse_optax.irrelevance(model),
        lambda: sparse_optax.relevance_penalty(model, model, 0.1),
        lambda: sparse_optax.matrices_only(model),
        lambda: sparse_optax.to_bcoo(model),
        lambda: MAGNITUDE(0.5).init(model),
        lambda: sparse_optax.add_relevance_decay(0.5).init({"net": model}),
    ):
        with pytest.raises(TypeError, match=r"pass nnx.state\(model, nnx.Param\)"):
            call()


# Models on sparse matrices: the way that the docstring of `to_bcoo` shows.


def bcoo_leaves(tree):
    is_bcoo = lambda x: isinstance(x, BCOO)  # noqa: E731
    return [x for x in jax.tree.leaves(tree, is_leaf=is_bcoo) if is_bcoo(x)]


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_an_nnx_model_runs_on_bcoo(jit):
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(8, 6, rngs=rngs)
            self.second = nnx.Linear(6, 3, rngs=rngs)

        def __call__(self, x):
            return self.second(nnx.relu(self.first(x)))

    model = Network(nnx.Rngs(0))
    graph, state = nnx.split(model)
    x = jax.random.normal(jax.random.key(1), (5, 8))
    state, _ = sparse_optax.prune(state, MAGNITUDE().init(state), 0.5)
    run = sparsify(lambda state, x: nnx.merge(graph, state)(x), use_tracer=True)
    sparse = sparse_optax.to_bcoo(state)
    assert len(bcoo_leaves(sparse)) == 2
    result = (jax.jit(run) if jit else run)(sparse, x)
    np.testing.assert_allclose(result, nnx.merge(graph, state)(x), rtol=1e-5, atol=1e-6)


def test_a_linen_model_runs_on_bcoo():
    model = linen.Sequential([linen.Dense(6), linen.relu, linen.Dense(3)])
    x = jax.random.normal(jax.random.key(1), (5, 8))
    params = model.init(jax.random.key(0), x)
    params, _ = sparse_optax.prune(params, MAGNITUDE().init(params), 0.5)
    sparse = sparse_optax.to_bcoo(params)
    assert len(bcoo_leaves(sparse)) == 2
    result = jax.jit(sparsify(model.apply, use_tracer=True))(sparse, x)
    np.testing.assert_allclose(result, model.apply(params, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_an_equinox_model_runs_on_bcoo(jit):
    params, rest = eqx.partition(Mlp(), eqx.is_inexact_array)
    params, _ = sparse_optax.prune(params, MAGNITUDE().init(params), 0.5)
    sparse = sparse_optax.to_bcoo(params)
    assert len(bcoo_leaves(sparse)) == 2
    x = jax.random.normal(jax.random.key(1), (6,))
    run = sparsify(lambda params, x: eqx.combine(params, rest)(x), use_tracer=True)
    result = (jax.jit(run) if jit else run)(sparse, x)
    expected = eqx.combine(params, rest)(x)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


# Inside of jit.


def test_what_needs_concrete_arrays_says_so():
    tx = MAGNITUDE(0.5)
    state = tx.init(PARAMS)
    with pytest.raises(TypeError, match=r"check_sparsity needs concrete arrays.*rev"):
        jax.jit(lambda p: sparse_optax.check_sparsity(p, state))(PARAMS)
    with pytest.raises(TypeError, match="check_sparsity needs concrete arrays"):
        jax.jit(lambda s: sparse_optax.check_sparsity(PARAMS, s))(state)
    with pytest.raises(TypeError, match="sparsity_report needs concrete arrays"):
        sparse_optax.sparsity_report(jax.eval_shape(lambda: PARAMS))
    with pytest.raises(TypeError, match="sparsity_report needs concrete arrays"):
        jax.jit(lambda p: str(sparse_optax.sparsity_report(p)))(PARAMS)


# Files.


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    sparse_optax.save_sparse("~/params.safetensors", PARAMS)
    assert (tmp_path / "params.safetensors").is_file()
    loaded = sparse_optax.load_sparse("~/params.safetensors")
    jax.tree.map(np.testing.assert_array_equal, loaded, PARAMS)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    path = tmp_path / "missing" / "params.safetensors"
    with pytest.raises(FileNotFoundError) as caught:
        sparse_optax.save_sparse(path, PARAMS)
    assert str(path) in str(caught.value) and ".tmp" not in str(caught.value)
    (tmp_path / "plain").touch()
    with pytest.raises(NotADirectoryError) as caught:
        sparse_optax.save_sparse(tmp_path / "plain" / "params", PARAMS)
    assert ".tmp" not in str(caught.value)
    (tmp_path / "plain").unlink()
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        sparse_optax.save_sparse(tmp_path / "folder", PARAMS)
    assert ".tmp" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_the_mode_of_a_file_is_kept(tmp_path, mode):
    path = tmp_path / "params.safetensors"
    sparse_optax.save_sparse(path, PARAMS)
    fresh = stat.S_IMODE(path.stat().st_mode)
    (tmp_path / "plain").touch()
    assert fresh == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    os.chmod(path, mode)
    sparse_optax.save_sparse(path, GRADS)
    assert stat.S_IMODE(path.stat().st_mode) == mode
