"""Who may import whom, and what is registered: the rules of the layout, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from typer.main import get_command

from methods import METHODS
from runner import app
from tests.harness import ROOT

SUPPORT = {"contract", "allocation", "batch_norm", "mixing", "sensitivity"}
"""Modules of methods/ that several methods need; the rest are methods."""

REPORTS_MAY_IMPORT = {
    f"benchmarks.{name}" for name in ("files", "messages", "planning", "records", "suites", "untrusted")
}
ROOMS_MAY_NOT_IMPORT = {
    "reports/numbers/": ("benchmarks", "methods", "reports"),  # arithmetic and how numbers are written: no records
    "reports/findings/": ("reports",),  # what was found, not how it is shown
    "reports/figures/": ("reports",),
    "benchmarks/suites/": ("benchmarks.trials", "benchmarks.engines", "benchmarks.commands"),
    "benchmarks/records/": ("benchmarks.trials", "benchmarks.engines", "benchmarks.commands"),
}
"""Folder -> packages that are closed to it, itself excepted, and the packages of BUT."""

BUT = {
    "reports/findings/": ("reports.numbers",),
    "reports/figures/": ("reports.numbers", "reports.findings"),
}

OURS = ("runner", "methods", "benchmarks", "reports")
ONLY_IN = {"ray": "benchmarks/engines/ray/", "mlflow": "benchmarks/records/tracking.py"}


def sources(root: Path) -> dict[str, ast.Module]:
    """Every module of ours by its path, parsed; benchmarks of ourselves beside peers may import anything."""
    files = [root / "runner.py", *(path for package in OURS[1:] for path in (root / package).rglob("*.py"))]
    found = {path.relative_to(root).as_posix(): path for path in files if path.exists()}
    return {
        name: ast.parse(path.read_text(encoding="utf-8"))
        for name, path in found.items()
        if not name.startswith("benchmarks/perf/")
    }


def imports(tree: ast.Module) -> Iterator[str]:
    """Every module that is imported, wherever in the file, in full; `from a import b` gives a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "relative imports are not used here"
            assert not node.level, "relative imports are not used here"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def broken_rules(trees: dict[str, ast.Module]) -> list[str]:
    """Every import that breaks a rule, as `file imports module`."""
    return [
        f"{path} imports {module}"
        for path, tree in trees.items()
        for module in imports(tree)
        if not allowed(path, module) or closed(path, module)
    ]


def closed(path: str, module: str) -> bool:
    """Whether a folder's own rule forbids the import; of `from reports import figures` the second name is judged."""
    for folder, packages in ROOMS_MAY_NOT_IMPORT.items():
        if path.startswith(folder) and module not in ("reports", "benchmarks"):
            open_to = (folder.strip("/").replace("/", "."), *BUT.get(folder, ()))
            barred = any(within(module, package) for package in packages)
            return barred and not any(within(module, package) for package in open_to)
    return False


def borrowed_secrets(trees: dict[str, ast.Module]) -> list[str]:
    """Every name with an underscore that is taken from another module of ours: imported, or read as its attribute."""
    found = []
    for path, tree in trees.items():
        modules = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in OURS:
                found += [f"{path}: {node.module}.{alias.name}" for alias in node.names if is_secret(alias.name)]
                modules |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and is_secret(node.attr) and dotted(node.value) in modules:
                module = modules[dotted(node.value)]
                if f"{module.replace('.', '/')}.py" in trees:
                    found.append(f"{path}: {module}.{node.attr}")
    return found


def is_secret(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def dotted(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def allowed(path: str, module: str) -> bool:
    top = module.partition(".")[0]
    if top in ONLY_IN:
        return path.startswith(ONLY_IN[top])
    if top not in OURS:
        return True
    if path.startswith("reports/"):
        return (
            top in ("reports", "methods")
            or module == "benchmarks"
            or any(within(module, name) for name in REPORTS_MAY_IMPORT)
        )
    if path.startswith("benchmarks/"):
        command = path.startswith("benchmarks/commands/")
        if top == "reports" or within(module, "benchmarks.commands"):
            return command  # what a command says; nothing else of benchmarks knows of reports or of the command line
        return top == "benchmarks" or (top == "methods" and not is_method(module))
    if path.startswith("methods/"):
        own = path.removesuffix(".py").replace("/", ".")
        return top == "methods" and (within(module, own) or not is_method(module))
    return True


def is_method(module: str) -> bool:
    """Whether a dotted name lies in a module of methods/ that holds methods."""
    parts = module.split(".")
    return len(parts) > 1 and parts[1] in method_modules()


def method_modules() -> set[str]:
    return {target.partition(":")[0].split(".")[1] for target in METHODS.values()}


def test_imports_keep_the_rules():
    assert broken_rules(sources(ROOT)) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("methods/hawq.py", "from methods.metamix import MetaMix"),
        ("methods/mixing.py", "import methods.hawq"),
        ("methods/hawq.py", "from benchmarks.suites.spec import Recipe"),
        ("methods/quantization/grid.py", "import benchmarks"),
        ("methods/hawq.py", "import reports.numbers.pareto"),
        ("benchmarks/trials/trial.py", "from methods.hawq import Hawq"),
        ("benchmarks/trials/trial.py", "from methods import hawq"),
        ("benchmarks/trials/trial.py", "from reports.build import build_report"),
        ("benchmarks/trials/trial.py", "from benchmarks.commands.session import Session"),
        ("benchmarks/planning.py", "from benchmarks import commands"),
        ("benchmarks/commands/report.py", "import runner"),
        ("benchmarks/trials/trial.py", "def f():\n    import ray"),
        ("benchmarks/trials/trial.py", "from ray import tune"),
        ("runner.py", "import mlflow.entities"),
        ("reports/page/html.py", "from benchmarks import trial"),
        ("reports/page/html.py", "from benchmarks.models import build_model"),
        ("reports/page/html.py", "import runner"),
        ("reports/build.py", "from benchmarks.commands.report import execute"),
        ("reports/numbers/pareto.py", "from benchmarks.records.record import Record"),
        ("reports/numbers/display.py", "import methods.quantization.cost"),
        ("reports/numbers/display.py", "from reports.findings.comparison import Cell"),
        ("reports/numbers/display.py", "from reports import findings"),
        ("reports/findings/tables.py", "from reports.figures.style import STYLE"),
        ("reports/findings/tables.py", "from reports import page"),
        ("reports/findings/tables.py", "def f():\n    import reports.page.html"),
        ("reports/findings/comparison.py", "from reports.verification.claims import judged"),
        ("reports/figures/bits.py", "from reports.page.blocks import Figure"),
        ("benchmarks/suites/suite.py", "from benchmarks.trials.setting import Setting"),
        ("benchmarks/suites/suite.py", "from benchmarks import engines"),
        ("benchmarks/records/tracking.py", "from benchmarks.trials.training import Progress"),
        ("benchmarks/records/record.py", "import benchmarks.commands.merge"),
    ],
)
def test_the_rules_can_be_broken(path, line):
    assert broken_rules({path: ast.parse(line)}) != []


def test_a_command_may_import_reports_and_its_neighbours():
    lines = "from reports.build import build_report\nfrom benchmarks.commands.session import Session"
    assert broken_rules({"benchmarks/commands/report.py": ast.parse(lines)}) == []


def test_every_command_of_runner_is_the_file_of_its_name():
    commands = {name.replace("-", "_") for name in get_command(app).commands}
    files = {path.stem for path in (ROOT / "benchmarks" / "commands").glob("*.py")}
    assert commands <= files
    assert len((ROOT / "runner.py").read_text(encoding="utf-8").splitlines()) < 300


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("reports/figures/bits.py", "from reports.figures.marks import COLOURS"),
        ("reports/figures/bits.py", "from reports.findings import strips"),
        ("reports/findings/tables.py", "from reports.numbers import display"),
        ("reports/page/explorer.py", "from reports.figures.marks import COLOURS"),
        ("benchmarks/records/record.py", "from benchmarks.suites.spec import digest"),
    ],
)
def test_the_rules_leave_these_ways_open(path, line):
    assert broken_rules({path: ast.parse(line)}) == []


def test_no_module_takes_another_s_secrets():
    assert borrowed_secrets(sources(ROOT)) == []


@pytest.mark.parametrize(
    "line",
    [
        "from reports.numbers.display import _points",
        "from reports.numbers import display\ntext = display._points(1)",
        "from reports.numbers import display as shown\ndef f():\n    return shown._points(1)",
    ],
)
def test_a_secret_that_is_taken_is_found(line):
    trees = {"reports/page/bars.py": ast.parse(line), "reports/numbers/display.py": ast.parse("_points = 1")}
    assert len(borrowed_secrets(trees)) == 1


def test_no_module_is_imported_by_what_it_imports():
    assert circle(sources(ROOT)) == []


def test_a_circle_of_imports_is_found():
    lines = {
        "benchmarks/a.py": "def f():\n    from benchmarks.b import x",
        "benchmarks/b/__init__.py": "import benchmarks.c",
        "benchmarks/c.py": "from benchmarks import a, d",
        "benchmarks/d.py": "",
    }
    trees = {path: ast.parse(line) for path, line in lines.items()}
    assert circle(trees) == ["benchmarks.a", "benchmarks.b", "benchmarks.c"]
    assert circle(trees | {"benchmarks/c.py": ast.parse("import benchmarks.d")}) == []


def circle(trees: dict[str, ast.Module]) -> list[str]:
    """Modules that import one another in a circle, wherever in their files they do; none if there is no circle."""
    names = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in trees}
    try:
        TopologicalSorter(
            {name: set(imports(trees[path])) & (names.keys() - {name}) for name, path in names.items()}
        ).prepare()
    except CycleError as error:
        return sorted(set(error.args[1]))
    return []


def test_every_module_of_methods_is_registered_or_support():
    files = {path.stem for path in (ROOT / "methods").glob("*.py")} - {"__init__"}
    assert files == method_modules() | SUPPORT


def test_reports_need_no_torch_and_methods_are_named_without_it():
    script = (
        "import sys, importlib\n"
        "from pathlib import Path\n"
        "from methods import METHODS, load_method\n"
        "for name in METHODS: load_method(name).Options.model_json_schema()\n"
        "for folder in ('reports', 'benchmarks/suites', 'benchmarks/records'):\n"
        "    for path in Path(folder).rglob('*.py'):\n"
        "        if path.stem != '__init__': importlib.import_module('.'.join(path.with_suffix('').parts))\n"
        "import benchmarks.engines, benchmarks.planning\n"
        "sys.exit(','.join({'torch', 'ray', 'mlflow'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) in ((0, ""), (1, "\n")), done.stderr


def test_no_module_is_named_for_having_no_name():
    names = {Path(path).stem for path in sources(ROOT)}
    assert names.isdisjoint({"utils", "helpers", "common", "misc"})


def test_every_deviation_from_a_source_has_its_row():
    rows = (ROOT / "docs/deviations.md").read_text(encoding="utf-8")
    tabled = {line.split("`")[1]: line.count(";") + 1 for line in rows.splitlines() if line.startswith("| `")}
    files = [path for package in ("methods", "benchmarks") for path in (ROOT / package).rglob("*.py")]
    said = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8").count("Deviation:") for path in files}
    assert tabled == {path: count for path, count in said.items() if count}
