"""The layout of the repository: which way imports point, how full a folder is, and its maps.

Imports are read with `ast`, so that those inside functions count too.
"""

import ast
import importlib
import pkgutil
from collections import Counter
from pathlib import Path

import pytest

from tests import soak
from tests.conftest import ROOT

# A file may import from its own package and from those after it.
ORDER = (
    "scripts",
    "Utils.Training_Utils",
    "Utils.Evaluation_Utils",
    "Utils.Pretrained_Utils",
    "Utils.Datasets_Utils",
    "Utils",
    "Config",
    "Backbone, Head",
)
PACKAGES = ("Config", "Backbone", "Head", "Utils")
MOST_IN_A_FOLDER = 14


def product_files() -> list[Path]:
    inside = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return [*ROOT.glob("*.py"), *inside]


def module_of(path: Path) -> str:
    words = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(words[:-1] if words[-1] == "__init__" else words)


FILES = {module_of(path): path for path in product_files()}


def imported_by(module: str) -> set[str]:
    """The project's own modules that a module names in its import statements."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in names}
    return (found & FILES.keys()) - {module}


IMPORTS = {module: imported_by(module) for module in FILES}


def package_of(module: str) -> str:
    if module.split(".")[0] in ("Backbone", "Head"):
        return "Backbone, Head"
    fitting = [name for name in ORDER if module == name or module.startswith(f"{name}.")]
    return max(fitting, key=len, default="scripts")


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_point_one_way(module):
    own = ORDER.index(package_of(module))
    against = {name for name in IMPORTS[module] if ORDER.index(package_of(name)) < own}
    assert not against, f"{module} imports {against}, which is above it"


def test_backbones_and_heads_do_not_know_each_other():
    for module in FILES:
        room = module.split(".")[0]
        if room in ("Backbone", "Head"):
            assert {name.split(".")[0] for name in IMPORTS[module]} <= {room}, module


def test_no_files_import_each_other_in_a_circle():
    left = {module: set(names) for module, names in IMPORTS.items()}
    while free := [module for module, names in left.items() if not names]:
        for module in free:
            del left[module]
        for names in left.values():
            names.difference_update(free)
    assert not left, f"these files import each other, or what is in a circle: {sorted(left)}"


def test_no_folder_has_too_many_files():
    counts = Counter(path.parent for path in product_files())
    assert max(counts.values()) <= MOST_IN_A_FOLDER, counts.most_common(3)


@pytest.mark.parametrize(
    "package", sorted(name for name, path in FILES.items() if path.name == "__init__.py")
)
def test_a_package_opens_with_a_map_of_its_files(package):
    opening = ast.get_docstring(ast.parse(FILES[package].read_text())) or ""
    folder = FILES[package].parent
    entries = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    entries |= {path.parent.name for path in folder.glob("*/__init__.py")}
    missing = {entry for entry in entries if entry not in opening}
    assert not missing, f"the docstring of {package} does not name {missing}"


def test_every_campaign_of_faults_can_be_imported():
    names = {module.name for module in pkgutil.walk_packages(soak.__path__, "tests.soak.")}
    for name in names - {"tests.soak.__main__", "tests.soak.fuzz"}:  # fuzz needs atheris
        importlib.import_module(name)
