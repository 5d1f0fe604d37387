"""What all tests share: eight virtual devices, strict JAX, reproducible properties."""

import os

import hypothesis
import jax
import pytest

# Before anything asks for a device: the backend starts with as many as are set then.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(autouse=True, scope="module")
def programs_of_this_module(request):
    """Compiles a marked module without optimizations, which take most of its time."""
    marks = getattr(request.module, "pytestmark", [])
    names = [mark.name for mark in (marks if isinstance(marks, list) else [marks])]
    jax.config.update("jax_disable_most_optimizations", "quickly_compiled" in names)
    yield
    # Programs stay in memory otherwise: some gigabytes in the end.
    jax.clear_caches()


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "error")
