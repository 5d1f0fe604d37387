"""The encoder-decoder against NumPy, and what it writes token by token."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sparse_optax
from experiments.networks import seq2seq
from experiments.networks.encoder_decoder import Shape, make_dropout
from experiments.networks.seq2seq import init_seq2seq, source_mask
from experiments.text.batches import Batch

ONE = Shape(11, 11, True, 2, 8, 12, 2, 7, 6)
TWO = Shape(9, 11, False, 1, 8, 12, 4, 7, 6)


def network(shape, **settings):
    """Returns a network whose every weight matters, biases and norms included."""
    made, params = init_seq2seq(shape, settings.get("label_smoothing", 0.0), 0)
    rng = np.random.default_rng(0)
    leaves, structure = jax.tree.flatten(params)
    leaves = [
        jnp.asarray(w + rng.normal(0, 0.3, w.shape).astype(np.float32)) for w in leaves
    ]
    return made, jax.tree.unflatten(structure, leaves)


def batch(shape, rows=3):
    rng = np.random.default_rng(1)
    source = rng.integers(4, shape.source_vocabulary, (rows, 7))
    source[0, 5:] = source[2, 3:] = 0
    target = rng.integers(4, shape.target_vocabulary, (rows, 6))
    target[:, 0], target[1, 4:], target[2, 3:] = 1, 0, 0
    target[0, 5] = target[1, 3] = target[2, 2] = 2
    return Batch(jnp.asarray(source, jnp.int32), jnp.asarray(target, jnp.int32))


# ------------------------------------------------------ independent forward in NumPy


def linear(p, x):
    return x @ p["kernel"] + p["bias"]


def norm(p, x):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * p["scale"] + p["bias"]


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
    x = dropout(embed(source_table, p["encoder"]["positions"], source))
    everything = np.ones((len(source), len(source)))
    for i in range(shape.layers):
        layer = p["encoder"]["layers"][f"{i:02}"]
        y = attend(layer["attention"], x, x, everything, shape.heads)
        x = norm(layer["attention_residual"]["norm"], x + dropout(y))
        y = feed_forward(layer["feed_forward"], x)
        x = norm(layer["feed_forward_residual"]["norm"], x + dropout(y))
    read, x = x, dropout(embed(table, p["decoder"]["positions"], target))
    past = np.tril(np.ones((len(target), len(target))))
    for i in range(shape.layers):
        layer = p["decoder"]["layers"][f"{i:02}"]
        y = attend(layer["attention"], x, x, past, shape.heads)
        x = norm(layer["attention_residual"]["norm"], x + dropout(y))
        everything = np.ones((len(target), len(source)))
        y = attend(layer["cross_attention"], x, read, everything, shape.heads)
        x = norm(layer["cross_attention_residual"]["norm"], x + dropout(y))
        y = feed_forward(layer["feed_forward"], x)
        x = norm(layer["feed_forward_residual"]["norm"], x + dropout(y))
    return x @ table.T


def cross_entropy(logits, labels, smoothing):
    """By the definition: against a target that gives smoothing / V to every token."""
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = np.full(logits.shape, smoothing / logits.shape[-1])
    wanted[np.arange(len(labels)), labels] += 1 - smoothing
    return -(wanted * log_probs).sum(-1)


def mean_loss(params, shape, pairs, smoothing=0.0, **settings):
    losses = []
    for source, target in zip(*map(np.asarray, pairs), strict=True):
        source, target = source[source != 0], target[target != 0]
        logits = forward(params, shape, source, target[:-1], **settings)
        losses.extend(cross_entropy(logits, target[1:], smoothing))
    assert len(losses) == 5 + 3 + 2  # tokens, each counted alike
    return np.mean(losses)


@pytest.mark.parametrize("shape", [ONE, TWO], ids=["one-vocabulary", "two"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_that_of_numpy(shape, smoothing):
    made, params = network(shape, label_smoothing=smoothing)
    pairs = batch(shape)
    loss = jax.jit(made.loss)(params, pairs, None)
    expected = mean_loss(params, shape, pairs, smoothing)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [ONE, TWO], ids=["one-vocabulary", "two"])
def test_tokens_one_by_one_have_the_logits_of_whole_sequences(shape):
    made, params = network(shape)
    source, target = batch(shape)
    module, mask = made._network(params), source_mask(source)
    read = module.encode(source, mask)
    whole = module.decode(target, read, mask)
    cache = module.empty_cache(read, target.shape[1])
    for place in range(target.shape[1]):
        logits, cache = module.step(target[:, place], place, cache, read, mask)
        np.testing.assert_allclose(logits, whole[:, place], rtol=2e-5, atol=2e-5)


def test_tied_embeddings_are_one_tensor():
    """Of both sides and the output: counted once, masked once."""
    _, params = network(ONE)
    masks = sparse_optax.prune_by_magnitude(0.1, mask=None).init(params).masks
    report = sparse_optax.sparsity_report(params, masks)
    tables = [name for name in report.leaves if name.endswith("embedding/embedding")]
    assert sorted(tables) == [
        *("decoder/positions/embedding/embedding", "embedding/embedding"),
        "encoder/positions/embedding/embedding",
    ]
    attention, forward = 4 * (64 + 8), 8 * 12 + 12 + 12 * 8 + 8
    layers = 2 * (attention + forward + 2 * 16) + 2 * (2 * attention + forward + 3 * 16)
    assert report.total.size == 11 * 8 + (7 * 8 + 16) + (6 * 8 + 16) + layers
    _, two = network(TWO)
    assert two["source_embedding"]["embedding"].shape == (9, 8)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        # Of the paper: two and two layers with 32,000 pieces; six and six, twice that.
        (Shape(32_000, 32_000, True, 2, 256, 256, 4, 254, 254), 10_433_536),
        (Shape(32_000, 32_000, False, 6, 512, 2048, 8, 128, 128), 77_039_616),
    ],
)
def test_sizes_of_the_paper(shape, size):
    params = jax.eval_shape(lambda: init_seq2seq(shape, 0.1, 0)[1])
    total = sum(math.prod(w.shape) for w in jax.tree.leaves(params))
    d, f, n = shape.features, shape.hidden, shape.layers
    attention, forward = 4 * (d * d + d), 2 * d * f + d + f
    layers = n * (3 * attention + 2 * forward + 5 * 2 * d)
    tables = (1 if shape.shared else 2) * 32_000 * d
    places = (shape.source_positions + shape.target_positions) * d + 2 * 2 * d
    assert total == layers + tables + places == size


def test_dropout_depends_on_its_key_alone():
    made, params = network(ONE)
    pairs, half = batch(ONE), jnp.float32(0.5)
    keys = [jax.random.key(seed) for seed in (0, 0, 1)]
    losses = [float(made.loss(params, pairs, (half, key))) for key in keys]
    assert losses[0] == losses[1] != losses[2]
    without = made.loss(params, pairs)
    assert float(without) not in losses
    np.testing.assert_allclose(
        made.loss(params, pairs, (jnp.float32(0), keys[0])), without, rtol=1e-6
    )


def test_dropout_acts_on_embeddings_and_on_what_is_added_to_them(monkeypatch):
    """In the encoder and in the decoder, seen by something else in its place."""

    def less(x):
        return 0.7 * x

    monkeypatch.setattr(seq2seq, "make_dropout", lambda rate, key: less)
    made, params = network(TWO)
    loss = made.loss(params, batch(TWO), (jnp.float32(0.3), jax.random.key(0)))
    expected = mean_loss(params, TWO, batch(TWO), dropout=less)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dropout_leaves_out_its_share_and_keeps_the_mean(dtype):
    """As flax does it, feature by feature, and others at each call."""
    rate, key, x = 0.3, jax.random.key(0), jnp.ones((100, 100), dtype)
    dropout = make_dropout(jnp.float32(rate), key)
    once, again = dropout(x), dropout(x)
    assert once.dtype == dtype
    assert abs(float((once == 0).mean()) - rate) < 0.02
    np.testing.assert_allclose(float(once.max()), 1 / (1 - rate), rtol=1e-2)
    assert not jnp.array_equal(once, again)
    theirs = nnx.Dropout(rate, deterministic=False)
    expected = theirs(x, rngs=nnx.Rngs(dropout=key))
    np.testing.assert_allclose(
        once.astype(jnp.float32), expected.astype(jnp.float32), rtol=1e-2
    )


def test_layers_of_deep_networks_are_in_order():
    """Named by numbers that sort as names: the tenth is behind the second."""
    shape = dataclasses.replace(TWO, layers=11)
    made, params = network(shape)
    source, target = (np.asarray(x[1]) for x in batch(shape))
    source, target = source[source != 0], target[target != 0]
    module = made._network(params)
    mask = source_mask(jnp.asarray(source[None]))
    read = module.encode(jnp.asarray(source[None]), mask)
    logits = module.decode(jnp.asarray(target[None]), read, mask)
    expected = forward(params, shape, source, target)
    np.testing.assert_allclose(logits[0], expected, rtol=1e-3, atol=1e-3)


def test_logits_are_float32_whatever_the_network_computes_in():
    made, params = network(ONE)
    half = made._replace(dtype=jnp.bfloat16)
    source, target = batch(ONE)
    module, mask = half._network(params), source_mask(source)
    logits = module.decode(target, module.encode(source, mask), mask)
    assert logits.dtype == jnp.float32
    assert np.any(logits != logits.astype(jnp.bfloat16))
    loss, grads = jax.value_and_grad(half.loss)(params, batch(ONE), None)
    assert loss.dtype == jnp.float32
    assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype(jnp.float32)}


def test_padding_changes_nothing():
    made, params = network(ONE)
    source, target = batch(ONE)
    wider = jnp.pad(source[2:, :3], ((0, 0), (0, 2)))
    narrow = made.loss(params, Batch(source[2:, :3], target[2:, :3]))
    wide = made.loss(params, Batch(wider, target[2:]))
    np.testing.assert_allclose(narrow, wide, rtol=1e-6)
