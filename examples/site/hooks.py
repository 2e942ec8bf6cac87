"""Hooks of MkDocs: every Markdown file of the repository has a page, and links work as they do on GitHub.

A page is known to MkDocs by its path in the repository, so a link such as ``../serve/README.md`` needs no
rewriting. Other files that a page links to are copied, and pages of the reference are made from the code.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from trim_graph.examples.site.reference import PAGES_OF, pages

ROOT = Path(__file__).resolve().parents[2]
GUIDES = "examples/guides/"
SHOWN = ("*.md", "examples/**/*.md", "tests/benchmarks/*.md")
"""Markdown files with a page, as globs."""
AS_TEXT = (".py", ".yaml", ".ipynb")
"""Files that a browser would download rather than show."""

_LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replaces the files of the folder of guides by those of the repository and of the reference."""
    shown = Files([file for file in files if not file.src_uri.endswith(".md")])
    linked: set[str] = set()
    for path in sorted({path for glob in SHOWN for path in ROOT.glob(glob)}):
        name = path.relative_to(ROOT).as_posix()
        shown.append(_file(config, name, _place(name)))
        for target, _ in _LINK.findall(path.read_text(encoding="utf-8")):
            linked.add(posixpath.normpath(posixpath.join(posixpath.dirname(name), target)))
    for name in sorted(linked - {file.src_uri for file in shown}):
        if (ROOT / name).is_file() and name not in PAGES_OF:
            shown.append(_file(config, name, name + (".txt" if name.endswith(AS_TEXT) else "")))
    shown.append(File.generated(config, "site.css", abs_src_path=str(Path(__file__).with_name("site.css"))))
    for name, text in pages().items():
        shown.append(File.generated(config, name, content=text))
    return shown


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads links to a module that declares settings, options or events to its page of the reference."""
    folder = posixpath.dirname(page.file.src_uri)

    def lead(match: re.Match[str]) -> str:
        name = posixpath.normpath(posixpath.join(folder, match[1]))
        if (target := PAGES_OF.get(name)) is None:
            return match[0]
        return f"]({posixpath.relpath(target, folder or '.')}{match[2] or ''})"

    return _LINK.sub(lead, markdown)


def _file(config: MkDocsConfig, name: str, place: str) -> File:
    file = File.generated(config, name, abs_src_path=str(ROOT / name))
    file.dest_uri = place
    return file


def _place(name: str) -> str:
    """Returns the place of a Markdown file in the site: that of a guide is its name alone."""
    if name == f"{GUIDES}README.md":
        return "index.html"
    if name == "README.md":
        return "readme/index.html"
    folder, _, file = name.removeprefix(GUIDES).removesuffix(".md").rpartition("/")
    return posixpath.join(folder, "" if file == "README" else file.lower(), "index.html")
