"""What the encoder-decoder writes, against a slow search over whole sequences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from short_runs import quickly  # noqa: F401
from test_networks import ONE, TWO, batch, network

from experiments.data.tokenizer import FIRST, LAST
from experiments.networks import decoding
from experiments.networks.seq2seq import source_mask

pytestmark = pytest.mark.quickly_compiled

LENGTH = 5


@pytest.mark.parametrize(
    ("shape", "beam", "penalty"), [(ONE, 1, 0.0), (TWO, 3, 0.6), (ONE, 3, 2.0)]
)
def test_a_network_writes_what_a_slow_search_finds(shape, beam, penalty):
    """A beam of one is greedy: it takes the most probable token, whatever follows."""
    made, params = network(shape)
    source, _ = batch(shape, rows=8)
    rng = np.random.default_rng(0)

    def varied(path, w):  # or all texts would be one token, again and again
        noise = rng.normal(size=w.shape)
        if w.ndim == 1:
            return jnp.full_like(w, "scale" in jax.tree_util.keystr(path))
        return jnp.asarray(noise, jnp.float32)

    params = jax.tree.map_with_path(varied, params)

    @jax.jit
    def log_probs(tokens):
        module, mask = made.network(params), source_mask(source)
        logits = module.decode(tokens, module.encode(source, mask), mask)
        return jax.nn.log_softmax(logits)

    def search(row):
        live, found = {(): 0.0}, {}
        for length in range(1, LENGTH + 1):
            longer = {}
            for start, total in live.items():
                tokens = np.full((len(source), LENGTH), FIRST)
                tokens[row, 1:length] = start
                following = np.asarray(log_probs(tokens))[row, length - 1]
                for new, value in enumerate(following):
                    longer[*start, new] = total + value
            best = sorted(longer, key=longer.__getitem__, reverse=True)[: 2 * beam]
            if beam == 1:
                best = best[:1]
            live = {x: longer[x] for x in best if x[-1] != LAST}
            live = dict(list(live.items())[:beam])
            last = length == LENGTH
            over = [x for x in best if x[-1] == LAST or (last and x in live)]
            found |= {x: longer[x] / length**penalty for x in over}
        best = max(found, key=found.__getitem__)
        return [*best, *[LAST] * (LENGTH - len(best))]

    write = jax.jit(made.write, static_argnums=(2, 3, 4))
    written = write(params, source, LENGTH, beam, penalty).tolist()
    assert written == [search(row) for row in range(len(source))]
    assert shape is TWO or len({tokens.count(LAST) for tokens in written}) > 1


def test_the_search_ends_when_nothing_can_be_better():
    """A language whose texts end at once, and one whose texts never do."""
    count, steps = [], []
    for end in (20.0, -20.0):
        logits = jnp.where(jnp.arange(4) == LAST, end, 0.0)

        def step(tokens, index, cache, logits=logits):
            jax.debug.callback(lambda: count.append(1))
            return jnp.broadcast_to(logits, (len(tokens), 4)), cache

        count.clear()
        tokens, _ = decoding.beam_search(step, (), 1, 30, beam=2, length_penalty=0.6)
        jax.effects_barrier()
        steps.append((len(count), bool((tokens == LAST).all())))
    assert steps == [(1, True), (30, False)]
