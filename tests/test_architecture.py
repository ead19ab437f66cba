"""The rules of the architecture, read from the syntax trees: imports, and what is out."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = ("train", "compiler", "hw", "sim", "boards")

MAY_IMPORT = {
    "train": {
        "compiler.arith",
        "compiler.checkpoint",
        "compiler.datasets",
        "compiler.errors",
        "compiler.steps",
    },
    "compiler": set(),
    "hw": {"compiler"},
    "sim": {"hw", "compiler", "boards"},
    "boards": {"hw", "compiler"},
}

FRAMEWORK_METHODS = {"elaborate", "forward", "backward"}
"""Said once by Amaranth and torch; the class's docstring says the rest."""

FILES = sorted(
    path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py")
)

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

every_file = pytest.mark.parametrize("file", FILES, ids=str)


def tree_of(file: Path) -> ast.Module:
    return ast.parse((ROOT / file).read_text(), filename=str(file))


def imports_of(tree: ast.AST, file: Path) -> set[str]:
    """Full dotted names imported anywhere below a node: `from a import b` gives `a.b`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = file.with_suffix("").parts[: -node.level] if node.level else ()
            base = ".".join([*package, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def siblings(names: set[str], package: str) -> set[str]:
    """Those of the names that belong to another package of the project."""
    return {
        name
        for name in names
        if (top := name.split(".")[0]) in {*PACKAGES, "tests"} and top != package
    }


def covered(name: str, allowed: set[str]) -> bool:
    return any(name == rule or name.startswith(rule + ".") for rule in allowed)


@every_file
def test_imports_follow_the_architecture(file):
    package = file.parts[0]
    tree = tree_of(file)
    names = siblings(imports_of(tree, file), package)
    if package == "compiler" and file.name == "__main__.py":
        top_level = ast.Module(
            [node for node in tree.body if not isinstance(node, DEFINITIONS)], []
        )
        names = siblings(imports_of(top_level, file), package)
    wrong = {name for name in names if not covered(name, MAY_IMPORT[package])}
    assert not wrong, (
        f"{file} must import nothing beyond {MAY_IMPORT[package]}, and imports {wrong}"
    )


def forbidden(node: ast.AST, file: Path) -> str:
    match node:
        case ast.Assert() if "benches" not in file.parts:
            return "assert (python -O removes it)"
        case ast.Raise(exc=ast.Call(func=ast.Name(id="Exception" | "BaseException" as name))):
            return f"raise {name}"
        case ast.ExceptHandler(type=None):
            return "bare except"
        case ast.Call(func=ast.Name(id="eval" | "exec" as name)):
            return name
        case ast.Attribute(value=ast.Name(id="os"), attr="system" | "popen" as name):
            return f"os.{name}"
        case ast.keyword(arg="shell", value=ast.Constant(value=True)):
            return "shell=True"
        case ast.keyword(arg="weights_only" | "allow_pickle" as name, value=ast.Constant(value=v)):
            return f"{name}={v}" if v is (name == "allow_pickle") else ""
        case ast.ImportFrom(names=[ast.alias(name="*")]) if file.parts[0] != "hw":
            return "import *"
    return ""


@every_file
def test_nothing_forbidden(file):
    found = [
        f"{file}:{node.lineno}: {what}"
        for node in ast.walk(tree_of(file))
        if (what := forbidden(node, file))
    ]
    assert not found


def says_itself(node: ast.stmt) -> bool:
    """A property of one expression is an attribute, and its name is its description."""
    decorators = [item.id for item in node.decorator_list if isinstance(item, ast.Name)]
    return "property" in decorators and len(node.body) == 1


def undocumented(body: list[ast.stmt], prefix: str):
    """Public classes and functions of a module or class without a docstring."""
    for node in body:
        if not isinstance(node, (*DEFINITIONS, ast.ClassDef)) or node.name.startswith("_"):
            continue
        plain = node.name in FRAMEWORK_METHODS or says_itself(node)
        if not plain and not ast.get_docstring(node):
            yield f"{prefix}{node.name}"
        if isinstance(node, ast.ClassDef):
            yield from undocumented(node.body, f"{prefix}{node.name}.")


@every_file
def test_public_names_have_docstrings(file):
    tree = tree_of(file)
    assert ast.get_docstring(tree) or not tree.body, f"{file} must begin with a docstring"
    assert not list(undocumented(tree.body, ""))


def products_in_circuits(tree: ast.Module):
    """Lines of `*` within `elaborate` where no factor is plainly a Python number.

    A product of two signals is a multiplier; one of numbers is arithmetic at elaboration. What the
    syntax cannot tell is told by the cells: `sim.rtl.count_multipliers`, in the test of each block.
    """
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and function.name == "elaborate":
            counters = loop_variables(function)
            for node in ast.walk(function):
                match node:
                    case (
                        ast.BinOp(op=ast.Mult(), left=left, right=right)
                        | ast.AugAssign(op=ast.Mult(), target=left, value=right)
                    ):
                        if not any(plainly_a_number(side, counters) for side in (left, right)):
                            yield node.lineno


def loop_variables(function: ast.FunctionDef) -> set[str]:
    """Names that a loop over a range counts with."""
    names = set()
    for node in ast.walk(function):
        match node:
            case ast.For() | ast.comprehension() if (
                isinstance(node.iter, ast.Call)
                and isinstance(node.iter.func, ast.Name)
                and node.iter.func.id == "range"
                and isinstance(node.target, ast.Name)
            ):
                names.add(node.target.id)
    return names


def plainly_a_number(node: ast.expr, counters: set[str]) -> bool:
    match node:
        case ast.Constant() | ast.List() | ast.Tuple():
            return True
        case ast.Call(func=ast.Name(id="len" | "range")):
            return True
        case ast.Name(id=name):
            return name in counters or name.isupper()
        case ast.Attribute(value=ast.Name(id=name)):
            return name in {"g", "geometry"}  # its fields are sizes
        case ast.Attribute(value=ast.Attribute(attr=name)):
            return name.lstrip("_") == "geometry"
    return False


@pytest.mark.parametrize("file", [file for file in FILES if file.parts[0] == "hw"], ids=str)
def test_no_products_in_circuits(file):
    lines = list(products_in_circuits(tree_of(file)))
    assert not lines, f"{file}: a product in elaborate, lines {lines}"


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("assert x", "assert"),
        ("raise Exception('x')", "raise Exception"),
        ("try:\n    pass\nexcept:\n    pass", "bare except"),
        ("eval('1')", "eval"),
        ("import os\nos.system('x')", "os.system"),
        ("torch.load(f, weights_only=False)", "weights_only=False"),
        ("np.load(f, allow_pickle=True)", "allow_pickle=True"),
        ("torch.load(f, weights_only=True)", ""),
    ],
)
def test_the_check_itself_finds(source, fault):
    nodes = ast.walk(ast.parse(source))
    found = [what for node in nodes if (what := forbidden(node, Path("compiler/x.py")))]
    assert len(found) == (1 if fault else 0)
    assert not fault or fault in found[0]


def test_the_check_itself_resolves_imports():
    tree = ast.parse("from . import arith\nfrom ...hw import lanes\nimport sim.runner, numpy")
    names = imports_of(tree, Path("compiler/deep/x.py"))
    assert names == {"compiler.deep.arith", "hw.lanes", "sim.runner", "numpy"}
    assert siblings(names, "compiler") == {"hw.lanes", "sim.runner"}


def test_the_check_itself_finds_products():
    text = """
class A:
    def elaborate(self, platform):
        m.d.comb += self.o.eq(a * b)
        n = 2 * self.lanes + len(x) * 3 + self.geometry.words * y
        p = [j * z for j in range(3)]
"""
    assert list(products_in_circuits(ast.parse(text))) == [4]
