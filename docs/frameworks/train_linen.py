"""Prunes a flax linen model gradually: a `TrainState` passes no extra arguments."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

import sparse_optax


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.relu(nn.Dense(32)(x)))


x = jax.random.normal(jax.random.key(0), (256, 20))
y = x[:, :3].sum(axis=1, keepdims=True)  # three of the twenty inputs matter

model = MLP()
tx = optax.chain(
    optax.adam(1e-2),
    sparse_optax.prune_to_sparsity(optax.linear_schedule(0.0, 0.9, 600), every=100),
)
state = TrainState.create(
    apply_fn=model.apply, params=model.init(jax.random.key(1), x)["params"], tx=tx
)


@jax.jit
def step(state):
    def loss_fn(params):
        return jnp.mean((state.apply_fn({"params": params}, x) - y) ** 2)

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), loss


for _ in range(1000):
    state, loss = step(state)

sparse_optax.check_sparsity(state.params, state.opt_state)
print(f"loss: {loss:.4f}")
masks = sparse_optax.get_masks(state.opt_state)
print(sparse_optax.sparsity_report(state.params, masks))
