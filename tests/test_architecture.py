# SPDX-License-Identifier: Apache-2.0
"""The house plan, kept by machine: who may import whom, and what stays out."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rfjax"

# A module imports lower ranks, or its own folder.
RANKS = {
    "types": 1,
    "errors": 0,
    "timestep_levels": 0,
    "value_types": 1,
    "schema": 2,
    "config_fields": 7,
    "disk": 0,
    "folder_lock": 0,
    "partial_files": 0,
    "whole_files": 1,
    "checksums": 1,
    "stopping": 2,
    "cpu": 1,
    "packages": 1,
    "flow": 2,
    "parallel": 2,
    "encoders": 2,
    "models": 3,
    "data": 3,
    "checkpoint": 3,
    "run_folder": 3,
    "input_paths": 3,
    "train": 4,
    "evaluation": 4,
    "export": 4,
    "scaling": 5,
    "plan": 5,
    "bench": 5,
    "config": 6,
    "config_files": 7,
    "commands": 8,
    "main": 9,
}
# The only places that may name these packages, outside of functions or inside.
HEAVY = {
    "torch": {"encoders", "bench"},
    "transformers": {"encoders"},
    "diffusers": {"encoders", "bench"},
    "tensorflow": set(),
}


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Dotted names of everything a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_imports_go_down():
    for path in modules():
        part = part_of(path)
        if part == "__init__":
            assert not any(name.startswith("rfjax") for name in imports_of(path))
            continue
        assert part in RANKS, f"give rfjax/{part} a rank"
        for name in imports_of(path):
            if not name.startswith("rfjax"):
                assert not name.startswith(("configs", "launch", "notebooks")), name
                package = name.split(".")[0]
                assert part in HEAVY.get(package, {part}), f"{path} imports {package}"
                continue
            target = name.removeprefix("rfjax").removeprefix(".").split(".")[0]
            if target not in RANKS:  # rfjax.__version__
                continue
            assert target == part or RANKS[target] < RANKS[part], (
                f"{path.relative_to(ROOT)} (rank {RANKS[part]}) imports {name} "
                f"(rank {RANKS[target]})"
            )


def test_laws_are_mathematics_alone():
    for path in (PACKAGE / "scaling" / "laws").glob("*.py"):
        ours = {name for name in imports_of(path) if name.startswith("rfjax")}
        assert all(name.startswith("rfjax.scaling.laws.") for name in ours), path


def test_no_folder_imports_itself_in_a_circle():
    graph = {}
    for path in modules():
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        graph[module] = {n for n in imports_of(path) if n.startswith("rfjax")}
    resolved = {
        module: {
            other
            for name in names
            for other in graph
            if name in (other, f"{other}.{name.rsplit('.', 1)[-1]}") and other != module
        }
        for module, names in graph.items()
    }

    def visit(module, trail):
        assert module not in trail, " -> ".join([*trail, module])
        for other in resolved[module]:
            visit(other, [*trail, module])

    for module in resolved:
        visit(module, [])


def test_only_main_prints_and_every_file_is_licensed():
    for path in modules():
        text = path.read_text()
        assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n"), path
        calls = {
            node.func.id
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert "print" not in calls or path.name == "main.py", path
        assert path.stem not in ("utils", "helpers", "common", "misc"), path


def test_every_logical_name_has_a_rule_and_a_use():
    from rfjax.models import BACKBONES
    from rfjax.parallel.sharding import RULES

    rows = [row for backbone in BACKBONES.values() for row in backbone.parameters]
    named = {name for row in rows for name in row.dims} | {"layers"}
    sources = [path.read_text() for path in (PACKAGE / "models").rglob("*.py")]
    in_model = {n for n in RULES if any(f'"{n}"' in source for source in sources)}
    assert named <= set(RULES)
    assert set(RULES) == named | in_model


def test_import_is_quick_and_light():
    """`import rfjax` costs nothing; training pulls in neither torch nor TensorFlow."""
    script = (
        "import sys, rfjax\n"
        "assert 'jax' not in sys.modules\n"
        "from rfjax import commands\n"
        "for name in ('train', 'evaluate', 'sample', 'sweep'):\n"
        "    getattr(commands, name)\n"
        "assert 'jax' in sys.modules\n"
        "heavy = {'torch', 'tensorflow', 'transformers', 'diffusers'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import rfjax"], check=True, cwd=ROOT)
    assert time.perf_counter() - start < 2


def test_what_a_notebook_starts_with_is_in_the_package_itself():
    import rfjax

    assert {"analyse", "fit_law", "load_runs", "load_table"} <= set(dir(rfjax))
    for name in rfjax.__all__:
        assert callable(getattr(rfjax, name)), name
    with pytest.raises(AttributeError, match="has no attribute 'fit_lwa'"):
        _ = rfjax.fit_lwa


def _functions(tree):
    """Functions and methods that a user may call: none private, none inside others."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from _functions(node)
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node


def test_public_functions_are_documented_and_annotated():
    for path in modules():
        for function in _functions(ast.parse(path.read_text())):
            assert ast.get_docstring(function), f"{path}:{function.lineno}"
            arguments = [*function.args.posonlyargs, *function.args.args]
            for argument in [*arguments, *function.args.kwonlyargs]:
                known = argument.annotation is not None or argument.arg in (
                    "self",
                    "cls",
                )
                assert known, f"{path}:{function.lineno} {argument.arg}"


def test_files_and_functions_stay_small():
    """Code lines, without blank ones, comments and docstrings."""
    for path in modules():
        source = path.read_text()
        tree = ast.parse(source)
        prose = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                if ast.get_docstring(node):
                    prose |= {*range(node.body[0].lineno, node.body[0].end_lineno + 1)}
        code = [
            number
            for number, line in enumerate(source.splitlines(), 1)
            if line.strip() and not line.strip().startswith("#") and number not in prose
        ]
        assert len(code) <= 350, path
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                lines = [n for n in code if node.lineno <= n <= node.end_lineno]
                assert len(lines) <= 60, f"{path}:{node.lineno} {node.name}"
