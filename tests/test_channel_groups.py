"""Groups of units, found in traced functions, against what is written down here."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from channel_networks import NETWORKS, mlp
from flax import nnx
from helpers import random_tree

import sparse_optax as so

pytestmark = pytest.mark.quickly_compiled

# For each group its kind, its number of units, and its members: a leaf and an axis,
# and [start+before x units x after] where units are not all of the axis, in its order.
GROUPS = {
    "mlp": {
        "w1:1": "3 hidden: b:0 w1:1 w2:0",
        "w1:0": "4 input: w1:0",
    },
    "residual": {
        "in:0": "4 input: in:0",
        "up:1": "5 hidden: down:0 up:1",
        "down:1": "6 hidden: down:1 in:1 out:0 up:0",
    },
    "convolutional": {
        "conv:2": "3 input: conv:2",
        "conv:3": "4 hidden: conv:3 dense:0[0+4x4x1] norm/bias:0 norm/mean:0 "
        "norm/scale:0 norm/var:0",
    },
    "depthwise": {
        "in:2": "3 input: in:2",
        "groups:3[0+1x4x2]": "4 hidden: groups:3[0+1x4x2] in:3 out:2[0+1x4x2]",
        "groups:3[0+4x2x1]": "2 hidden: groups:3[0+4x2x1] out:2[0+4x2x1]",
    },
    "in groups": {
        "in:2": "3 input: in:2",
        "in:3[0+2x2x1]": "2 hidden: groups:2 in:3[0+2x2x1]",
        "groups:3[0+1x2x3]": "2 hidden: groups:3[0+1x2x3] in:3[0+1x2x2] out:2[0+1x2x3]",
        "groups:3[0+2x3x1]": "3 hidden: groups:3[0+2x3x1] out:2[0+2x3x1]",
    },
    "squeeze and excitation": {
        "in:2": "3 input: in:2",
        "squeeze:1": "2 hidden: excite:0 squeeze:1",
        "excite:1": "6 hidden: excite:1 in:3 out:2 squeeze:0",
    },
    "attention": {
        "k:0": "8 input: k:0 q:0 v:0",
        "k:1": "2 hidden: k:1 o:0 q:1 v:1",
        "k:2": "4 hidden: k:2 q:2",
        "v:2": "3 hidden: o:1 v:2",
    },
    "flat attention": {
        "k:0": "8 input: k:0 q:0 v:0",
        "k:1[0+1x2x4]": "2 hidden: k:1[0+1x2x4] o:0[0+1x2x3] q:1[0+1x2x4] v:1[0+1x2x3]",
        "k:1[0+2x4x1]": "4 hidden: k:1[0+2x4x1] q:1[0+2x4x1]",
        "v:1[0+2x3x1]": "3 hidden: o:0[0+2x3x1] v:1[0+2x3x1]",
    },
    "fused attention": {
        "qkv:0": "8 input: qkv:0",
        "qkv:1[0+3x2x4]": "2 hidden: o:0[0+1x2x4] qkv:1[0+3x2x4]",
        "qkv:1[0+4x4x1]": "4 hidden: qkv:1[0+4x4x1]",
        "qkv:1[16+2x4x1]": "4 hidden: o:0[0+2x4x1] qkv:1[16+2x4x1]",
    },
    "grouped queries": {
        "k:0": "8 input: k:0 q:0 v:0",
        "k:1[0+1x2x4]": "2 hidden: k:1[0+1x2x4] o:0[0+1x2x12] q:1[0+1x2x12] "
        "v:1[0+1x2x4]",
        "k:1[0+2x4x1]": "4 hidden: k:1[0+2x4x1] q:1[0+6x4x1]",
        "q:1[0+2x3x4]": "3 hidden: o:0[0+2x3x4] q:1[0+2x3x4]",
        "v:1[0+2x4x1]": "4 hidden: o:0[0+6x4x1] v:1[0+2x4x1]",
    },
    "gated": {
        "gate:0": "4 input: gate:0 up:0",
        "gate:1": "6 hidden: down:0 gate:1 up:1",
    },
    "fused gated": {
        "in:0": "4 input: in:0",
        "in:1[0+2x6x1]": "6 hidden: in:1[0+2x6x1] out:0",
    },
    "two branches": {
        "a:0": "4 input: a:0 b:0",
        "a:1": "3 hidden: a:1 out:0[0+1x3x1]",
        "b:1": "2 hidden: b:1 out:0[3+1x2x1]",
    },
    "tied": {
        "up:1": "3 hidden: down:0 up:1",
        "down:1": "4 hidden: down:1 embed:1 up:0",
    },
    "layer norm": {
        "in:0": "4 input: in:0",
        "in:1": "6 normalized: in:1 out:0 scale:0",
    },
    "lstm": {
        "x:0": "4 input: x:0",
        "h:1[0+4x3x1]": "3 hidden: b:0[0+4x3x1] h:0 h:1[0+4x3x1] out:0 x:1[0+4x3x1]",
    },
    "stacked layers": {
        "in:0": "4 input: in:0",
        "in:1": "6 hidden: in:1 layers/down:2 layers/up:1 out:0",
        "layers/up:2": "5 hidden: layers/down:1 layers/up:2",
    },
    "rows are outputs": {
        "w1:1": "4 input: w1:1",
        "w1:0": "3 hidden: b:0 w1:0 w2:1",
    },
}


def described(groups):
    shapes = dict(groups.shapes)

    def member(m, size):
        where = f"[{m.start}+{m.before}x{size}x{m.after}]"
        is_all = m[2:] == (0, 1, 1) and shapes[m.leaf][m.axis] == size
        return f"{m.leaf}:{m.axis}{'' if is_all else where}"

    return {
        g.name: f"{g.size} {g.kind}: {' '.join(member(m, g.size) for m in g.members)}"
        for g in groups
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_groups_of(name):
    net = NETWORKS[name]
    groups = so.channel_groups(net.fn, net.params(), net.inputs())
    assert described(groups) == GROUPS[name]


def test_shapes_are_enough_and_the_batch_does_not_matter():
    net = NETWORKS["flat attention"]
    groups = so.channel_groups(net.fn, net.params(), net.inputs())
    shapes = jax.eval_shape(net.params)
    other = so.channel_groups(net.fn, shapes, jax.ShapeDtypeStruct((5, 1, 8), "f4"))
    assert groups == other and hash(groups) == hash(other)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
        self.out = nnx.Linear(16, 2, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        return self.out(x.reshape(len(x), -1))


def test_groups_of_flax_states():
    graph, state = nnx.split(nnx.eval_shape(lambda: Net(nnx.Rngs(0))))
    x = jnp.ones((2, 2, 2, 3))
    groups = so.channel_groups(lambda s, x: nnx.merge(graph, s)(x), state, x)
    assert described(groups) == {
        "conv/kernel:2": "3 input: conv/kernel:2",
        "conv/kernel:3": "4 hidden: conv/bias:0 conv/kernel:3 norm/bias:0 norm/mean:0 "
        "norm/scale:0 norm/var:0 out/kernel:0[0+4x4x1]",
    }


def test_groups_of_equinox_modules():
    model = eqx.filter_eval_shape(eqx.nn.MLP, 4, 2, 3, 2, key=jax.random.key(0))
    arrays, static = eqx.partition(model, lambda x: hasattr(x, "dtype"))

    def fn(arrays, x):
        return jax.vmap(eqx.combine(arrays, static))(x)

    assert described(so.channel_groups(fn, arrays, jnp.ones((2, 4)))) == {
        "layers/0/weight:1": "4 input: layers/0/weight:1",
        "layers/0/weight:0": "3 hidden: layers/0/weight:0 layers/0/bias:0 "
        "layers/1/weight:1",
        "layers/1/weight:0": "3 hidden: layers/1/weight:0 layers/1/bias:0 "
        "layers/2/weight:1",
    }


def groups_of(name):
    net = NETWORKS[name]
    return so.channel_groups(net.fn, net.params(), net.inputs())


def names(groups):
    return {group.name for group in groups}


def test_groups_index_by_name():
    groups = groups_of("mlp")
    group = groups["w1:1"]
    assert (group.size, group.kind, len(groups)) == (3, "hidden", 2)
    assert group.members == (("b", 0, 0, 1, 1), ("w1", 1, 0, 1, 1), ("w2", 0, 0, 1, 1))
    with pytest.raises(KeyError, match=r"no group 'w1'; there are \['w1:1', 'w1:0'\]"):
        groups["w1"]


def test_drop_and_freeze_exclude_groups():
    groups = groups_of("residual")
    assert names(groups.drop("up:1")) == {"in:0", "down:1"}
    assert names(groups.freeze("in", 1)) == names(groups.freeze("in", -1))
    assert names(groups.freeze("in", 1)) == {"in:0", "up:1"}
    with pytest.raises(KeyError, match="no group 'up'"):
        groups.drop("up")
    with pytest.raises(KeyError, match="nothing"):
        groups.freeze("nothing", 0)
    for axis in (2, -3):
        with pytest.raises(ValueError, match=r"one of up, of shape \(6, 5\); got "):
            groups.freeze("up", axis)


@pytest.mark.parametrize(
    ("mask", "selected"),
    [
        (None, {"up:1", "down:1"}),
        ("matrices", {"up:1", "down:1"}),
        ({"up:1": True}, {"up:1"}),
        ({"in.*|up.*": True}, {"in:0", "up:1"}),
        ({"up.*": False, ".*": True}, {"in:0", "down:1"}),
        ({"down:1": True, "in:0": False}, {"down:1"}),
    ],
)
def test_masks_select_groups(mask, selected):
    assert names(groups_of("residual").select(mask)) == selected


def test_names_with_brackets_select_as_they_are():
    name = "qkv:1[0+4x4x1]"
    assert names(groups_of("fused attention").select({name: True})) == {name}


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ({"up": True}, ValueError, r"mask has 'up', which matches no group of \['"),
        (
            {".*": False},
            ValueError,
            "mask selects none of the groups .*'in:0': 'input'",
        ),
        ({1: True}, TypeError, "mask must be a dict from regular expressions"),
        (lambda params: params, TypeError, "names of groups to booleans"),
        (True, TypeError, "got True"),
    ],
)
def test_masks_that_select_no_groups(mask, error, message):
    with pytest.raises(error, match=message):
        groups_of("residual").select(mask)


def test_only_hidden_units_are_selected_by_default():
    with pytest.raises(
        ValueError, match=r"mask selects none of the groups .*'normalized'"
    ):
        groups_of("layer norm").select("matrices")


def without_rules(p, x):
    y = jnp.fft.fft(x @ p["in"]).real @ p["mid"]
    return y @ jnp.linalg.inv(p["square"])


def test_primitives_without_a_rule_are_named():
    sizes = {"in": (4, 6), "mid": (6, 3), "square": (3, 3)}
    params = jax.tree.map(jnp.ones, sizes, is_leaf=lambda x: isinstance(x, tuple))
    groups = so.channel_groups(without_rules, params, jnp.ones((2, 4)))
    assert names(groups) == {"in:0"}
    assert {(d.leaf, d.axis): d.reason for d in groups.frozen} == {
        ("in", 1): "fft has no rule",
        ("mid", 0): "dot_general with a fixed axis",
        ("mid", 1): "dot_general with a fixed axis",
        ("square", 0): "lu has no rule",
        ("square", 1): "lu has no rule",
    }


def test_places_layers_and_rows_that_are_looked_up_are_frozen():
    frozen = {
        "convolutional": {("conv", 0), ("conv", 1)},
        "stacked layers": {("layers/up", 0), ("layers/down", 0)},
        "tied": {("embed", 0)},
    }
    for name, axes in frozen.items():
        frozen = groups_of(name).frozen
        inside = {d[:2] for d in frozen if d.reason != "an axis of the output"}
        assert inside == axes


def test_groups_are_printed():
    assert str(groups_of("tied")) == (
        "up:1: 3 units\n"
        "    down, axis 0\n"
        "    up, axis 1\n"
        "down:1: 4 units\n"
        "    down, axis 1\n"
        "    embed, axis 1\n"
        "    up, axis 0\n"
        "frozen: embed, axis 0: fixed by gather"
    )
    lines = str(groups_of("fused gated")).splitlines()
    assert "    in, axis 1, 2 x [6] x 1 from 0" in lines
    assert "in:0: 4 units, input" in lines


def test_arguments_that_are_not_functions_raise():
    with pytest.raises(TypeError, match="fn must be callable"):
        so.channel_groups(NETWORKS["mlp"].params(), mlp)


def test_groups_are_named_after_what_writes_their_units():
    def block(x, a, b):
        return x + jax.nn.relu(x @ a.T) @ b.T

    def residual(p, x):
        return block(x @ p["l0"].T, p["l1"], p["l2"]) @ p["l3"].T

    x, shapes = (
        jnp.ones((2, 4)),
        {"l0": (6, 4), "l1": (8, 6), "l2": (6, 8), "l3": (3, 6)},
    )
    groups = so.channel_groups(residual, random_tree(0, shapes=shapes), x)
    assert {g.name for g in groups} == {"l0:0", "l0:1", "l1:0"}

    def scanned(p, x):
        x, _ = jax.lax.scan(lambda x, ab: (block(x, *ab), None), x, (p["b"], p["a"]))
        return x @ p["out"]

    shapes = {"a": (3, 4, 7), "b": (3, 7, 4), "out": (4, 2)}
    groups = so.channel_groups(scanned, random_tree(0, shapes=shapes), x)
    assert {g.name for g in groups if g.kind == "hidden"} == {"b:1"}

    def tied(p, tokens):
        x = p["embed"][tokens]
        return (x + jax.nn.relu(x @ p["u"]) @ p["v"]) @ p["embed"].T

    shapes = {"embed": (11, 4), "u": (4, 7), "v": (7, 4)}
    groups = so.channel_groups(tied, random_tree(0, shapes=shapes), jnp.zeros(3, int))
    assert {g.name for g in groups} >= {"embed:1", "u:1"}
