"""What the documentation says is true: its examples run, and every name has a page."""

import ast
import contextlib
import doctest
import html.parser
import importlib
import importlib.util
import inspect
import io
import pathlib
import pkgutil
import re
import subprocess
import sys
import tomllib
import types
import urllib.parse

import pytest

import sparse_optax
from experiments.__main__ import main

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    if path.name != "CHANGELOG.md"  # which may name what is gone
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = set(PROJECT["optional-dependencies"])
PUBLIC = {
    name: value
    for name, value in vars(sparse_optax).items()
    if not name.startswith("_") and not isinstance(value, types.ModuleType)
}
FUNCTIONS = {n: f for n, f in PUBLIC.items() if inspect.isfunction(f)}
CLASSES = {n: c for n, c in PUBLIC.items() if inspect.isclass(c)}


# Docstrings


def examples():
    """The doctests of all modules, each where it is written."""
    found = pkgutil.walk_packages(sparse_optax.__path__, "sparse_optax.")
    modules = [importlib.import_module(module.name) for module in found]
    found = {}
    for module in [sparse_optax, *modules]:
        for test in doctest.DocTestFinder(exclude_empty=True).find(module):
            if test.examples:
                found.setdefault((test.filename, test.lineno), test)
    return {test.name: test for test in found.values()}


EXAMPLES = examples()


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_docstrings_run(name):
    report = []
    runner = doctest.DocTestRunner(verbose=False)
    result = runner.run(EXAMPLES[name], out=report.append)
    assert result.failed == 0, "".join(report)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_documented_and_typed(name):
    function = FUNCTIONS[name]
    summary, _, rest = inspect.getdoc(function).partition("\n\n")
    assert summary.endswith(".")
    assert "\n" not in summary
    signature = inspect.signature(function)
    section = re.search(r"^Args:\n(.*?)(?=^\S)", rest, re.MULTILINE | re.DOTALL)
    assert section, "no Args"
    documented = re.findall(r"^    (\w+):", section[1], re.MULTILINE)
    assert documented == list(signature.parameters)
    assert set(documented) <= set(function.__annotations__)
    returned = function.__annotations__["return"]
    if "Iterator" in str(returned):
        assert "\nYields:\n" in rest
    elif returned not in (None, "None"):
        assert "\nReturns:\n" in rest
    if any(
        isinstance(n, ast.Raise)
        for n in ast.walk(ast.parse(inspect.getsource(function)))
    ):
        assert "\nRaises:\n" in rest
    assert "\nExamples:\n" in rest
    # The example of pruning_loop is that of iterative_pruning.
    name = "iterative_pruning" if name == "pruning_loop" else name
    assert any(example.endswith(f".{name}") for example in EXAMPLES)


@pytest.mark.parametrize("name", CLASSES)
def test_classes_are_documented(name):
    doc = inspect.getdoc(CLASSES[name])
    # A NamedTuple or a dataclass without a docstring is given its signature.
    assert doc and not doc.startswith(f"{name}(")
    fields = set(inspect.signature(CLASSES[name]).parameters) - {"args", "kwargs"}
    section = re.search(r"^(?:Attributes|Args):\n(.*?)(?:\n\n|\Z)", doc, re.M | re.S)
    assert section or not fields, "no Attributes"
    assert not fields or {*re.findall(r"^    (\w+):", section[1], re.M)} == fields


# The README and the pages


def test_examples_of_the_readme_run_and_print_what_it_shows(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # nothing may depend on where it is started
    example = re.compile(
        r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.M | re.S
    )
    blocks = example.findall(README)
    assert len(blocks) == README.count("```python\n")
    namespace = {}  # later examples go on from the first
    for code, output in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), namespace)
        assert printed.getvalue() == output


def test_every_public_name_has_a_page():
    listed = re.findall(r"^   (\w+)$", PAGES["docs/api.md"], re.MULTILINE)
    assert sorted(listed) == sorted(PUBLIC)


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_nothing_that_is_not_there(page):
    assert set(re.findall(r"\bsparse_optax\.([a-z]\w*)", PAGES[page])) <= set(PUBLIC)
    for target in re.findall(r"\]\((?!http)([^)#]+)", PAGES[page]):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def commands():
    """The commands of all pages that start a module, without their flags."""
    found = set()
    for page in PAGES.values():
        found |= set(re.findall(r"python3? -m (\w+(?:\.\w+)*(?: [a-z][\w-]*)?)", page))
    return sorted(found - {"venv .venv"})


@pytest.mark.parametrize("command", commands())
def test_commands_exist(command, capsys):
    module, *name = command.split()
    assert importlib.util.find_spec(module)
    if module == "experiments" and name:
        with pytest.raises(SystemExit) as info:
            main([*name, "--help"])
        assert info.value.code in (0, None)
        # An unknown name shows the help of all.
        assert f"experiments {name[0]} " in capsys.readouterr().out


def test_extras_that_pages_install_exist():
    named = set(re.findall(r"'\.\[(\w+)\]'", "".join(PAGES.values())))
    assert {"docs", "experiments", "test"} <= named <= EXTRAS


def test_oldest_versions_are_tested():
    workflow = (ROOT / ".github/workflows/tests.yml").read_text()
    for dependency in PROJECT["dependencies"]:
        assert dependency.replace(">=", "==") in workflow


# The pages as they are built


class Resources(html.parser.HTMLParser):
    """Collects what a page loads by itself, as against what it links to."""

    def __init__(self):
        super().__init__()
        self.urls = []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "link" and attributes.get("rel") in ("next", "prev", "canonical"):
            return
        if tag != "a":
            self.urls += [attributes.get(key) for key in ("src", "href", "srcset")]


@pytest.mark.slow
def test_pages_build_and_load_nothing_from_outside(tmp_path):
    pytest.importorskip("sphinx", reason="needs the extra [docs]")
    subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-q", ROOT / "docs", tmp_path],
        check=True,
    )
    for name in PUBLIC:
        assert (tmp_path / "api" / f"sparse_optax.{name}.html").is_file()
    loaded = []
    for page in tmp_path.rglob("*.html"):
        resources = Resources()
        resources.feed(page.read_text())
        loaded += filter(None, resources.urls)
    for style in tmp_path.rglob("*.css"):
        loaded += re.findall(r"url\(['\"]?([^)'\"]+)", style.read_text())
        loaded += re.findall(r"@import ['\"]([^'\"]+)", style.read_text())
    assert any(url.partition("?")[0].endswith(".css") for url in loaded)
    assert not {url for url in loaded if urllib.parse.urlsplit(url).netloc}
