"""The networks: their layers by hand, their sizes, and the functional form."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from short_runs import Small, quickly  # noqa: F401

import sparse_optax
from experiments import networks
from experiments.data.batches import Batch
from experiments.data.images import Dataset, Split
from experiments.networks import convolution, kinds, lenets, resnet, seq2seq
from experiments.networks.encoder_decoder import Shape
from experiments.networks.functional import init_network
from experiments.networks.seq2seq import init_seq2seq
from experiments.tasks.digits import CONFIG
from experiments.training import optimizers
from experiments.training.image_problem import ImageProblem
from experiments.training.phases import Phases

pytestmark = pytest.mark.quickly_compiled

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 8, 8, 3), np.uint8)
LABELS = RNG.integers(0, 10, 12, np.int32)


def size_of(params):
    return sum(math.prod(w.shape) for w in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [
        ("lenet300", (28, 28, 1), 266_610),
        ("lenet5", (28, 28, 1), 431_080),
        ("pixel-transformer", (8, 8, 1), 43_690),
        ("resnet20", (32, 32, 3), 272_474),
    ],
)
def test_networks_have_their_published_sizes(name, shape, count):
    def logits():
        network, variables = init_network(networks.NETWORKS[name], shape, 255, 0)
        images = jnp.zeros((2, *shape), jnp.uint8)
        return variables.params, network.logits(variables, images)

    params, found = jax.eval_shape(logits)
    assert size_of(params) == count and found.shape == (2, 10)
    # Checkpoints and sparse files store keys as text.
    paths = [path for path, _ in jax.tree.leaves_with_path(params)]
    assert {type(part.key) for path in paths for part in path} == {str}


@pytest.mark.parametrize(
    ("strides", "shape", "batch"), [(1, (5, 6), 32), (2, (3, 3), 25)]
)
def test_conv_is_the_convolution(strides, shape, batch):
    """Alone, and for batches of images or kernels, of which one may be the same."""
    keys = jax.random.split(jax.random.key(0))
    images = jax.random.normal(keys[0], (2, batch, 9, 8, 2))
    kernels = jax.random.normal(keys[1], (2, 5, 3, 2, 4))

    def outcome(conv):
        def loss(images, kernel):
            names = "NHWC", "HWIO", "NHWC"
            settings = {"padding": "VALID", "dimension_numbers": names}
            outputs = conv(images, kernel, (strides, strides), **settings)
            return jnp.sum(jnp.sin(outputs)), outputs

        def both(images, kernel):
            return jax.grad(loss, argnums=(0, 1), has_aux=True)(images, kernel)

        batched = [jax.vmap(both, axes) for axes in ((0, None), (None, 0), (0, 0))]
        args = (images[0], kernels[0]), (images, kernels[0]), (images[0], kernels)
        return [
            jax.jit(f)(*x)
            for f, x in zip([both, *batched], [*args, (images, kernels)], strict=True)
        ]

    ours, theirs = map(outcome, (convolution.conv, jax.lax.conv_general_dilated))
    assert ours[0][1].shape == (batch, *shape, 4)
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_max_pool():
    images = jax.random.normal(jax.random.key(0), (2, 6, 4, 3))
    expected = nnx.max_pool(images, (2, 2), strides=(2, 2))
    np.testing.assert_array_equal(lenets.max_pool(images), expected)


@pytest.mark.parametrize("features", [16, 32])
def test_blocks_of_the_resnet_by_hand(features):
    """relu(shortcut(x) + norm(conv(relu(norm(conv(x)))))).

    With more features, images are halved, and the shortcut projects the features. In
    inference, with the statistics of a new norm: mean 0 and variance 1.
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
    shortcut = x
    if features > 16:
        kernel = block.project.kernel[0, 0]
        shortcut = scale * x[:, ::stride, ::stride] @ kernel
    np.testing.assert_allclose(block(x), jnp.maximum(y + shortcut, 0), atol=1e-4)


def test_norms_are_not_pruned_before_training():
    """They are the leaves with one axis, apart from the bias of the output."""
    params = jax.eval_shape(
        lambda: init_network(networks.ResNet20, (32, 32, 3), 255, 0)[1].params
    )
    found = optimizers.prunable(dataclasses.replace(CONFIG, prune="snip"))(params)
    of_norms = jax.tree.map(lambda w: w.ndim == 1, params)
    of_norms["output"]["bias"] = False
    assert found == jax.tree.map(lambda is_norm: not is_norm, of_norms)


def test_statistics_are_running_ones_of_the_batches():
    network, variables = init_network(Small, IMAGES.shape[1:], 255, 0)
    _, statistics = network.loss(*variables, IMAGES, LABELS)
    kernel, bias = (variables.params["hidden"][x] for x in ("kernel", "bias"))
    features = (IMAGES / np.float32(255)).reshape(12, -1) @ kernel + bias
    for name, start, batch in (("mean", 0, jnp.mean), ("var", 1, jnp.var)):
        np.testing.assert_array_equal(variables.statistics["norm"][name], start)
        expected = 0.9 * start + 0.1 * batch(features, 0)
        result = statistics["norm"][name]
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)


def test_statistics_are_trained_and_never_pruned(monkeypatch):
    monkeypatch.setitem(networks.NETWORKS, "lenet300", Small)
    split = Split(IMAGES, LABELS)
    config = dataclasses.replace(CONFIG, batch_size=4, interval=3, fraction=0.5)
    phases = Phases(config, ImageProblem(config, Dataset(split, split, None, 255)))
    start = phases.start_pruning(phases.train_dense(phases.start_dense())).current
    state = phases.prune(phases.train_sparse(start))
    masks = sparse_optax.get_masks(state.opt_state)
    report = sparse_optax.sparsity_report(state.params, masks)
    size = 8 * 8 * 3 * 8 + 8 + 2 * 8 + 8 * 10 + 10
    assert (report.total.size, report.total.kept) == (size, size - size // 2)
    for before, after in zip(
        *map(jax.tree.leaves, (start.statistics, state.statistics)), strict=True
    ):
        assert jnp.all(before != after)
    # The finished network is measured with these.
    count = phases.problem.count_correct(state.variables)
    logits = phases.problem.network.logits(state.variables, jnp.asarray(IMAGES))
    assert int(count) == int((logits.argmax(-1) == LABELS).sum())


def test_computing_in_bfloat16_leaves_params_in_float32():
    whole, variables = init_network(Small, (8, 8, 3), 255, 0)
    half, same = init_network(Small, (8, 8, 3), 255, 0, jnp.bfloat16)
    jax.tree.map(np.testing.assert_array_equal, variables, same)
    expected, result = (n.logits(variables, IMAGES) for n in (whole, half))
    assert result.dtype == jnp.float32 and jnp.any(result != expected)
    np.testing.assert_allclose(result, expected, atol=0.02)
    grads, _ = jax.grad(half.loss, has_aux=True)(*variables, IMAGES, LABELS)
    assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


# ------------------------------------------------ the encoder-decoder against NumPy

ONE = Shape(11, 11, True, 2, 8, 12, 2, 7, 6)  # one vocabulary
TWO = Shape(9, 11, False, 1, 8, 12, 4, 7, 6)


def network(shape, label_smoothing=0.0):
    """Returns a network whose every weight matters, biases and norms included."""
    made, params = init_seq2seq(shape, label_smoothing, 0)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda w: jnp.asarray(w + rng.normal(0, 0.3, w.shape).astype(np.float32)),
        params,
    )
    return made, params


def batch(shape, rows=3):
    rng = np.random.default_rng(1)
    source = rng.integers(4, shape.source_vocabulary, (rows, 7))
    source[0, 5:] = source[2, 3:] = 0
    target = rng.integers(4, shape.target_vocabulary, (rows, 6))
    target[:, 0], target[1, 4:], target[2, 3:] = 1, 0, 0
    target[0, 5] = target[1, 3] = target[2, 2] = 2
    return Batch(jnp.asarray(source, jnp.int32), jnp.asarray(target, jnp.int32))


def linear(p, x):
    return x @ p["kernel"] + p["bias"]


def norm(p, x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def attend(p, x, to, allowed, heads):
    """One sequence: x [T, F], to [S, F], allowed [T, S]."""
    q, k, v = linear(p["query"], x), linear(p["key"], to), linear(p["value"], to)
    size, parts = x.shape[-1] // heads, []
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        scores = q[:, part] @ k[:, part].T / math.sqrt(size)
        weights = np.exp(scores - scores.max()) * allowed
        parts.append(weights / weights.sum(-1, keepdims=True) @ v[:, part])
    return linear(p["output"], np.concatenate(parts, axis=-1))


def feed_forward(p, x):
    x = linear(p["hidden"], x)
    erf = np.vectorize(math.erf)
    return linear(p["output"], x * (1 + erf(x / math.sqrt(2))) / 2)


def embed(table, p, tokens):
    places = p["embedding"]["embedding"][: len(tokens)]
    return norm(p["norm"], table[tokens] * math.sqrt(table.shape[1]) + places)


def forward(params, shape, source, target, dropout=lambda x: x):
    """Returns the logits [T, V] of one pair without padding."""
    p = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
    table = p["embedding"]["embedding"]
    source_table = table if shape.shared else p["source_embedding"]["embedding"]

    def residual(layer, name, x, y):
        return norm(layer[f"{name}_residual"]["norm"], x + dropout(y))

    def side(name, table, tokens, allowed, read=None):
        x = dropout(embed(table, p[name]["positions"], tokens))
        for i in range(shape.layers):
            layer = p[name]["layers"][f"{i:02}"]
            y = attend(layer["attention"], x, x, allowed, shape.heads)
            x = residual(layer, "attention", x, y)
            if read is not None:
                everything = np.ones((len(x), len(read)))
                y = attend(layer["cross_attention"], x, read, everything, shape.heads)
                x = residual(layer, "cross_attention", x, y)
            y = feed_forward(layer["feed_forward"], x)
            x = residual(layer, "feed_forward", x, y)
        return x

    read = side("encoder", source_table, source, np.ones((len(source), len(source))))
    past = np.tril(np.ones((len(target), len(target))))
    return side("decoder", table, target, past, read) @ table.T


def mean_loss(params, shape, pairs, smoothing=0.0, **settings):
    """Returns the cross-entropy with smoothing / V on every token, by definition."""
    losses = []
    for source, target in zip(*map(np.asarray, pairs), strict=True):
        source, target = source[source != 0], target[target != 0]
        logits = forward(params, shape, source, target[:-1], **settings)
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        wanted = np.full(logits.shape, smoothing / logits.shape[-1])
        wanted[np.arange(len(target) - 1), target[1:]] += 1 - smoothing
        losses.extend(-(wanted * log_probs).sum(-1))
    assert len(losses) == 5 + 3 + 2  # tokens, each with the same weight
    return np.mean(losses)


@pytest.mark.parametrize("shape", [ONE, TWO])
def test_loss_is_that_of_numpy(shape, monkeypatch):
    """Where it has no padding.

    Dropout acts on embeddings and on what is added; here it is a factor.
    """

    def less(x):
        return 0.7 * x

    monkeypatch.setattr(seq2seq, "make_dropout", lambda rate, key: less)
    pairs, dropout = batch(shape), (jnp.float32(0.3), jax.random.key(0))
    for smoothing, rate, settings in (
        (0.1, None, {}),
        (0.0, dropout, {"dropout": less}),
    ):
        made, params = network(shape, smoothing)
        loss = jax.jit(made.loss)(params, pairs, rate)
        expected = mean_loss(params, shape, pairs, smoothing, **settings)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        # Of the paper: two and two layers with 32,000 pieces; six and six, twice that.
        (Shape(32_000, 32_000, True, 2, 256, 256, 4, 254, 254), 10_433_536),
        (Shape(32_000, 32_000, False, 6, 512, 2048, 8, 128, 128), 77_039_616),
    ],
)
def test_encoder_decoders_have_the_sizes_of_the_paper(shape, size):
    """A shared embedding counts once, and every weight is of one kind."""
    params = jax.eval_shape(lambda: init_seq2seq(shape, 0.1, 0)[1])
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): math.prod(w.shape)
        for path, w in jax.tree.leaves_with_path(params)
    }
    found = kinds.by_kind(leaves)
    assert sum(found.values()) == sum(leaves.values()) == size
    d, n = shape.features, shape.layers
    side = "both" if shape.shared else "encoder"
    assert found[side, "embedding"] == 32_000 * d
    assert found["decoder", "attention"] == 2 * n * 4 * d * d
    assert found["encoder", "position"] == shape.source_positions * d
