"""The example of docs/smaller.md with ONNX Runtime, in an environment with it."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_tree

import sparse_optax


@pytest.mark.slow
def test_a_compacted_network_runs_in_onnx_runtime(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the example writes a file
    needed = "jax2onnx", "onnxruntime"
    reason = "needs pip install '.[onnx]'"
    _, runtime = (pytest.importorskip(name, reason=reason) for name in needed)

    def apply(params, x):
        x = jax.nn.relu(x @ params["in"]["kernel"] + params["in"]["bias"])
        x = jax.nn.gelu(x @ params["hidden"]["kernel"])
        return jax.nn.softmax(x @ params["out"]["kernel"])

    shapes = {"in": {"kernel": (20, 400), "bias": (400,)}}
    shapes |= {"hidden": {"kernel": (400, 200)}, "out": {"kernel": (200, 3)}}
    params = random_tree(0, shapes=shapes)
    params["in"]["kernel"] = params["in"]["kernel"].at[2].set(0)
    params["hidden"]["kernel"] = params["hidden"]["kernel"].at[40:].set(0)
    x = random_tree(1, shapes=(256, 20))

    text = pathlib.Path(__file__, "../../docs/smaller.md").resolve().read_text()
    (example,) = re.findall(r"```python\n(.*?to_onnx.*?)```", text, re.DOTALL)

    compacted = sparse_optax.compact(apply, params, x)
    assert compacted.params["hidden"]["kernel"].shape == (40, 200)
    names = {"compacted": compacted, "jax": jax, "jnp": jnp}
    exec(example, names)
    content = names["model"].SerializeToString()
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    for batch in (x, x[:3]):
        (found,) = session.run(None, {name: np.asarray(batch)})
        np.testing.assert_allclose(found, apply(params, batch), 1e-4, 1e-5)
