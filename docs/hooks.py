"""What the site has beside the pages in docs/: README and others, examples, tables of settings.

Links between files of the repository are written for the repository, and translated here.
"""

from __future__ import annotations

import posixpath
import re
import sys
from importlib import import_module
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent

# Page of the site → file of the repository.
PAGES = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "configs.md": "configs/README.md",
    "upstream.md": "upstream/README.md",
    "examples/index.md": "examples/README.md",
    **{
        f"examples/{path.stem}.md": f"examples/{path.name}"
        for path in sorted((ROOT / "examples").glob("*.py"))
    },
    **{
        f"benchmarks/{path.name}": f"benchmarks/results/{path.name}"
        for path in sorted((ROOT / "benchmarks" / "results").glob("*.md"))
    },
}
_URI_OF = {source: uri for uri, source in PAGES.items()}
_LINK = re.compile(r"(\]\()(?!\w+:|#)([^)#\s]+)(#[^)]*)?\)")
_SETTINGS = re.compile(r"<!-- settings: ([\w.]+)\.(\w+)(?: without ([\w, ]+))? -->")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, and each file that one of them links to."""
    for uri, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        if source.endswith(".py"):
            text = _example(source, text)
        files.append(File.generated(config, uri, content=text))
    linked = {
        source
        for file in files.documentation_pages()
        for _, source in _links(file.content_string, _source(file.src_uri))
    }
    for source in sorted(linked - _URI_OF.keys()):
        path = ROOT / source
        if path.is_file() and not source.startswith("docs/"):
            files.append(File.generated(config, _uri(source), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Translate the links, and fill in the tables of settings."""
    here = page.file.src_uri
    for written, source in _links(markdown, _source(here)):
        uri = _uri(source)
        if files.get_file_from_path(uri) is None:
            continue  # mkdocs says so
        relative = posixpath.relpath(uri, posixpath.dirname(here) or ".")
        markdown = re.sub(rf"\]\({re.escape(written)}(?=[)#])", f"]({relative}", markdown)
    return _SETTINGS.sub(_table, markdown)


def _links(markdown: str, source: str) -> list[tuple[str, str]]:
    """Relative links as they are written, and the files of the repository that they mean."""
    folder = posixpath.dirname(source)
    found = {
        match[2]: posixpath.normpath(f"{folder}/{match[2]}") for match in _LINK.finditer(markdown)
    }
    for written, target in found.items():
        if (ROOT / target / "README.md").is_file():
            found[written] = f"{target}/README.md"
    return [(written, target.lstrip("/")) for written, target in found.items()]


def _source(uri: str) -> str:
    return PAGES.get(uri, f"docs/{uri}")


def _uri(source: str) -> str:
    return _URI_OF.get(source, source.removeprefix("docs/"))


def _example(source: str, text: str) -> str:
    title = PurePosixPath(source).stem.replace("_", " ").capitalize()
    return f"# {title}\n\n`{source}`\n\n```python\n{text}```\n"


def _table(match: re.Match[str]) -> str:
    sys.path.insert(0, str(ROOT))
    from solo_infoaug.settings import markdown_table

    left_out = (match[3] or "").replace(",", " ").split()
    return markdown_table(getattr(import_module(match[1]), match[2]), left_out)
