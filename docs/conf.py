"""Configuration of Sphinx. The pages need no script, style or font from elsewhere."""

import ast
import inspect

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml

import sparse_optax

project = "sparse_optax"
author = "The sparse_optax authors"
version = release = sparse_optax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build", "jupyter_execute"]
templates_path = ["_templates"]

html_theme = "furo"
html_title = "sparse_optax"
html_show_copyright = False

# Every notebook runs in every build, and one that raises fails the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

default_role = "py:obj"  # `name` in a docstring links to the page of that name
autodoc_default_options = {"members": True, "member-order": "bysource"}
maximum_signature_line_length = 80
napoleon_use_ivar = True
napoleon_attr_annotations = False

html_math_renderer = "mathml"  # which browsers show by themselves


def write_signature(app, what, name, obj, options, signature, returns):
    """Shows annotations as they are written: evaluated, they would fill pages."""
    if what == "class":
        return "", None  # its attributes are documented
    if what != "function":
        return None
    definition = ast.parse(inspect.getsource(obj)).body[0]
    return f"({ast.unparse(definition.args)})", ast.unparse(definition.returns)


def skip_member(app, what, name, obj, skip, options):
    """Leaves out the fields of named tuples, which docstrings list as attributes."""
    return skip or type(obj).__name__ == "_tuplegetter"


def visit_math(translator, node):
    translator.body.append(tex2mathml(node.astext()))
    raise SkipNode


def visit_math_block(translator, node):
    translator.body.append(tex2mathml(node.astext(), as_block=True))
    raise SkipNode


def setup(app):
    app.connect("autodoc-process-signature", write_signature)
    app.connect("autodoc-skip-member", skip_member)
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(visit_math, None),
        block_renderers=(visit_math_block, None),
    )
