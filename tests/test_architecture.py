"""The house rules that import-linter cannot see. Each check is tried on code that breaks it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ray_imuckpt

PACKAGE = Path(ray_imuckpt.__file__).parent
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}

MAX_LINES_OF_A_FILE = 300
MAX_LINES_OF_A_FUNCTION = 60

# import-linter sees torch.distributed as torch. `state` needs DTensor and the sharded optimizer.
ROOMS_WITH_DISTRIBUTED = {"gang", "state"}

MODULES_THAT_RUN_CODE = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
TRIES_PICKLE = "runtime/pickling.py"  # whether a Checkpointer can be sent to a worker; reads none
# Other programs' pickles become safetensors and JSON there; no checkpoint of ours is read by it.
IMPORTS_PICKLES = "migration/unpickling.py"  # by a table of stand-ins: `unpickler_holds` says how
_UNPICKLER = "import pickle\nclass A(pickle._Unpickler):\n"
IMPORTS_TORCH_FILES = "migration/torch_files.py"  # by torch's own restricted unpickler
NAMES_THAT_RUN_CODE = {
    "torch.load",
    "torch.save",
    "torch.serialization",
    "torch.package",
    "numpy.load",
    "np.load",
    "torch.distributed.all_gather_object",  # these send pickles
    "torch.distributed.broadcast_object_list",
    "torch.distributed.gather_object",
    "torch.distributed.recv_object_list",
    "torch.distributed.scatter_object_list",
    "torch.distributed.send_object_list",
}
BUILTINS_THAT_RUN_CODE = {"eval", "exec", "compile", "__import__"}


def room(name: str) -> str:
    return name.split("/", maxsplit=1)[0].removesuffix(".py")


def used_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, full dotted name) of everything imported or reached through an imported name."""
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
                known[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"
                known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, *rest = ast.unparse(node).split(".")
            if first in known:
                yield node.lineno, ".".join([known[first], *rest])


def uses(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def distributed_uses(source: str) -> list[int]:
    names = used_names(ast.parse(source))
    return sorted({line for line, name in names if uses(name, "torch.distributed")})


def code_runners(source: str) -> list[str]:
    tree = ast.parse(source)
    forbidden = MODULES_THAT_RUN_CODE | NAMES_THAT_RUN_CODE
    found = {
        f"line {line}: {name}"
        for line, name in used_names(tree)
        if any(uses(name, prefix) for prefix in forbidden)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in BUILTINS_THAT_RUN_CODE:
                found.add(f"line {node.lineno}: {node.func.id}(")
            if any(keyword.arg == "allow_pickle" for keyword in node.keywords):
                found.add(f"line {node.lineno}: allow_pickle=")
    return sorted(found)


def long_functions(source: str) -> list[str]:
    return [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MAX_LINES_OF_A_FUNCTION
    ]


@pytest.mark.parametrize("name", FILES)
def test_only_gang_and_state_touch_torch_distributed(name: str) -> None:
    """No other room has a collective, however it is imported."""
    if room(name) not in ROOMS_WITH_DISTRIBUTED:
        assert distributed_uses(FILES[name].read_text()) == []


@pytest.mark.parametrize("name", FILES)
def test_nothing_on_the_data_path_runs_code(name: str) -> None:
    """No pickle, eval or torch.load: loading a checkpoint runs no code."""
    source = FILES[name].read_text()
    if name == TRIES_PICKLE:
        assert "load" not in source
        source = source.replace("import pickle\n", "").replace("[pickle, ", "[")
    found = code_runners(source)
    if name == IMPORTS_PICKLES:
        assert unpickler_holds(source)
        found = [line for line in found if not line.endswith((": pickle", ": pickle._Unpickler"))]
    if name == IMPORTS_TORCH_FILES:
        assert loads_weights_only(source)
        found = [line for line in found if ": torch.load" not in line and not harmless(line)]
    assert found == []


def unpickler_holds(source: str) -> bool:
    """Whether pickle is used for one class alone, which finds classes and sets states by itself."""
    tree = ast.parse(source)
    uses_of_it = [
        node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "pickle"
    ]
    bases = [
        (node, base)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if ast.unparse(base) == "pickle._Unpickler"
    ]
    if len(uses_of_it) != 1 or len(bases) != 1:
        return False
    methods = {f.name: f for f in bases[0][0].body if isinstance(f, ast.FunctionDef)}
    calls = ast.unparse(methods["find_class"]) if "find_class" in methods else "super"
    own = {"persistent_load", "load_build"} <= methods.keys()
    return own and "super" not in calls and "import" not in calls


def loads_weights_only(source: str) -> bool:
    """Whether each call of torch.load says so, literally, and nothing allows more for good."""
    calls = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    literal = [
        any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call.keywords)
        for call in calls
    ]
    return bool(calls) and all(literal) and "add_safe_globals" not in source


def harmless(line: str) -> bool:
    """Whether a use of torch.serialization only says what torch's unpickler may know."""
    name = line.split(": ")[1].removeprefix("torch.serialization").removeprefix(".")
    return name in {"", "get_safe_globals", "safe_globals", "get_unsafe_globals_in_checkpoint"}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_a_room_and_a_function_fits_on_a_screen(name: str) -> None:
    """Every file has at most 300 lines and every function at most 60, but for those listed."""
    source = FILES[name].read_text()
    assert len(source.splitlines()) <= MAX_LINES_OF_A_FILE
    assert long_functions(source) == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch.distributed as dist",
        "from torch import distributed",
        "from torch.distributed.tensor import DTensor",
        "def f():\n    from torch.distributed import checkpoint",
        "import torch\ntorch.distributed.barrier()",
    ],
)
def test_the_check_finds_torch_distributed(source: str) -> None:
    """In every form of an import, and where it is reached through torch."""
    assert distributed_uses(source)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch as t\nt.load(path)",
        "from torch import save",
        "import numpy as np\nnp.load(path)",
        "from numpy.lib.format import read_array\nread_array(file, allow_pickle=True)",
        "import torch.distributed as dist\ndist.broadcast_object_list(objects)",
        "eval(text)",
        "def f():\n    exec(text)",
    ],
)
def test_the_check_finds_what_runs_code(source: str) -> None:
    """Under other names, in functions, as built-ins and as arguments."""
    assert code_runners(source)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(file)",
        f"{_UNPICKLER}    def persistent_load(self, p): ...\n    def load_build(self): ...",
        f"{_UNPICKLER}    def find_class(self, m, n): ...\n    def load_build(self): ...",
        f"{_UNPICKLER}    def find_class(self, m, n): ...\n    def persistent_load(self, p): ...",
        f"""{_UNPICKLER}    def persistent_load(self, p): ...
    def load_build(self): ...
    def find_class(self, m, n): return super().find_class(m, n)""",
    ],
)
def test_the_check_finds_an_unpickler_that_imports(source: str) -> None:
    """One that finds classes as pickle does, wholly or in the end."""
    assert not unpickler_holds(source)


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch\ntorch.load(path, weights_only=trusted)",
        "import torch\ntorch.serialization.add_safe_globals([A])\ntorch.load(p, weights_only=True)",
    ],
)
def test_the_check_finds_a_load_of_more_than_weights(source: str) -> None:
    """Without the word, with another one, or with more allowed for the whole process."""
    assert not loads_weights_only(source)


def test_the_check_leaves_harmless_namesakes_alone() -> None:
    """Neither model.eval() nor json.load() nor our own load is one."""
    assert (
        code_runners("import json\nmodel.eval()\njson.load(file)\ncheckpointer.load(model)") == []
    )


def test_the_check_finds_long_functions() -> None:
    """One line more than allowed is found, and one less is not."""
    body = "    pass\n" * MAX_LINES_OF_A_FUNCTION
    assert long_functions(f"def f():\n{body}")
    assert not long_functions("def f():\n" + body.removesuffix("    pass\n"))


def test_importing_the_package_loads_neither_ray_nor_pyarrow_nor_fsspec() -> None:
    """Not with any of its names."""
    # torch first: what it loads by itself is not ours to answer for
    code = (
        "import sys, torch; before = set(sys.modules); from ray_imuckpt import *;"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = set(result.stdout.split())
    assert "ray_imuckpt" in loaded
    assert loaded.isdisjoint({"ray", "pyarrow", "fsspec", "pandas"})
