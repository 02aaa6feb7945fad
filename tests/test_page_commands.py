"""Every command and every Python line on a page is run here, on small data, or its mark says why it cannot be.

A mark is a comment above the block: `<!-- not run: needs several GPUs -->` or `<!-- run by .ci/run -->`. Commands in
sentences and tables are not run; `test_docs.py` checks their options.
"""

import shutil
from pathlib import Path

import pytest
from page_commands import PAGES, ROOT, blocks_of, command_lines, made_by, run_command, run_python
from page_folder import make_folder

TO_RUN = [page for page in PAGES if any(block.kind and not block.mark for block in blocks_of(page))]


@pytest.fixture(scope="session")
def filled(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pages") / "folder"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_folder(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", TO_RUN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_page_says_runs(page, filled, tmp_path, monkeypatch):
    shutil.copytree(filled, tmp_path / "folder", symlinks=True)
    monkeypatch.chdir(tmp_path / "folder")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    for made in made_by(page):
        shutil.rmtree(made, ignore_errors=True)
    names = {"__name__": "page"}
    for block in blocks_of(page):
        if block.kind == "python" and not block.mark:
            run_python(block.text, names, page)
        elif block.kind == "shell" and not block.mark:
            for words in command_lines(block.text):
                run_command(words)
