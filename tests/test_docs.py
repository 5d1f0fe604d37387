"""What the documents say is true: their examples run, and every name is explained."""

import ast
import doctest
import importlib
import importlib.util
import inspect
import pathlib
import pkgutil
import re
import shlex
import sys
import tomllib
import types

import pytest

import sparse_optax
from experiments.tasks import TASKS

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
PYTHON_BLOCKS = [code for language, code in BLOCKS if language == "python"]
COMMANDS = "".join(code for language, code in BLOCKS if language == "sh")


def modules():
    """All modules of the package, itself included."""
    names = [m.name for m in pkgutil.iter_modules(sparse_optax.__path__)]
    found = [importlib.import_module(f"sparse_optax.{name}") for name in names]
    return [sparse_optax, *found]


def examples():
    """The doctests of all modules, each where it is written."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = {}
    for module in modules():
        for test in finder.find(module):
            if test.examples:
                found.setdefault((test.filename, test.lineno), test)
    return {test.name: test for test in found.values()}


EXAMPLES = examples()
PUBLIC = {
    name: value
    for name, value in vars(sparse_optax).items()
    if not name.startswith("_") and not isinstance(value, types.ModuleType)
}
FUNCTIONS = {n: f for n, f in PUBLIC.items() if inspect.isfunction(f)}
CLASSES = {n: c for n, c in PUBLIC.items() if inspect.isclass(c)}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_of_docstrings_run(name):
    test = EXAMPLES[name]
    report = []
    result = doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert result.failed == 0, "".join(report)
    assert result.attempted > 0


def test_there_is_a_readme():
    assert len(PYTHON_BLOCKS) >= 5
    assert re.match(r"# sparse_optax\n", README)


@pytest.mark.parametrize("index", range(len(PYTHON_BLOCKS)))
def test_the_examples_of_the_readme_run(index, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # nothing may depend on where it is started
    namespace = {"__name__": f"readme_{index}"}
    code = compile(PYTHON_BLOCKS[index], f"README.md, example {index}", "exec")
    exec(code, namespace)
    assert "sparse_optax" in namespace


def test_the_readme_explains_every_function():
    explained = set(re.findall(r"`(\w+)[`(]", README))
    assert set(FUNCTIONS) <= explained


def test_the_readme_names_nothing_that_is_not_there():
    used = set(re.findall(r"sparse_optax\.(\w+)", README))
    assert used
    assert used <= set(PUBLIC)


EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]


def test_the_commands_of_the_readme_exist():
    installed = set(re.findall(r"pip install (?:-e )?'\.\[(\w+)\]'", COMMANDS))
    assert installed == {"experiments", "test", "prepare", "files", "cuda", "tpu"}
    assert installed <= set(EXTRAS)
    run = [line.rsplit("&&", maxsplit=1)[-1].strip() for line in COMMANDS.splitlines()]
    run = [shlex.split(command, comments=True) for command in run]
    run = [command[1:] for command in run if command and "python" in command[0]]
    assert ["-m", "pytest"] in run
    assert ["-m", "experiments", "digits"] in run
    experiments = [
        command[2] for command in run if command[:2] == ["-m", "experiments"]
    ]
    assert len(experiments) >= 2
    known = {module.CONFIG.experiment for module in TASKS}
    assert set(experiments) <= known | {"sweep", "export", "latency", "storage"}
    modules = [command[1] for command in run if command[0] == "-m"]
    for module in modules:
        assert importlib.util.find_spec(module), module


@pytest.mark.parametrize("document", ["README.md", "experiments/STUDY.md"])
def test_the_files_that_the_documents_point_to_exist(document):
    path = ROOT / document
    targets = re.findall(r"\]\((?!http)([^)#]+)", path.read_text())
    assert targets
    for target in targets:
        assert (path.parent / target).exists(), target


def test_each_public_name_is_written_in_the_package():
    assert len(FUNCTIONS) + len(CLASSES) == len(PUBLIC)
    for name, value in PUBLIC.items():
        assert value.__module__.startswith("sparse_optax._"), name
        assert value.__name__ == name


def test_the_package_exports_what_its_users_rely_on():
    assert set(PUBLIC) == {
        # transformations
        "add_relevance_decay",
        "prune_by_magnitude",
        "prune_to_sparsity",
        "relevance_pruning",
        # their states
        "PruneState",
        "RelevanceDecayState",
        "RelevancePruningState",
        # relevance
        "irrelevance",
        "is_relevant",
        "relevance_penalty",
        # masks
        "apply_masks",
        "check_sparsity",
        "get_masks",
        "set_masks",
        "masks_from_zeros",
        "matrices_only",
        "prune",
        "sparsity",
        "sparsity_report",
        "LeafSparsity",
        "SparsityReport",
        # files and formats
        "save_sparse",
        "load_sparse",
        "to_bcoo",
        "from_bcoo",
        # the algorithm
        "iterative_pruning",
        "pruning_loop",
        "IterativePruningState",
        "PruningRound",
        "PruningLoop",
    }


def raises(function):
    tree = ast.parse(inspect.getsource(function))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Raise)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_documented(name):
    function = FUNCTIONS[name]
    doc = inspect.getdoc(function)
    summary, _, rest = doc.partition("\n\n")
    assert summary.endswith(".")
    assert "\n" not in summary
    arguments = inspect.signature(function).parameters
    section = re.search(r"^Args:\n(.*?)(?=^\S)", rest, re.MULTILINE | re.DOTALL)
    assert section, "no Args"
    documented = re.findall(r"^    (\w+):", section[1], re.MULTILINE)
    assert documented == list(arguments)
    if inspect.isgeneratorfunction(function) or "Iterator" in str(
        inspect.signature(function).return_annotation
    ):
        assert "\nYields:\n" in rest
    elif inspect.signature(function).return_annotation is not None:
        assert "\nReturns:\n" in rest
    assert "\nExamples:\n" in rest
    if raises(function):
        assert "\nRaises:\n" in rest
    for part in ("Raises", "Returns", "References"):
        assert rest.count(f"\n{part}:\n") <= 1


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_have_an_example_that_runs(name):
    if name == "pruning_loop":  # whose examples are those of iterative_pruning
        assert "iterative_pruning" in inspect.getdoc(FUNCTIONS[name])
        return
    assert any(example.endswith(f".{name}") for example in EXAMPLES)


@pytest.mark.parametrize("name", CLASSES)
def test_classes_are_documented(name):
    doc = inspect.getdoc(CLASSES[name])
    # A NamedTuple or a dataclass without a docstring is given its signature.
    assert doc and not doc.startswith(f"{name}(")
    assert doc.partition("\n")[0].strip()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_typed(name):
    signature = inspect.signature(FUNCTIONS[name])
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter.name


def test_every_module_says_what_it_is_for():
    for module in modules():
        assert module.__doc__, module.__name__
    assert sys.modules["sparse_optax"].__version__
    assert (ROOT / "sparse_optax" / "py.typed").is_file()
