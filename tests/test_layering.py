"""Who may import whom, read from the source: ir <- (solvers alone) <- planner; runtime imports only ir."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "ir": {"ir"},
    "solvers": {"solvers"},
    "planner": {"planner", "ir", "solvers"},
    "runtime": {"runtime", "ir"},
    "tensorstow": {"tensorstow", "ir", "solvers", "planner", "runtime"},
}
HEAVY = {"torch", "onnx", "onnxruntime", "ortools", "highspy", "pulp"}


def sources(folder: str) -> list[Path]:
    found = sorted(p for p in (ROOT / folder).rglob("*.py") if not any(part.is_symlink() for part in p.parents))
    assert found, f"no sources in {folder}"
    return found


def imports(path: Path, folder: str) -> set[str]:
    """Top-level parts of ours that a file imports, resolved from where it stands in the package."""
    package = ("tensorstow",) if folder == "tensorstow" else ("tensorstow", *path.relative_to(ROOT).parent.parts)
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            names.add(".".join((*base, *([node.module] if node.module else []))))
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    ours = {n.split(".")[1] if "." in n else "" for n in names if n.split(".")[0] == "tensorstow"}
    return {o if o in MAY_IMPORT else "tensorstow" for o in ours}


def absolute(path: Path) -> set[str]:
    """Modules that a file imports by their absolute names, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names |= {a.name for a in node.names} if isinstance(node, ast.Import) else set()
        names |= {node.module} if isinstance(node, ast.ImportFrom) and node.module and not node.level else set()
    return names


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_layers_import_only_what_lies_below(folder: str) -> None:
    for path in sources(folder):
        extra = imports(path, folder) - MAY_IMPORT[folder]
        assert not extra, f"{path.relative_to(ROOT)} imports {sorted(extra)}"


@pytest.mark.parametrize("folder", ["ir", "runtime"])
def test_a_plan_runs_where_no_solver_is_installed(folder: str) -> None:
    for path in sources(folder):
        solvers = {n.split(".")[0] for n in absolute(path)} & {"ortools", "highspy", "pulp"}
        assert not solvers, f"{path.relative_to(ROOT)} imports {solvers}"


def test_torch_is_where_torch_operators_run() -> None:
    """An ONNX plan runs without PyTorch: its executor and all that it shares with that of modules never import it."""
    for folder in ("ir", "runtime"):
        for path in sources(folder):
            if path.parent.name in ("module", "training") or path.name.startswith("torch_"):
                continue
            names = {n.split(".")[0] for n in absolute(path)}
            assert "torch" not in names, f"{path.relative_to(ROOT)} imports torch"


def test_heavy_libraries_are_not_imported_on_top_of_the_command_line() -> None:
    light = ("__init__", "__main__", "cli", "report", "workflow", "executors", "hosts", "models", "modules", "api")
    for name in light:
        tree = ast.parse((ROOT / "tensorstow" / f"{name}.py").read_text())
        top = {a.name.split(".")[0] for n in tree.body if isinstance(n, ast.Import) for a in n.names}
        top |= {n.module.split(".")[0] for n in tree.body if isinstance(n, ast.ImportFrom) and n.module and not n.level}
        assert not top & HEAVY, f"{name} imports {top & HEAVY} on top"
