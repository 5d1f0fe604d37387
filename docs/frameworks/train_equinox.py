"""Prunes an equinox model between its training steps."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import sparse_optax

x = jax.random.normal(jax.random.key(0), (256, 20))
y = x[:, :3].sum(axis=1, keepdims=True)  # three of the twenty inputs matter

model = eqx.nn.MLP(20, 1, width_size=32, depth=1, key=jax.random.key(1))
params, static = eqx.partition(model, eqx.is_inexact_array)
tx = sparse_optax.relevance_pruning(optax.adam(1e-2), strength=1e-3)
opt_state = tx.init(params)


@jax.jit
def step(params, opt_state):
    def loss_fn(params):
        model = eqx.combine(params, static)
        return jnp.mean((jax.vmap(model)(x) - y) ** 2)

    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss


for i in range(1, 1001):
    params, opt_state, loss = step(params, opt_state)
    if i % 100 == 0 and i <= 600:
        params, opt_state = sparse_optax.prune(params, opt_state, fraction=0.3)

sparse_optax.check_sparsity(params, opt_state)
print(f"loss: {loss:.4f}")
print(sparse_optax.sparsity_report(params, sparse_optax.get_masks(opt_state)))
model = eqx.combine(params, static)
