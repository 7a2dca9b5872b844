"""One distribution, three packages, no side effects at import, no torch on the live side."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

import streamdec

ROOT = Path(__file__).parents[1]
PACKAGES = ("streamdec", "offline", "models")


def test_packages_stand_side_by_side() -> None:
    for name in PACKAGES:
        assert (ROOT / name / "__init__.py").is_file()


def test_nobody_else_owns_them() -> None:
    """An editable install is listed nowhere, so absence is fine; another owner is not."""
    owners = importlib.metadata.packages_distributions()
    for name in PACKAGES:
        assert set(owners.get(name, ())) <= {"streamdec"}


def test_version_is_in_the_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[(.+?)\]", text, re.MULTILINE)[1] == streamdec.__version__  # type: ignore[index]


@pytest.mark.parametrize("tool", sorted((ROOT / "tools").rglob("*.py")), ids=lambda path: path.stem)
def test_tools_import_what_is_there(tool: Path) -> None:
    """They run by hand only: nobody else would notice a name that moved."""
    for node in ast.walk(ast.parse(tool.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PACKAGES:
            module = importlib.import_module(str(node.module))
            for name in node.names:
                assert hasattr(module, name.name) or find_spec(f"{node.module}.{name.name}"), name.name


def test_base_install_is_small() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert not any(dependency.startswith(("torch", "mne", "open_clip")) for dependency in project["dependencies"])


def live_modules() -> list[str]:
    files = sorted((ROOT / "streamdec").rglob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


def test_importing_the_live_side_does_nothing() -> None:
    """Every module, in a process without a home, with sockets blocked: no torch, no mne, no thread, no network."""
    program = f"""
import importlib, os, socket, sys, threading
def refuse(*a, **k): raise AssertionError("import opened a socket")
socket.socket.connect = socket.socket.bind = refuse
for name in {live_modules()!r}:
    importlib.import_module(name)
heavy = [m for m in ("torch", "mne", "open_clip", "PIL", "offline", "models") if m in sys.modules]
assert not heavy, heavy
assert threading.active_count() == 1, threading.enumerate()
"""
    environment = {key: value for key, value in os.environ.items() if key != "HOME"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_seconds_become_samples_in_one_place() -> None:
    """No module rounds a product with a rate by itself."""
    pattern = re.compile(r"\b(?:int|round|ceil|floor)\([^()\n]*\*\s*(?:self\.)?_?(?:sfreq|rate)\b")
    offenders = [
        f"{file.relative_to(ROOT)}:{number}"
        for package in PACKAGES
        for file in sorted((ROOT / package).rglob("*.py"))
        if file.name != "rate.py"
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not offenders


@pytest.mark.parametrize(
    ("module", "only"),
    [
        ("pylsl", {f"acquire/lsl/{name}.py" for name in ("inlet", "library", "link", "markers", "outlet")}),
        ("zmq", {"access.py", "decode/generate/link.py", "feed/publisher.py", "feed/subscriber.py"}),
    ],
)
def test_borders_are_files(module: str, only: set[str]) -> None:
    """Each names exactly the files that import it."""
    pattern = re.compile(rf"^\s*(?:import|from) {module}\b", re.MULTILINE)
    files = (ROOT / "streamdec").rglob("*.py")
    users = {f.relative_to(ROOT / "streamdec").as_posix() for f in files if pattern.search(f.read_text("utf-8"))}
    assert users == only
