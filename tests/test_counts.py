"""64-bit counts without 64-bit types, against Python's integers and fractions."""

import fractions
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, strategies as st
from jax import lax

from sparse_optax import _counts

WORD = 2**32


def count(n: int) -> _counts.Count:
    return _counts.Count(np.uint32(n // WORD), np.uint32(n % WORD))


def integer(c: _counts.Count) -> int:
    assert c.high.dtype == c.low.dtype == jnp.uint32
    return int(c.high) * WORD + int(c.low)


def rounded(fraction: float, n: int) -> int:
    """float32(fraction) * n, rounded half to even, in unlimited precision."""
    return round(fractions.Fraction(float(np.float32(fraction))) * n)


# Numbers of every size, and the neighbours of powers of two, where carries happen.
NUMBERS = st.one_of(
    st.integers(0, 2**63 - 1),
    st.integers(0, 63).flatmap(lambda bits: st.integers(0, 2**bits)),
    st.builds(
        lambda bits, step: min(max(2**bits + step, 0), 2**63 - 1),
        st.integers(0, 63),
        st.integers(-2, 2),
    ),
)
FRACTIONS = st.one_of(
    st.floats(0, 1, width=32),
    st.floats(0, float(np.finfo(np.float32).tiny), width=32),  # subnormal
    st.integers(0, 1024).map(lambda i: i / 1024),
)

ADD = jax.jit(_counts.add)
SUBTRACT = jax.jit(_counts.subtract)
LESS = jax.jit(_counts.less)
MINIMUM = jax.jit(_counts.minimum)
IS_ZERO = jax.jit(_counts.is_zero)
FRACTION_OF = jax.jit(_counts.fraction_of)
SUM_WORDS = jax.jit(_counts.sum_words)


@given(NUMBERS)
@example(0)
@example(WORD - 1)
@example(WORD)
@example(2**63 - 1)
def test_a_constant_is_its_number(n):
    assert integer(_counts.constant(n)) == n
    assert bool(IS_ZERO(count(n))) == (n == 0)


@given(NUMBERS, NUMBERS)
@example(WORD - 1, 1)
@example(WORD, 1)
@example(2**63 - 1, 2**63 - 1)
def test_arithmetic_and_order_are_those_of_integers(a, b):
    assert integer(ADD(count(a), count(b))) == a + b
    assert integer(SUBTRACT(count(a), count(b))) == max(a - b, 0)
    assert bool(LESS(count(a), count(b))) == (a < b)
    assert not LESS(count(a), count(a))
    assert integer(MINIMUM(count(a), count(b))) == min(a, b)


@given(FRACTIONS, NUMBERS)
@example(0.5, 1)
@example(0.5, 3)
@example(0.5, 5)
@example(0.25, 2)
@example(0.1, 266_610)
@example(0.9, 2**26 + 1)
@example(1.0, 2**63 - 1)
@example(float(np.finfo(np.float32).smallest_subnormal), 2**63 - 1)
@example(float(np.nextafter(np.float32(1), np.float32(0))), 2**63 - 1)
@example(float(np.nextafter(np.float32(0.5), np.float32(1))), 1)
@example(float(np.nextafter(np.float32(0.5), np.float32(0))), 3)
def test_a_fraction_of_a_count_has_one_rounding(fraction, n):
    result = integer(FRACTION_OF(np.float32(fraction), count(n)))
    assert result == rounded(fraction, n)
    assert 0 <= result <= n


@given(st.integers(1, 24), st.integers(0, 2**39 - 1))
def test_a_half_goes_to_the_even_neighbour(bits, m):
    n = (2 * m + 1) * 2 ** (bits - 1)  # n / 2^bits is m + 1/2
    result = integer(FRACTION_OF(np.float32(2.0**-bits), count(n)))
    assert result == m + m % 2


@pytest.mark.parametrize(
    ("fraction", "clamped"),
    [(-1.0, 0), (-0.0, 0), (1.5, 1), (np.inf, 1), (-np.inf, 0), (np.nan, 0)],
)
@pytest.mark.parametrize("n", [0, 7, 2**40 + 1])
def test_fractions_out_of_range_are_clamped(fraction, clamped, n):
    assert integer(FRACTION_OF(np.float32(fraction), count(n))) == clamped * n


@given(st.lists(st.integers(0, WORD - 1), max_size=40), st.integers(0, 2**16 - 40))
@example([], 2**16 - 40)
def test_sums_of_words_do_not_overflow(words, num_largest):
    padded = np.zeros(2**16, np.uint32)
    padded[: len(words)] = words
    padded[len(words) : len(words) + num_largest] = WORD - 1
    assert integer(SUM_WORDS(padded)) == sum(padded.tolist())


@pytest.mark.parametrize("number", [2**24, 2**24 + 1])
def test_sums_of_many_words_do_not_overflow(number):
    words = np.full(number, WORD - 1, np.uint32)
    assert integer(SUM_WORDS(words)) == number * (WORD - 1)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 0, 2), (4, 5), (2, 3, 4)])
def test_true_elements_are_counted(shape):
    x = np.random.default_rng(0).random(shape) < 0.5
    assert integer(_counts.count_true(jnp.asarray(x))) == x.sum()


@pytest.mark.parametrize("limit", [2, 5, 16])
def test_a_large_array_is_counted_by_rows(monkeypatch, limit):
    x = np.random.default_rng(1).random((3, 2, 4, 2)) < 0.5
    monkeypatch.setattr(_counts, "_WORD", limit)
    result = _counts.count_true(jnp.asarray(x))
    monkeypatch.undo()
    assert integer(result) == x.sum()


def both_counts(arrays):
    """How many are true of each of them, and of the first once more, in another way."""
    each = _counts.count_each([arrays])
    first = lambda c: _counts.Count(*(word[0] for word in c))  # noqa: E731
    return [first(c) for c in each], (_counts.count_all([arrays]))[0]


# On a mesh counts are plain sums, and XLA folds that of a constant array: nothing of
# this size is ever stored. How axes are summed apart is the same without a mesh.
@pytest.mark.parametrize(
    "shape",
    [
        (2**26 + 1,),
        (3, 2**31 - 1),
        (2**16, 2**16),
        (96, 2**14, 2**16),
        (2**26, 64),
        (256_000, 18_432),  # the embedding of a model of 340 billion weights
        (5, 2**16, 2**16),
        (2**20, 2**20),
    ],
    ids=str,
)
def test_counts_beyond_a_word_are_exact(shape):
    size = functools.reduce(lambda a, b: a * b, shape)
    mesh = jax.make_mesh((1,), ("x",), devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        [result], total = jax.jit(lambda: both_counts([jnp.ones(shape, bool)]))()
    assert integer(result) == integer(total) == size


@pytest.mark.parametrize("shape", [(2**26 + 1,), (2**12, 2**15), (3, 2**14, 2**16)])
def test_counts_of_large_arrays_are_exact_without_a_mesh(shape):
    @jax.jit
    def count(n):
        index = lax.broadcasted_iota(jnp.uint32, shape, len(shape) - 1)  # not stored
        return both_counts([index < n, index >= n])

    n, size = shape[-1] - 5, math.prod(shape)
    each, total = count(jnp.uint32(n))
    few, rest = (integer(c) for c in each)
    assert few == size // shape[-1] * n and few + rest == size
    assert integer(total) == few


@given(st.lists(NUMBERS.map(lambda n: n // 64), min_size=1, max_size=50))
@example([WORD - 1] * 50)
def test_totals_are_those_of_integers(numbers):
    words = [np.array(w, np.uint32) for w in zip(*map(count, numbers), strict=True)]
    assert integer(_counts.total(_counts.Count(*words))) == sum(numbers)


@pytest.mark.parametrize(
    "shape",
    [
        *((10**6,), (10**6, 2), (10**6, 15), (10**6, 16), (3, 3, 64, 64), (40, 1000)),
        *((256_000, 18_432), (2**26, 64), (80, 8192, 28_672)),
    ],
    ids=str,
)
def test_counts_take_little_memory(shape):
    x = jax.ShapeDtypeStruct(shape, bool)
    words = jax.eval_shape(lambda x: _counts._words([x, x, x]), x)
    assert len(words) == 3
    for w in words:
        assert w.size <= math.prod(shape) / 16
