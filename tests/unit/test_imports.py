# SPDX-License-Identifier: Apache-2.0
"""Who may know whom: nothing imports upward, and the pure modules do no I/O of their own."""

import ast
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
# package -> the packages of ours that it may import
MAY_KNOW = {
    "groundwork": set(),
    "chameleon_sites": {"groundwork"},
    "image_builder": {"groundwork", "chameleon_sites", "virtual_waggle"},  # the last as what an image carries
    "virtual_waggle": {"groundwork"},
    "local_chameleon": {"groundwork", "chameleon_sites"},
    "node_automation": {"groundwork", "chameleon_sites", "image_builder"},
}
PURE = (
    "image_builder/comparison.py",
    "image_builder/drift.py",
    "image_builder/upkeep.py",
    "image_builder/report.py",
    "image_builder/rotation.py",
    "image_builder/recipe.py",
    "image_builder/variant.py",
    "node_automation/plan.py",
    "virtual_waggle/broker.py",
    "virtual_waggle/beehive/query.py",
    "virtual_waggle/compose.py",
    "virtual_waggle/compose_model.py",
    "virtual_waggle/compose_tree.py",
    "virtual_waggle/kubernetes.py",
    *(f"virtual_waggle/kubernetes_{part}.py" for part in ("containers", "inits", "networks", "objects")),
    *(f"virtual_waggle/kubernetes_{part}.py" for part in ("pods", "storage", "text")),
    "virtual_waggle/message.py",
    "virtual_waggle/variables.py",
)
DOES_IO = {"socket", "subprocess", "urllib", "requests", "openstack", "groundwork.process", "groundwork.console"}


def imports(path: Path) -> set[str]:
    """The full names of all modules that a file imports, in functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("package", MAY_KNOW)
def test_nothing_imports_upward(package: str) -> None:
    ours = set(MAY_KNOW) | {"tests"}
    for path in (PROJECT / package).rglob("*.py"):
        known = {name.split(".")[0] for name in imports(path)} & ours
        assert known <= MAY_KNOW[package] | {package}, path


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_reach_nothing(name: str) -> None:
    assert not imports(PROJECT / name) & DOES_IO


def test_one_module_starts_processes_and_one_calls_glance() -> None:
    for package in MAY_KNOW:
        for path in (PROJECT / package).rglob("*.py"):
            name = str(path.relative_to(PROJECT))
            found = imports(path)
            if "subprocess" in found and name != "groundwork/process.py":
                # others may name its types and exceptions, but start nothing with it
                text = path.read_text()
                assert "subprocess.run(" not in text, name
                assert "subprocess.Popen(" not in text, name
            if name != "image_builder/catalog.py":
                assert ".image." not in path.read_text().replace("connection.image.get_endpoint", ""), name
