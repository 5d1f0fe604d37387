"""What all tests share: eight virtual devices, strict JAX, reproducible properties."""

import os

import hypothesis
import jax
import pytest

# Before anything asks for a device: the backend starts with as many as are set then.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# Compiling takes most of the time of the tests.
jax.config.update("jax_disable_most_optimizations", True)

hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(autouse=True)
def optimizations_where_marked(request):
    """Compiles as a user's programs are, where rounding or the program is tested."""
    optimized = request.node.get_closest_marker("optimized") is not None
    jax.config.update("jax_disable_most_optimizations", not optimized)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True, scope="module")
def without_programs_of_other_modules():
    """Compiled programs stay in memory otherwise: some gigabytes in the end."""
    yield
    jax.clear_caches()


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "error")
