"""The house's rules that a machine can test: who imports whom, what no file may hold, how long files are."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CODE = sorted(p for folder in ("models", "utils", "patches") for p in (ROOT / folder).glob("*.py"))
ENTRIES = [p for p in (ROOT / n for n in ("train.py", "test.py", "detect.py", "export.py", "bench.py")) if p.exists()]
OURS = {"models", "utils", "patches", "train", "test", "detect", "export", "bench", "tests"}
MAY_IMPORT = {"models": {"models"}, "utils": {"models", "utils"}, "patches": {"models", "utils"}}
TOP_LEVEL = {
    "train.py", "test.py", "detect.py", "export.py", "bench.py", "models", "utils", "patches", "cfg", "data", "scripts",
    "tests", "docs", "runs", "README.md", "LICENSE", "CHANGELOG.md", "BENCHMARKS.md", "Makefile", "pyproject.toml",
    "requirements.txt", "requirements-dev.txt", ".ci", ".gitignore",
}  # fmt: skip


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imported(path: Path) -> set[str]:
    """Top-level names of ours that a file imports."""
    names: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {a.name.split(".")[0] for a in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names & OURS


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", CODE, ids=label)
def test_imports_go_one_way(path: Path) -> None:
    """models <- utils <- patches; nobody imports an entry point or the tests."""
    allowed = MAY_IMPORT[path.parent.name]
    assert imported(path) <= allowed, f"{label(path)} imports {sorted(imported(path) - allowed)}"


@pytest.mark.parametrize("path", ENTRIES, ids=label)
def test_entry_points_import_no_patch_and_no_entry_point(path: Path) -> None:
    assert imported(path) <= {"models", "utils"}


@pytest.mark.parametrize("path", [*CODE, *ENTRIES], ids=label)
def test_no_eval_no_star_no_open_pickle(path: Path) -> None:
    for node in ast.walk(tree(path)):
        where = f"{label(path)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ImportFrom):
            assert "*" not in [a.name for a in node.names], where
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "yaml.load", "pickle.load", "pickle.loads"), f"{where}: {called}"
            if called == "torch.load":
                assert "weights_only=True" in ast.unparse(node), where
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None and ast.unparse(node.type) not in ("Exception", "BaseException"), where


@pytest.mark.parametrize("path", [*CODE, *ENTRIES], ids=label)
def test_files_are_short_and_say_what_they_are(path: Path) -> None:
    text = path.read_text()
    if not text.strip():
        return
    assert ast.get_docstring(tree(path)), f"{label(path)} opens without a docstring"
    limit = 200 if path in ENTRIES else 400
    assert len(text.splitlines()) <= limit, f"{label(path)} has {len(text.splitlines())} lines, at most {limit}"


def test_importing_a_patch_table_imports_no_patch() -> None:
    code = "import sys, patches; print([m for m in sys.modules if m.startswith('patches.')])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_patch_file_is_in_the_table() -> None:
    sys.path.insert(0, str(ROOT))
    from patches import TABLE

    assert set(TABLE.values()) == {p.stem for p in (ROOT / "patches").glob("*.py")} - {"__init__"}


def test_a_patch_states_flags_and_its_class() -> None:
    for path in (ROOT / "patches").glob("*.py"):
        if path.stem != "__init__":
            names = {n.name for n in tree(path).body if isinstance(n, ast.ClassDef)}
            targets = {
                t.id for n in tree(path).body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)
            }
            assert "Flags" in names and "patch" in targets, label(path)


def test_nothing_else_lies_at_the_top() -> None:
    out = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if out.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in out.stdout.splitlines()}
    assert top <= TOP_LEVEL, f"not in the layout: {sorted(top - TOP_LEVEL)}"


def test_no_machine_paths_or_large_files_are_committed() -> None:
    out = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if out.returncode:
        pytest.skip("not a git checkout")
    homes = tuple("/" + name + "/" for name in ("work", "home", "root", "tmp/thaw"))
    for name in out.stdout.splitlines():
        path = ROOT / name
        if not path.is_file():
            continue
        assert path.stat().st_size < 1_000_000, f"{name} is {path.stat().st_size} bytes"
        assert path.suffix not in (".pt", ".pth", ".safetensors", ".onnx"), name
        if path.suffix in (".py", ".md", ".yaml", ".sh", ".toml", ".txt"):
            text = path.read_text(errors="ignore")
            assert not any(h in text for h in homes), f"{name} holds a path of one machine"
