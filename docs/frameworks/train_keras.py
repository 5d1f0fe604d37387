"""Prunes a Keras 3 model on the JAX backend, in a plain optax loop."""

import os

os.environ["KERAS_BACKEND"] = "jax"  # before Keras is imported

import jax
import jax.numpy as jnp
import keras
import optax

import sparse_optax

x = jax.random.normal(jax.random.key(0), (256, 20))
y = x[:, :3].sum(axis=1, keepdims=True)  # three of the twenty inputs matter

keras.utils.set_random_seed(0)
model = keras.Sequential(
    [
        keras.Input((20,)),
        keras.layers.Dense(32, "relu"),
        keras.layers.BatchNormalization(),
        keras.layers.Dense(1),
    ]
)
# A dict, so that masks and reports have names. JAX sorts it, and Keras wants a list.
params = {v.path: v.value for v in model.trainable_variables}
non_trainable = [v.value for v in model.non_trainable_variables]
tx = sparse_optax.relevance_pruning(optax.adam(1e-2), strength=1e-3)
opt_state = tx.init(params)


@jax.jit
def step(params, non_trainable, opt_state):
    def loss_fn(params):
        trainable = [params[v.path] for v in model.trainable_variables]
        outputs, rest = model.stateless_call(trainable, non_trainable, x, training=True)
        return jnp.mean((outputs - y) ** 2), rest

    (loss, rest), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), rest, opt_state, loss


for i in range(1, 1001):
    params, non_trainable, opt_state, loss = step(params, non_trainable, opt_state)
    if i % 100 == 0 and i <= 600:
        params, opt_state = sparse_optax.prune(params, opt_state, fraction=0.3)

sparse_optax.check_sparsity(params, opt_state)
print(f"loss: {loss:.4f}")
print(sparse_optax.sparsity_report(params, sparse_optax.get_masks(opt_state)))

for variable in model.trainable_variables:  # back into the model, to predict or save
    variable.assign(params[variable.path])
for variable, value in zip(model.non_trainable_variables, non_trainable, strict=True):
    variable.assign(value)
