"""Networks in functional form: statistics of norms beside params, and bfloat16."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from shallow import Shallow

import sparse_optax
from experiments import data
from experiments.networks import NETWORKS, LeNet5, convolution, resnet
from experiments.networks.functional import init_network
from experiments.tasks.digits import CONFIG
from experiments.training.image_problem import ImageProblem
from experiments.training.phases import Phases

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 8, 8, 3), np.uint8)
LABELS = RNG.integers(0, 10, 12, np.int32)


def test_statistics_are_running_ones_of_the_batches():
    network, variables = init_network(Shallow, IMAGES.shape[1:], 255, 0)
    _, statistics = jax.jit(network.loss)(*variables, IMAGES, LABELS)
    kernel = variables.params["conv"]["kernel"]
    features = jax.lax.conv_general_dilated(
        *(IMAGES / np.float32(255), kernel, (1, 1), "SAME"),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    for name, start, batch in (("mean", 0, jnp.mean), ("var", 1, jnp.var)):
        np.testing.assert_array_equal(variables.statistics["norm"][name], start)
        expected = 0.9 * start + 0.1 * batch(features, (0, 1, 2))
        result = statistics["norm"][name]
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("features", [16, 32])
def test_blocks_of_the_resnet_by_hand(features):
    """relu(x + norm(conv(relu(norm(conv(x)))))), halved where there are more features.

    In inference, with the statistics that a new norm has: mean 0 and variance 1.
    """
    block = resnet.Block(16, features, nnx.Rngs(0))
    block.eval()
    x = jnp.asarray(RNG.normal(size=(2, 8, 8, 16)), jnp.float32)
    stride = features // 16

    def conv(x, kernel, stride):
        return jax.lax.conv_general_dilated(
            *(x, kernel, (stride, stride), ((1, 1), (1, 1))),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    scale = (1 + 1e-5) ** -0.5
    y = jnp.maximum(scale * conv(x, block.conv1.kernel[...], stride), 0)
    y = scale * conv(y, block.conv2.kernel[...], 1)
    shortcut = np.zeros_like(y)
    shortcut[..., :16] = x[:, ::stride, ::stride]
    np.testing.assert_allclose(block(x), jnp.maximum(y + shortcut, 0), atol=1e-4)


def test_in_inference_images_do_not_depend_on_one_another():
    network, variables = init_network(Shallow, IMAGES.shape[1:], 255, 0)
    logits = network.logits(variables, IMAGES)
    np.testing.assert_allclose(network.logits(variables, IMAGES[:3]), logits[:3], 1e-4)
    twice = variables._replace(
        statistics=jax.tree.map(lambda x: 2 * x, variables.statistics)
    )
    assert jnp.abs(network.logits(twice, IMAGES) - logits).max() > 1e-2


def test_statistics_are_trained_along_and_never_pruned(monkeypatch):
    monkeypatch.setitem(NETWORKS, "resnet32", Shallow)
    split = data.Split(IMAGES, LABELS)
    config = dataclasses.replace(
        *(CONFIG,), network="resnet32", batch_size=4, interval=3, fraction=0.5
    )
    phases = Phases(config, ImageProblem(config, data.Dataset(split, split, None, 255)))
    start = phases.start_pruning(phases.train_dense(phases.start_dense())).current
    state = phases.prune(phases.train_sparse(start))
    report = sparse_optax.sparsity_report(
        state.params, sparse_optax.get_masks(state.opt_state)
    )
    size = 3 * 3 * 3 * 16 + 2 * 16 + 16 * 10 + 10
    assert (report.total.size, report.total.kept) == (size, size - size // 2)
    assert jax.tree.structure(state.statistics) == jax.tree.structure(start.statistics)
    for before, after in zip(
        *map(jax.tree.leaves, (start.statistics, state.statistics)), strict=True
    ):
        assert jnp.all(before != after)
    # What the finished network is judged with are these.
    count = phases.problem.count_correct(state.variables)
    logits = phases.problem.network.logits(state.variables, jnp.asarray(IMAGES))
    assert int(count) == int((logits.argmax(-1) == LABELS).sum())


def test_computing_in_bfloat16_leaves_params_in_float32():
    images = RNG.integers(0, 256, (5, 28, 28, 1), np.uint8)
    whole, variables = init_network(LeNet5, (28, 28, 1), 255, 0)
    half, same = init_network(LeNet5, (28, 28, 1), 255, 0, jnp.bfloat16)
    jax.tree.map(np.testing.assert_array_equal, variables, same)
    expected, result = (n.logits(variables, images) for n in (whole, half))
    assert result.dtype == jnp.float32 and jnp.any(result != expected)
    np.testing.assert_allclose(result, expected, atol=0.02)
    grads, _ = jax.grad(half.loss, has_aux=True)(*variables, images, LABELS[:5])
    assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


def test_norms_hand_on_the_dtype_that_they_are_given():
    """Or all of the network beyond the first one would compute in float32."""
    norm = resnet.Norm(16, nnx.Rngs(0))
    images = jnp.ones((2, 4, 4, 16), jnp.bfloat16)
    assert norm(images).dtype == jnp.bfloat16
    assert norm.mean.dtype == norm.var.dtype == jnp.float32
    assert jnp.any(norm.mean[...] != 0)
    modules = nnx.iter_modules(resnet.ResNet32((8, 8, 3), rngs=nnx.Rngs(0)))
    norms = [x for _, x in modules if isinstance(x, nnx.BatchNorm)]
    assert len(norms) == 31 and {type(x) for x in norms} == {resnet.Norm}


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_accelerators_have_a_convolution_of_their_own(platform):
    def loss(images, kernel):
        return convolution.conv(images, kernel, (1, 1), "VALID").sum()

    exported = jax.export.export(
        jax.jit(jax.value_and_grad(loss, argnums=1)), platforms=[platform]
    )(jnp.ones((2, 9, 9, 3)), jnp.ones((3, 3, 3, 4)))
    assert ("stablehlo.convolution" in exported.mlir_module()) == (platform != "cpu")
