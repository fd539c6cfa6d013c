"""Dockerfile and environment.yml, without Docker and conda: what they name exists, and the CPU stage's steps run."""

import fnmatch
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IGNORED = [
    line.removeprefix("**/") for line in (ROOT / ".dockerignore").read_text().split() if line[0] != "#"
]


def not_sent(folder: str, names: list[str]) -> set[str]:
    """What .dockerignore leaves out of the top folder."""
    return shutil.ignore_patterns(*IGNORED)(folder, names) if Path(folder) == ROOT else set()


Stage = list[tuple[str, str]]  # instruction, its arguments


def stages() -> dict[str, Stage]:
    """Stage → its instructions, the first of them FROM."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    found: dict[str, Stage] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            image, _, name = rest.partition(" AS ")
            stage = found.setdefault(name, [])
            rest = image
        stage.append((word, rest))
    return found


def pins(path: Path) -> dict[str, list[tuple[str, Marker | None]]]:
    """Package → the versions that a file of constraints pins, and where each applies; every one has hashes."""
    found: dict[str, list[tuple[str, Marker | None]]] = {}
    for entry in path.read_text().replace("\\\n", " ").splitlines():
        requirement, *hashes = entry.split(" --hash=")
        one = Requirement(requirement.strip())
        (version,) = [spec.version for spec in one.specifier if spec.operator == "=="]
        assert hashes and all(part.strip().startswith("sha256:") for part in hashes), entry
        found.setdefault(one.name.lower(), []).append((version, one.marker))
    return found


def test_every_stage_names_what_there_is() -> None:
    found = stages()
    assert list(found) == ["wheel", "cpu", "cuda"]  # a plain `docker build .` makes the last
    for name, steps in found.items():
        before = list(found)[: list(found).index(name)]
        copied: set[str] = set()
        for word, rest in steps:
            if word == "FROM":
                assert re.fullmatch(r"[\w./-]+:[\w.-]+", rest), rest  # a version, not "latest"
            if word == "COPY":
                *sources, target = shlex.split(rest)
                for source in sources:
                    assert (ROOT / source).exists(), f"{name}: COPY {source}"
                    assert not any(fnmatch.fnmatch(source, pattern) for pattern in IGNORED), source
                    copied.add(target + source if target.endswith("/") else target)
            if word == "RUN":
                for stage in re.findall(r"from=(\w+)", rest):
                    assert stage in before, rest
                copied |= set(re.findall(r"> (\S+)", rest))
                for file in re.findall(r"(?:-r|--constraint) (\S+)", rest):
                    assert file in copied, f"{name}: {file} is read before it is there"
            if word == "ENTRYPOINT":
                assert yaml.safe_load(rest)[0] in PROJECT["scripts"]
    for stage in re.findall(r"--target (\w+)", (ROOT / "Dockerfile").read_text()):
        assert stage in found
    for name in ("wheel", "cpu"):
        (version,) = re.findall(r"python:([\d.]+)", found[name][0][1])
        assert version in SpecifierSet(PROJECT["requires-python"])


def test_the_steps_of_the_cpu_stage_run(tmp_path: Path) -> None:
    """In this order, by bash, with a pip that asks no index: what the wheel needs lies in this environment."""
    site = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", site], check=True)
    (packages,) = site.glob("lib/python*/site-packages")
    (packages / "packages.pth").write_text(
        f"import sys; sys.modules['nvidia.dali'] = None\n{sysconfig.get_path('purelib')}\n"
    )
    pip = site / "bin/pip"
    pip.write_text(
        "#!/bin/bash\n"
        f'said=$1; shift; echo "$said $@" >> {tmp_path}/pip.txt\n'
        'if [ "$said" = wheel ]; then\n'
        f'  exec {sys.executable} -m pip wheel -q --no-build-isolation "$@"\n'
        "fi\n"
        f'exec {sys.executable} -m pip --python {site}/bin/python install -q --no-deps --no-index "$@"\n'
    )
    pip.chmod(0o755)
    where = {"/src": tmp_path / "src", "/dist": tmp_path / "dist", "/tmp": tmp_path / "tmp"}
    for folder in where.values():
        folder.mkdir()

    def placed(text: str) -> str:
        return re.sub(r"(?<![\w.])(/src|/dist|/tmp)\b", lambda found: str(where[found[1]]), text)

    for stage in ("wheel", "cpu"):
        folder = tmp_path
        for word, rest in stages()[stage]:
            if word == "WORKDIR":
                folder = where.get(rest, tmp_path)
            if word == "COPY":
                source, target = placed(rest).split()
                if source == ".":
                    shutil.copytree(ROOT, folder, ignore=not_sent, dirs_exist_ok=True)
                else:
                    shutil.copy(ROOT / source, target)
            if word == "RUN":
                command = placed(re.sub(r"--mount=\S+ ", "", rest))
                path = {"PATH": f"{site}/bin:/usr/bin:/bin"}
                done = subprocess.run(
                    ["bash", "-ec", command], cwd=folder, env=path, capture_output=True, text=True
                )
                assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    asked = (tmp_path / "pip.txt").read_text()
    assert asked.startswith("wheel ") and "\ninstall " in asked and "--constraint" in asked
    (entry,) = (yaml.safe_load(rest) for word, rest in stages()["cpu"] if word == "ENTRYPOINT")
    done = subprocess.run(
        [site / "bin" / entry[0], "make-shards", "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and "slipstream make-shards" in done.stdout, done.stderr
    pinned = (where["/tmp"] / "pins.txt").read_text().splitlines()
    assert len(pinned) > 50 and all(Requirement(line).specifier for line in pinned if line.strip())


@pytest.mark.parametrize(
    "constraints, extras", [("constraints.txt", ["cu13"]), ("constraints-test.txt", ["cu13", "dev"])]
)
def test_pins_are_of_what_the_project_asks_for(constraints: str, extras: list[str]) -> None:
    pinned, wanted = pins(ROOT / constraints), [*PROJECT["dependencies"]]
    for extra in extras:
        wanted += PROJECT["optional-dependencies"][extra]
    for text in wanted:
        one = Requirement(text)
        if one.name == "slipstream":
            wanted += [more for extra in one.extras for more in PROJECT["optional-dependencies"][extra]]
            continue
        versions = [version for version, _ in pinned.get(one.name.lower().replace("_", "-"), [])]
        assert versions and all(version in one.specifier for version in versions), (text, versions)


def test_both_files_of_pins_agree() -> None:
    training, tests = (pins(ROOT / name) for name in ("constraints.txt", "constraints-test.txt"))
    for name, versions in training.items():
        assert {version for version, _ in versions} == {version for version, _ in tests[name]}, name


def test_condas_environment_is_the_same_set_of_pins() -> None:
    path = ROOT / "environment.yml"
    environment = yaml.safe_load(path.read_text())
    python, pip, of_pip = environment["dependencies"]
    assert environment["name"] == "slipstream" and pip == "pip"
    (version,) = re.findall(r"python=([\d.]+)", python)
    assert version in SpecifierSet(PROJECT["requires-python"])
    assert f"--python-version {version}" in (ROOT / "Makefile").read_text()  # which the pins are made for
    assert of_pip == {"pip": ["--require-hashes", "-r constraints.txt"]}
