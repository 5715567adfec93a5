"""The shape of the program: imports flow one way, nothing executes data, functions stay readable, and the pages tell the truth."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = ("models", "data", "utils", "reproduction", "benchmarks", "fuzz")
FILES = sorted([*ROOT.glob("*.py"), *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))])
PROGRAM = [path for path in FILES if path.parent.name not in ("benchmarks", "fuzz")]
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(path: Path) -> set[str]:
    """Modules of the project that a file imports anywhere, as 'package.module'."""
    found: set[str] = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & {module(path) for path in FILES}


def test_imports_flow_one_way() -> None:
    for path in FILES:
        heads = {name.split(".")[0] for name in imports(path)}
        top = module(path).split(".")[0]
        if top in ("models", "data"):
            assert heads <= {top, "utils"}, f"{module(path)} imports {heads}"
        if top == "utils":
            assert heads <= {"utils"}, f"{module(path)} imports {heads}"


def test_no_import_cycle() -> None:
    """Neither at the top of a module nor inside a function."""
    names = {module(path) for path in FILES}
    graph = {module(path): imports(path) & names for path in FILES}
    done: set[str] = set()

    def visit(name: str, chain: tuple[str, ...]) -> None:
        assert name not in chain, " -> ".join((*chain, name))
        if name not in done:
            for other in graph[name]:
                visit(other, (*chain, name))
            done.add(name)

    for name in graph:
        visit(name, ())


FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_ATTRIBUTES = {
    ("pickle", "load"),
    ("pickle", "loads"),
    ("pickle", "Unpickler"),
    ("yaml", "load"),
    ("yaml", "unsafe_load"),
    ("os", "system"),
    ("os", "popen"),
}
NETWORK = {"socket", "urllib", "http", "requests", "ftplib", "smtplib", "httpx", "aiohttp"}


@pytest.mark.parametrize("path", PROGRAM, ids=module)
def test_nothing_is_executed_and_nothing_is_fetched(path: Path) -> None:
    for node in ast.walk(TREES[path]):
        where = f"{module(path)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Name):
                assert function.id not in FORBIDDEN_NAMES, where
            if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
                assert (function.value.id, function.attr) not in FORBIDDEN_ATTRIBUTES, where
                if (function.value.id, function.attr) == ("torch", "load"):
                    assert any(k.arg == "weights_only" and isinstance(k.value, ast.Constant) and k.value.value is True for k in node.keywords), where
            assert not any(k.arg == "shell" and isinstance(k.value, ast.Constant) and k.value.value for k in node.keywords), where
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not any(name.split(".")[0] in NETWORK for name in names), where
        assert not (isinstance(node, ast.Attribute) and node.attr == "path" and isinstance(node.value, ast.Name) and node.value.id == "sys"), where


@pytest.mark.parametrize("path", FILES, ids=module)
def test_functions_are_short_and_public_ones_documented(path: Path) -> None:
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 80, f"{module(path)}: {node.name} is too long"
    for node in TREES[path].body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_") and node.name != "main":
            assert ast.get_docstring(node), f"{module(path)}:{node.lineno}: {node.name} has no docstring"


SCRIPTS = [
    *("train.py", "val.py", "detect.py", "-m models.yolo", "-m models.publish", "-m data.render", "-m data.split", "-m data.synthetic"),
    *("-m data.msld build", "-m data.msld prepare", "-m data.msld report", "reproduce.py ablation", "reproduce.py comparison", "reproduce.py plan"),
    *("-m benchmarks", "-m benchmarks.peer_detections", "-m benchmarks.gpu", "-m fuzz.run"),
]


def heavy_imports(command: str) -> tuple[str, list[str]]:
    """What a command prints, and which of the modules that take long it imports for that."""
    full = [sys.executable, "-X", "importtime", *command.split()]
    result = subprocess.run(full, cwd=ROOT, capture_output=True, text=True, check=True)
    return result.stdout, re.findall(r"\| *(torch|cv2|matplotlib|numpy|PIL|pycocotools)$", result.stderr, re.MULTILINE)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_answers_without_torch(script: str) -> None:
    """--help explains every flag in words, and nothing heavy is imported for it."""
    printed, heavy = heavy_imports(f"{script} --help")
    assert not heavy and "usage:" in printed and "--debug" in printed


@pytest.mark.parametrize(("script", "commands"), [("-m data.msld", "build prepare report"), ("reproduce.py", "ablation comparison plan status")])
def test_a_script_of_several_commands_names_them_at_once(script: str, commands: str) -> None:
    printed, heavy = heavy_imports(f"{script} --help")
    assert not heavy and all(command in printed for command in commands.split())


def test_no_path_of_a_machine() -> None:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    for name in listing.stdout.splitlines():
        path = ROOT / name
        if path.suffix in (".py", ".md", ".yaml", ".toml", ".txt", "") and path.is_file() and name != "tests/test_structure.py":
            text = path.read_text(encoding="utf-8", errors="replace")
            found = re.search(r"(?<![\w.])/(work|home|root|Users)/\w", text)
            assert not found, f"{name}: {found and found.group(0)}"


def test_readme_names_only_what_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:models|data|utils|docs|benchmarks)/[\w./-]+\.\w+)`|\]\(([\w./-]+)\)", text):
        target = name[0] or name[1]
        assert (ROOT / target).exists(), target
    for package, script in re.findall(r"python -m (\w+)\.(\w+)", text):
        assert (ROOT / package / f"{script}.py").exists()
