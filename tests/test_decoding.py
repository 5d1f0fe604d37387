"""Beam search against all sequences there are, and against greedy writing."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_encoder_decoder import ONE, batch, network

from experiments.networks import decoding
from experiments.networks.seq2seq import source_mask
from experiments.text.tokenizer import FIRST, LAST

VOCABULARY, LENGTH = 4, 4


def all_sequences():
    """Every sequence of tokens that ends, or has the full length."""
    for length in range(1, LENGTH + 1):
        for tokens in itertools.product(range(VOCABULARY), repeat=length):
            ends = [place for place, token in enumerate(tokens) if token == LAST]
            if ends == [length - 1] or (length == LENGTH and not ends):
                yield tokens


def random_language(seed, rows):
    """A step whose logits depend on all tokens so far, by a cache of their hash."""
    table = jnp.asarray(
        np.random.default_rng(seed).normal(0, 2, (rows, 97, VOCABULARY)), jnp.float32
    )

    def step(tokens, index, cache):
        del index
        row, past = cache
        past = (past * 5 + tokens + 1) % 97
        return table[row, past], (row, past)

    def log_prob(row, tokens):
        past, total = 0, 0.0
        for before, token in zip((FIRST, *tokens), tokens, strict=False):
            past = (past * 5 + before + 1) % 97
            total += float(jax.nn.log_softmax(table[row, past])[token])
        return total

    def cache(beam):
        row = jnp.repeat(jnp.arange(rows), beam)
        return row, jnp.zeros_like(row)

    return step, cache, log_prob


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.2])
def test_a_wide_beam_finds_the_best_of_all_sequences(penalty):
    rows, beam = 6, VOCABULARY ** (LENGTH - 1)
    step, cache, log_prob = random_language(0, rows)
    tokens, scores = jax.jit(
        lambda cache: decoding.beam_search(
            *(step, cache, rows, LENGTH), beam=beam, length_penalty=penalty
        )
    )(cache(beam))
    found = set()
    for row in range(rows):
        score = {
            sequence: log_prob(row, sequence) / len(sequence) ** penalty
            for sequence in all_sequences()
        }
        best = max(score, key=score.__getitem__)
        assert tuple(tokens[row, : len(best)].tolist()) == best
        assert set(tokens[row, len(best) :].tolist()) <= {LAST}
        np.testing.assert_allclose(scores[row], score[best], rtol=1e-5)
        found.add(len(best))
    assert len(found) > 1  # some end early, some do not


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.2])
@pytest.mark.parametrize("beam", [2, 3])
def test_a_narrow_beam_finds_what_a_list_of_beginnings_does(beam, penalty):
    rows = 20
    step, cache, log_prob = random_language(2, rows)
    tokens, scores = decoding.beam_search(
        *(step, cache(beam), rows, LENGTH), beam=beam, length_penalty=penalty
    )
    for row in range(rows):
        live, found = [()], {}
        for length in range(1, LENGTH + 1):
            longer = [(*start, new) for start in live for new in range(VOCABULARY)]
            longer.sort(key=lambda one: -log_prob(row, one))
            longer = longer[: 2 * beam]
            live = [one for one in longer if one[-1] != LAST][:beam]
            over = live if length == LENGTH else []
            for one in [*over, *(one for one in longer if one[-1] == LAST)]:
                found[one] = log_prob(row, one) / length**penalty
        best = max(found, key=lambda one: found[one])
        padded = [*best, *[LAST] * (LENGTH - len(best))]
        assert tokens[row].tolist() == padded
        np.testing.assert_allclose(scores[row], found[best], rtol=1e-5)


def test_a_narrow_beam_is_no_worse_than_greedy_and_a_wide_one_than_a_narrow():
    rows = 40
    step, cache, log_prob = random_language(1, rows)
    written = [decoding.greedy(step, cache(1), rows, LENGTH)]
    for beam in (2, 4, 64):
        tokens, _ = decoding.beam_search(
            *(step, cache(beam), rows, LENGTH), beam=beam, length_penalty=0.0
        )
        written.append(tokens)

    def total(tokens):
        ends = [np.argmax(np.append(row, LAST) == LAST) + 1 for row in tokens]
        return [
            log_prob(row, tuple(sequence[:end].tolist()))
            for row, (sequence, end) in enumerate(
                zip(np.asarray(tokens), ends, strict=True)
            )
        ]

    means = [np.mean(total(tokens)) for tokens in written]
    assert means == sorted(means) and means[0] < means[1]
    best = total(written[-1])
    assert all(a <= b + 1e-5 for a, b in zip(total(written[0]), best, strict=True))


def test_a_beam_follows_each_beginning_by_its_own_cache():
    """What is found with a network's keys and values has the probability it says."""
    made, params = network(ONE)
    source, _ = batch(ONE)
    module, mask = made._network(params), source_mask(source)
    read = module.encode(source, mask)
    repeated = jax.tree.map(lambda x: jnp.repeat(x, 4, axis=0), read)
    mask4 = jnp.repeat(mask, 4, axis=0)
    tokens, scores = decoding.beam_search(
        lambda *args: module.step(*args, repeated, mask4),
        module.empty_cache(repeated, 5),
        *(3, 5),
        beam=4,
        length_penalty=0.6,
    )
    first = jnp.full((3, 1), FIRST)
    logits = module.decode(jnp.concatenate([first, tokens[:, :-1]], 1), read, mask)
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    for row in range(3):
        written = np.asarray(tokens[row])
        length = min(int(np.argmax(np.append(written, 2) == 2)) + 1, 5)
        total = sum(log_probs[row, i, written[i]] for i in range(length))
        np.testing.assert_allclose(scores[row], total / length**0.6, rtol=1e-4)
    found = made.beam_search(params, source, 5, beam=4, length_penalty=0.6)
    np.testing.assert_array_equal(found, tokens)


def test_greedy_takes_the_likeliest_token_each_time():
    made, params = network(ONE)
    source, _ = batch(ONE)
    written = np.asarray(jax.jit(made.greedy, static_argnums=2)(params, source, 5))
    module, mask = made._network(params), source_mask(source)
    read = module.encode(source, mask)
    tokens = np.full((3, 1), FIRST)
    for place in range(5):
        logits = module.decode(jnp.asarray(tokens), read, mask)[:, -1]
        new = np.array(logits.argmax(-1))
        new[(tokens[:, 1:] == LAST).any(1)] = LAST
        tokens = np.concatenate([tokens, new[:, None]], 1)
        np.testing.assert_array_equal(written[:, place], new)


def test_what_is_written_does_not_depend_on_what_is_beside_it():
    made, params = network(ONE)
    source, _ = batch(ONE)
    together = made.beam_search(params, source, 6, beam=3, length_penalty=1.0)
    for row in range(3):
        alone = made.beam_search(
            params, source[row : row + 1], 6, beam=3, length_penalty=1.0
        )
        np.testing.assert_array_equal(alone[0], together[row])


def test_what_has_ended_stays_so_while_others_go_on():
    rows = 12
    step, cache, _ = random_language(3, rows)
    both = [
        decoding.greedy(step, cache(1), rows, LENGTH),
        decoding.beam_search(
            *(step, cache(2), rows, LENGTH), beam=2, length_penalty=0.6
        )[0],
    ]
    for tokens in map(np.asarray, both):
        ended = (tokens == LAST).cumsum(axis=1) > 0
        assert (tokens[ended] == LAST).all()
        lengths = ended.sum(axis=1)
        assert 0 in lengths and len(set(lengths)) > 2


def test_search_ends_when_nothing_better_can_be_found():
    """A language whose texts end at once, and one whose texts never do."""
    count = []

    def language(end):
        logits = jnp.where(jnp.arange(VOCABULARY) == LAST, end, 0.0)

        def step(tokens, index, cache):
            jax.debug.callback(lambda: count.append(1))
            return jnp.broadcast_to(logits, (len(tokens), VOCABULARY)), cache

        return step

    steps = []
    for end in (20.0, -20.0):
        count.clear()
        tokens, _ = decoding.beam_search(
            *(language(end), (), 1, 30), beam=2, length_penalty=0.6
        )
        jax.effects_barrier()
        steps.append((len(count), bool((tokens == LAST).all())))
    assert steps == [(1, True), (30, False)]
