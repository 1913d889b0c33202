"""Every public name of the library says what it does: `help()` is the reference."""

import ast
from collections.abc import Iterator
from pathlib import Path

import cesped_stream

LIBRARY = Path(cesped_stream.__file__).parent
Documented = ast.FunctionDef | ast.ClassDef


def public(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, Documented]]:
    for child in node.body:
        if not isinstance(child, ast.FunctionDef | ast.ClassDef) or child.name.startswith("_"):
            continue
        if any(ast.unparse(decorator).endswith(".setter") for decorator in child.decorator_list):
            continue  # the property itself is documented
        yield f"{prefix}{child.name}", child
        if isinstance(child, ast.ClassDef):
            yield from public(child, f"{prefix}{child.name}.")


def test_every_public_function_and_class_has_a_docstring() -> None:
    found = [
        (name, node)
        for path in sorted(LIBRARY.rglob("*.py"))
        for name, node in public(ast.parse(path.read_text()), f"{path.relative_to(LIBRARY)}: ")
    ]
    assert len(found) > 500
    assert [name for name, node in found if not ast.get_docstring(node)] == []


def test_a_missing_docstring_would_be_found() -> None:
    tree = ast.parse('class A:\n    """A."""\n    def b(self): ...\n    def _c(self): ...\n')
    assert [name for name, node in public(tree, "") if not ast.get_docstring(node)] == ["A.b"]
