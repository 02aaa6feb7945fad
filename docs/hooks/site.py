"""
What MkDocs is told beyond mkdocs.yml: the navigation, which is the index of docs/README.md; pages that are made from
the code (`reference.py`) or lie outside of docs/; and links and marks that GitHub and the site show differently.
"""

import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]

import reference  # noqa: E402

INDEX = "README.md"
OUTSIDE = {"../CONTRIBUTING.md": "contributing.md", "../CHANGELOG.md": "changelog.md", "../SECURITY.md": "security.md"}
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
MARK = re.compile(r"^<!-- (not run: .*?|run by .*?) -->$", re.MULTILINE)


def index() -> dict[str, list[tuple[str, str]]]:
    """The sections of the index: by heading, title and file of each page in its tables."""
    sections, pages = {}, []
    for line in (ROOT / "docs" / INDEX).read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            sections[line[3:].strip()] = pages = []
        elif row := re.match(r"\| \[([^\]]+)\]\(([^)#]+\.md)\) ", line):
            pages.append((row[1], OUTSIDE.get(row[2], row[2])))
    return sections


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The navigation: the sections of the index, with the pages made from the code in the section Reference."""
    sections = index()
    made = [(title, path) for path, (title, _) in reference.pages(ROOT).items()]
    sections["Reference"] += made
    config.nav = [{"Home": INDEX}]
    config.nav += [{name: [{title: path} for title, path in pages]} for name, pages in sections.items()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that do not lie in docs/."""
    for path, (_, text) in reference.pages(ROOT).items():
        files.append(File.generated(config, path, content=text))
    for link, path in OUTSIDE.items():
        text = (ROOT / Path(link).name).read_text(encoding="utf-8")
        files.append(File.generated(config, path, content=text.replace("](docs/", "](")))
    files.append(File.generated(config, "hooks.css", content=(HERE / "site.css").read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Shows why a command is not run; links into the repository become its names, as on a package index."""
    titles = {path: title for pages in index().values() for title, path in pages}

    def follow(link: re.Match) -> str:
        text, target = link.groups()
        if re.match(r"\w+:|#", target):
            return link[0]
        name, _, anchor = target.partition("#")
        name = OUTSIDE.get(name) or OUTSIDE.get(f"../{name}") or name
        if files.get_file_from_path(name) is None:
            return text if text.startswith("`") else f"{text} (`{name.removeprefix('../')}`)"
        text = (
            titles.get(name, text) if text.removeprefix("docs/") == name else text
        )  # a file's name tells a reader of the site nothing
        return f"[{text}]({name}{'#' + anchor if anchor else ''})"

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    for number in range(0, len(parts), 2):
        parts[number] = LINK.sub(follow, MARK.sub(r'<p class="mark" markdown>Tests: \1</p>', parts[number]))
    return "".join(parts)
