"""Prunes hidden units of an equinox model, makes it smaller, and trains on."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import sparse_optax

x = jax.random.normal(jax.random.key(0), (256, 20))
y = x[:, :3].sum(axis=1, keepdims=True)  # three of the twenty inputs matter

model = eqx.nn.MLP(20, 1, width_size=64, depth=2, key=jax.random.key(1))
params, static = eqx.partition(model, eqx.is_inexact_array)


def apply(params, x):
    return jax.vmap(eqx.combine(params, static))(x)


def train(apply, tx, params, opt_state, num_steps):
    def loss_fn(params):
        return jnp.mean((apply(params, x) - y) ** 2)

    @jax.jit
    def step(params, opt_state):
        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    for _ in range(num_steps):
        params, opt_state, loss = step(params, opt_state)
    return params, opt_state, loss


groups = sparse_optax.channel_groups(apply, params, x)
print(groups)
adam = optax.adam(1e-3)
schedule = sparse_optax.cubic_sparsity(0.0, 0.75, begin=100, end=500)
tx = sparse_optax.hide_pruned(
    adam,
    sparse_optax.prune_to_sparsity(
        schedule, every=50, structure=groups, distribution="uniform"
    ),
)
params, opt_state, loss = train(apply, tx, params, tx.init(params), 700)
print(f"loss with a quarter of the units: {loss:.4f}")

compacted = sparse_optax.compact(apply, params, x)
print(compacted)
opt_state = compacted.shrink(opt_state).optimizer  # Adam's, with its moments
params, opt_state, loss = train(compacted.apply, adam, compacted.params, opt_state, 200)
print(f"loss after more training: {loss:.4f}")
