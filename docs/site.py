"""Hooks of the documentation site (mkdocs.yml): the READMEs and the notebook become pages, and links between all pages keep working.

A page is written for who reads it in the checkout, so its links are paths in the checkout. Here a link to another page becomes
a link within the site, and a link to any other file becomes its text. A link to nothing ends the build.
"""

import json
import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "recipes/README.md": "recipes.md",
    "benchmarks/README.md": "benchmarks.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
_PATHS = {page: path for path, page in PAGES.items()}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    files.append(File.generated(config, "notebook.md", content=notebook_page()))
    return files


def notebook_page() -> str:
    """The notebook's text and code, without outputs."""
    cells = json.loads((ROOT / "docs/notebook.ipynb").read_text())["cells"]
    parts = ["".join(cell["source"]) for cell in cells]
    for place, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            parts[place] = f"```python\n{parts[place]}\n```"
    parts.insert(1, "This page is a notebook: [notebook.ipynb](notebook.ipynb).")
    return "\n\n".join(parts)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    here = page.file.src_uri

    def replace(link: re.Match[str]) -> str:
        image, text, target, anchor = link.groups()
        if re.match(r"[a-z]+:", target):
            return link[0]
        path = os.path.normpath(os.path.join(os.path.dirname(_PATHS.get(here, f"docs/{here}")), target))
        if not (ROOT / path).exists():
            raise PluginError(f"{_PATHS.get(here, here)}: there is no {path}")
        uri = PAGES.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(uri) is None:
            return text
        return f"{image}[{text}]({os.path.relpath(uri, os.path.dirname(here) or '.')}{anchor or ''})"

    # code blocks are not links
    parts = re.split(r"(```.*?```)", markdown, flags=re.S)
    return "".join(part if n % 2 else _LINK.sub(replace, part) for n, part in enumerate(parts))
