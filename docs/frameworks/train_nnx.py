"""Prunes a flax nnx model: `nnx.Optimizer` hands `prune` to the transformation."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import sparse_optax


class MLP(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(20, 32, rngs=rngs)
        self.norm = nnx.BatchNorm(32, rngs=rngs)  # its statistics are no params
        self.out = nnx.Linear(32, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.norm(self.hidden(x))))


x = jax.random.normal(jax.random.key(0), (256, 20))
y = x[:, :3].sum(axis=1, keepdims=True)  # three of the twenty inputs matter

model = MLP(nnx.Rngs(0))
tx = sparse_optax.relevance_pruning(optax.adam(1e-2), strength=1e-3, fraction=0.3)
optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)


def loss_fn(model):
    return jnp.mean((model(x) - y) ** 2)


@nnx.jit(static_argnames="prune")
def step(model, optimizer, prune):
    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads, prune=prune)
    return loss


for i in range(1, 1001):
    loss = step(model, optimizer, prune=i % 100 == 0 and i <= 600)

params = nnx.state(model, nnx.Param)
sparse_optax.check_sparsity(params, optimizer.opt_state)
print(f"loss: {loss:.4f}")
print(sparse_optax.sparsity_report(params, sparse_optax.get_masks(optimizer.opt_state)))
