"""The house's rules that a machine can test: who imports whom, what no file may hold, how long files are."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CODE = sorted(p for folder in ("models", "utils", "patches") for p in (ROOT / folder).rglob("*.py"))
ENTRIES = [
    p
    for p in (ROOT / n for n in ("train.py", "train_aux.py", "test.py", "detect.py", "export.py", "bench.py"))
    if p.exists()
]
OURS = {"models", "utils", "patches", "train", "test", "detect", "export", "bench", "tests"}
# A package imports only packages of lower levels, or of its own. utils/__main__.py loads by name.
LEVELS = (
    ("models", "utils.system"),
    ("utils.config", "utils.images"),
    ("utils.seams",),
    ("utils.data",),
    ("utils.evaluation", "utils.weights"),
    ("utils.runs",),
    ("utils.train", "test", "detect", "export"),
    ("patches", "utils.report", "train"),
    ("utils.study", "utils.bench", "train_aux"),
    ("bench",),
    ("utils.__main__",),
)
LEVEL = {package: i for i, packages in enumerate(LEVELS) for package in packages}
# Imports that go up, because an annotation needs a type. May only shrink.
FOR_TYPES_ONLY = {("utils/seams.py", "utils.data.spec")}
# Words that name a feature, and in how many places of the base they stand. May only shrink.
FEATURES = r"\b(infrared|modality|image_class|teacher|unfreeze|gradnorm|multihead)\b"
NAMED_IN_BASE = {
    "utils/config/detect.py": 1,
    "utils/config/help.py": 1,
    "utils/config/options.py": 2,
    "utils/config/train.py": 2,
    "utils/data/build.py": 1,
    "utils/data/dataset.py": 21,
    "utils/data/listing/label_files.py": 1,
    "utils/data/loader.py": 5,
    "utils/data/scan/partners.py": 1,
    "utils/data/shapes/pairs.py": 10,
    "utils/data/shapes/scenes.py": 3,
    "utils/data/spec.py": 1,
    "utils/runs/folder.py": 2,
    "utils/seams.py": 2,
    "utils/weights/checkpoint.py": 3,
    "utils/weights/foreign.py": 2,
}
MAY_NAME = ("utils/report/", "utils/data/pairs.py", "utils/data/image_classes.py")
NOT_FOR_PATCHES = ("utils.report", "utils.study", "utils.bench", "utils.runs.replay", "utils.train.run")
ROOMS = 12  # files and folders that a level may show
TOP_LEVEL = {
    "train.py", "train_aux.py", "test.py", "detect.py", "export.py", "bench.py", "models", "utils", "patches",
    "cfg", "data", "scripts", "tests", "docs", "runs", "README.md", "LICENSE", "CHANGELOG.md", "BENCHMARKS.md",
    "Makefile", "pyproject.toml", "requirements.txt", "requirements-dev.txt", ".ci", ".gitignore",
}  # fmt: skip


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imported(path: Path) -> set[str]:
    """Modules of ours that a file imports, by full name; where it takes a module out of a package, the module."""
    names: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            below = {f"{node.module}.{a.name}" for a in node.names}
            inside = {name for name in below if place(name).with_suffix(".py").exists() or place(name).is_dir()}
            names |= inside or {node.module}
    return {name for name in names if name.split(".")[0] in OURS}


def place(module: str) -> Path:
    return ROOT / module.replace(".", "/")


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def package_of(module: str) -> str:
    """`utils.data.shapes.scenes` -> `utils.data`; `models.head` -> `models`; `patches.align.measure` -> `patches`."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "utils" and len(parts) > 1 else parts[0]


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_rules_look_at_every_file() -> None:
    """The packages below utils and patches too: a rule that sees no file holds for nothing."""
    assert len(CODE) > 100 and {package_of(module_of(p)) for p in CODE} <= {*LEVEL, "utils"}


@pytest.mark.parametrize("path", [*CODE, *ENTRIES], ids=label)
def test_imports_go_down(path: Path) -> None:
    mine = package_of(module_of(path))
    for name in imported(path):
        its = package_of(name)
        if (label(path), name) in FOR_TYPES_ONLY or mine == its:
            continue
        assert its in LEVEL, f"{label(path)} imports {name}, which is on no level"
        assert mine in LEVEL and LEVEL[its] < LEVEL[mine], f"{label(path)} imports {name}, which does not lie below it"


def test_no_exception_is_out_of_date() -> None:
    for file, name in FOR_TYPES_ONLY:
        assert name in imported(ROOT / file), f"{file} no longer imports {name}: strike it from the list"


@pytest.mark.parametrize("path", [*CODE, *ENTRIES], ids=label)
def test_only_a_patch_imports_itself(path: Path) -> None:
    """models and utils.system import nothing else of ours, nobody imports patches, a patch imports no other patch."""
    parts = path.relative_to(ROOT).parts
    for name in imported(path):
        if name.startswith("patches"):
            assert parts[0] == "patches" and name.split(".")[1:2] == [parts[1].removesuffix(".py")], name
        if parts[0] == "patches":
            assert not name.startswith(NOT_FOR_PATCHES), f"{label(path)} imports {name}"


def test_no_file_of_the_base_names_a_feature() -> None:
    """A count that is larger than it need be is out of date as well: lower it."""
    base = [p for p in CODE if not label(p).startswith(("patches/", *MAY_NAME))]
    counts = {label(p): len(re.findall(FEATURES, p.read_text())) for p in base}
    assert {name: count for name, count in counts.items() if count} == NAMED_IN_BASE


@pytest.mark.parametrize("path", ENTRIES, ids=label)
def test_entry_points_import_no_entry_point(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported(path)} & {p.stem for p in ENTRIES if p.stem != "train"}


def test_a_level_shows_few_rooms() -> None:
    for folder in {p.parent for p in CODE}:
        rooms = [p for p in folder.iterdir() if (p.is_dir() or p.suffix == ".py") and not p.name.startswith("__")]
        assert len(rooms) <= ROOMS, f"{label(folder)} shows {len(rooms)} rooms, at most {ROOMS}"


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
        if isinstance(node, ast.ExceptHandler) and label(path) != "utils/system/errors.py":  # `parsing` catches all
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


def patch_files() -> list[Path]:
    """The file of each patch: patches/NAME.py, patches/NAME/__init__.py, or both of a package that holds two."""
    sys.path.insert(0, str(ROOT))
    from patches import TABLE

    places = [place(f"patches.{where}") for where in dict.fromkeys(TABLE.values())]
    return [p / "__init__.py" if p.is_dir() else p.with_suffix(".py") for p in places]


def test_every_patch_is_in_the_table() -> None:
    rooms = {p.stem for p in (ROOT / "patches").iterdir() if not p.name.startswith("__")}
    assert rooms == {p.relative_to(ROOT / "patches").parts[0].removesuffix(".py") for p in patch_files()}


def test_a_patch_states_flags_and_its_class() -> None:
    for path in patch_files():
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


# Modules of utils that have no test of their name, and the file that tests them instead. May only shrink.
TESTED_IN = {
    "bench.page": "commands/test_bench.py",
    "bench.parts": "commands/test_bench.py",
    "bench.sections": "commands/test_bench.py",
    "data.scan.cache": "data/test_scan.py",
    "data.scan.partners": "patches/align/test_align.py",
    "report.folder": "report/test_report.py",
    "report.frozen": "report/test_report.py",
    "report.next_commands": "report/test_report.py",
    "report.rules": "report/test_report.py",
    "report.sections": "report/test_report.py",
    "runs.manifest": "commands/test_lost.py",
    "runs.record": "commands/test_train.py",
    "study.figures": "study/test_compare.py",
    "system.sync_bn": "system/test_dist.py",
    "train.audit.plan": "train/audit/test_audit.py",
    "train.run": "test_seams.py",
    "train.saving": "commands/test_resume.py",
    "train.start": "commands/test_resume.py",
}
SHORT = 60  # lines; what is shorter and has one user is a part of it
# Short files with one user or none that stay, and why. May only shrink.
STAY_APART = {
    "utils.data.scan.partners": "judges what was read, the scan reads",
    "patches": "the table of flags",
    "utils.__main__": "the front door of the tools",
    "patches.freeze": "a patch",
    "patches.layer_decay": "a patch",
    "patches.modality.missing": "evaluates without one of the pictures; the patch reads both",
    "patches.modality.stems": "a network; the patch is what trains it",
    "patches.weighting.shared_layer": "finds a module; the patch is at its limit of length",
    "patches.weighting.tasks": "parses and checks what tasks are named; the patch is at its limit of length",
    "utils.config.detect": "flags of a program; help reads them without it",
    "utils.config.export": "flags of a program; help reads them without it",
    "utils.study.ablate": "a command of its own",
}
DOCS = ROOT / "docs/architecture.md"


def test_every_module_has_a_test_of_its_name() -> None:
    modules = [module_of(p).removeprefix("utils.") for p in CODE if p.is_relative_to(ROOT / "utils")]
    without = set()
    for name in (m for m in modules if not place(f"utils.{m}").is_dir() and m not in ("utils", "__main__")):
        *folders, last = name.split(".")
        if not (ROOT / "tests").joinpath(*folders, f"test_{last}.py").is_file():
            without.add(name)
    assert without <= TESTED_IN.keys(), f"no tests/<package>/test_<module>.py for {sorted(without - TESTED_IN.keys())}"
    assert without >= TESTED_IN.keys(), f"strike from the list: {sorted(TESTED_IN.keys() - without)}"
    assert not [test for test in TESTED_IN.values() if not (ROOT / "tests" / test).is_file()]


def test_a_short_file_with_one_user_is_a_part_of_it() -> None:
    users: dict[str, set[Path]] = {}
    for path in [*CODE, *ENTRIES]:
        for name in imported(path):
            users.setdefault(name, set()).add(path)
    short = {module_of(p) for p in CODE if 1 < len(p.read_text().splitlines()) < SHORT}
    alone = {name for name in short if len(users.get(name, ())) < 2}
    assert alone <= STAY_APART.keys(), f"merge with their one user: {sorted(alone - STAY_APART.keys())}"
    assert alone >= STAY_APART.keys(), f"strike from the list: {sorted(STAY_APART.keys() - alone)}"


def test_what_the_architecture_page_names_exists() -> None:
    named = re.findall(r"`([\w./-]+(?:/|\.(?:py|md|yaml|sh)))`", DOCS.read_text())
    named = [n for n in named if "NAME" not in n and ("/" in n or n in TOP_LEVEL)]
    assert len(named) > 60
    assert not [n for n in named if not (ROOT / n).exists()]
    rooms = [p.relative_to(ROOT).as_posix() for p in (ROOT / "utils").iterdir() if (p / "__init__.py").exists()]
    assert not [r for r in rooms if f"{r}/" not in named], "a package that the page leaves out"
