"""What cannot be said in pyproject.toml: in a wheel the checkout's folders are one package, `slipstream`.

In the checkout they are packages and scripts of their own (shards, models, train.py …), so that one can run and read
them as they lie there. Installed under these names they would hide other people's `evaluate` or `models`. So the
wheel has them inside `slipstream`, and this step rewrites two things as it copies them: absolute imports
(`from shards import x` becomes `from slipstream.shards import x`), and the names of commands in messages
(`tools/make_shards.py` becomes `slipstream make-shards`). An editable install leaves everything as it is.
"""

import ast
import re
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

FOLDERS = ("shards", "pipelines", "models", "objectives", "training", "evaluation", "tools", "benchmarks")
SCRIPTS = ("train", "evaluate")
OURS = "|".join(FOLDERS + SCRIPTS)
NEEDED = ("report", "render")  # of benchmarks/, by tools/bench_loader.py
DATA = {"": ["*.jinja", "published.csv"]}
COMMANDS = {path.stem: path.stem.replace("_", "-") for path in Path("tools").glob("*.py")}
COMMANDS |= {"bench_loader": "bench", "train": "train", "evaluate": "evaluate"}
NAMED = re.compile(rf"(accelerate launch |torchrun [^\n]*?)?(?:tools/)?\b({'|'.join(COMMANDS)})\.py\b")


class OnePackage(build_py):
    """Copies each module with its imports rewritten."""

    def build_module(self, module: str, module_file: str, package: str) -> tuple[str, bool]:
        copied: tuple[str, bool] = super().build_module(module, module_file, package)
        path = Path(copied[0])
        path.write_text(rewritten(path.read_text(encoding="utf-8"), module_file), encoding="utf-8")
        return copied

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found: list[tuple[str, str, str]] = super().find_package_modules(package, package_dir)
        if package == "slipstream":
            found += [(package, script, f"{script}.py") for script in SCRIPTS]
        return [one for one in found if one[0] != "slipstream.benchmarks" or one[1] in NEEDED]


def rewritten(source: str, name: str) -> str:
    """A module of the checkout as it stands in the wheel. Raises ValueError where an import is left over."""
    source = re.sub(
        rf"^(\s*)from ({OURS})\b([\w.]*) import", r"\1from slipstream.\2\3 import", source, flags=re.M
    )
    source = re.sub(rf"^(\s*)import ({OURS})$", r"\1from slipstream import \2", source, flags=re.M)
    source = re.sub(r"^sys\.path\.insert\(0, str\(Path\(__file__\).*\n", "", source, flags=re.M)
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        if left := [one for one in names if one.split(".")[0] in FOLDERS + SCRIPTS]:
            raise ValueError(
                f"{name}: write `from {left[0]} import …` or `import NAME`, which setup.py rewrites"
            )
    if name.startswith("slipstream/"):
        return source
    return NAMED.sub(lambda m: (f"{m[1]}-m " if m[1] else "") + f"slipstream {COMMANDS[m[2]]}", source)


def packages() -> dict[str, str]:
    """Package in the wheel → its folder in the checkout."""
    found = {path.parent for folder in FOLDERS for path in Path(folder).rglob("*.py")}
    inside = {f"slipstream.{'.'.join(folder.parts)}": str(folder) for folder in sorted(found)}
    return {"slipstream": "slipstream"} | inside


if "editable_wheel" in sys.argv:
    folders = find_packages(include=["slipstream", *(f"{folder}*" for folder in FOLDERS)])
    setup(packages=folders, py_modules=SCRIPTS, package_data=DATA)
else:
    PACKAGES = packages()
    setup(cmdclass={"build_py": OnePackage}, packages=list(PACKAGES), package_dir=PACKAGES, package_data=DATA)
