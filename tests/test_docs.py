"""The documentation: the site builds without a warning, every link in it leads somewhere, and the notebook runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.evaluation.rendered import Video, render

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return out


def test_every_page_is_in_the_site(site: Path) -> None:
    pages = {str(page.relative_to(ROOT / "docs").with_suffix("")) for page in ROOT.glob("docs/**/*.md")}
    for page in pages | {"recipes", "benchmarks", "notebook"}:
        assert (site / page / "index.html").is_file(), page
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in pages:
        assert re.search(rf": {re.escape(page)}\.md$", navigation, re.M), f"mkdocs.yml: nav lacks {page}.md"


def test_links_within_the_site_lead_to_a_page_and_a_place(site: Path) -> None:
    looked_at = 0
    for page in site.rglob("*.html"):
        if page.name == "404.html":
            continue
        for href in re.findall(r'<a [^>]*href="([^"]*)"', page.read_text()):
            if re.match(r"[a-z]+:", href):
                continue
            path, _, anchor = href.partition("#")
            target = (page.parent / path).resolve() if path else page
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{page}: {href}"
            if anchor and target.suffix == ".html":
                assert f'id="{anchor}"' in target.read_text(), f"{page}: {href}"
                looked_at += 1
    assert looked_at > 50


def test_the_reference_shows_docstrings(site: Path) -> None:
    text = (site / "reference" / "index.html").read_text()
    for name in ("pipelines.loader.Loader", "objectives.base.Objective", "pipelines.views.ViewSpec"):
        assert f'id="{name}"' in text


def test_the_notebook_runs_on_any_folder_of_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    videos = [(split, label) for split in ("train", "test") for label in (0, 1, 1, 0)]
    for number, (split, label) in enumerate(videos):
        file = tmp_path / "videos" / split / ("still", "moving")[label] / f"{number}.mp4"
        file.parent.mkdir(parents=True, exist_ok=True)
        render(file, Video(label, split, 16), number)
    for name, value in {
        "NOTEBOOK_STEPS": "2",
        "NOTEBOOK_VIDEOS": str(tmp_path / "videos"),
        "SLIPSTREAM_CACHE": str(tmp_path / "cache"),
        "TMPDIR": str(tmp_path),
        "ACCELERATE_USE_CPU": "true",
    }.items():
        monkeypatch.setenv(name, value)
    book = nbformat.read(ROOT / "docs/notebook.ipynb", 4)
    assert not any(cell.get("outputs") for cell in book.cells), "docs/notebook.ipynb: clear its outputs"
    resources = {"metadata": {"path": str(ROOT)}}
    NotebookClient(book, timeout=300, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    printed = "".join(output.get("text", "") for output in outputs)
    assert "8 videos" in printed and "2/2" in printed and "R@1" in printed
    shown = [output.data for output in outputs if output.output_type in ("display_data", "execute_result")]
    assert sum("image/png" in data for data in shown) == 3 and "(6, 64)" in str(shown)
