"""Finds the images of a table: below a folder, under names that another operating system may have written."""

import os
import re
import unicodedata
from collections.abc import Iterable

from processing_tier.radiograph_tier import path_under

DRIVE = re.compile(r"[A-Za-z]:[\\/]")


def resolve_paths(root: str | os.PathLike, paths: Iterable[str]) -> list[str]:
    """
    What [`path_under`] gives for each of many paths, faster: shared folders are resolved once. A link inside `root`
    may point to another place inside it.

    Raises:
        `ValueError`: a path does not lie under `root`.
    """
    root = os.path.realpath(root)
    folders, below = {root: root}, os.path.join(root, "")
    resolved = []
    for path in paths:
        whole = os.path.normpath(os.path.join(root, path))
        if ".." in path or not whole.startswith(below):  # rare: take the slow, careful way
            resolved.append(str(path_under(root, path)))
            continue
        missing, folder = [], os.path.dirname(whole)
        while folder not in folders:
            missing.append(folder)
            folder = os.path.dirname(folder)
        for folder in reversed(missing):
            real = os.path.join(folders[os.path.dirname(folder)], os.path.basename(folder))
            folders[folder] = os.path.realpath(real) if os.path.islink(real) else real
        real = os.path.join(folders[os.path.dirname(whole)], os.path.basename(whole))
        if os.path.islink(real):
            real = os.path.realpath(real)
        if not real.startswith(below):
            path_under(root, path)  # raises the error
        resolved.append(real)
    return resolved


def find_files(root: str | os.PathLike, paths: Iterable[str]) -> list[tuple[str, bool]]:
    """
    The file of each path, and whether it exists. If it does not exist as written, it is looked for with `\\` as `/`
    and in other Unicode forms of the name: macOS writes `é` as two characters, most other systems as one.

    Args:
        root (`str` or `os.PathLike`): folder that the paths start from and must not leave.
        paths (`Iterable[str]`): as the table has them.

    Raises:
        `ValueError`: a path does not lie under `root`.
    """
    paths = list(paths)
    found = [(file, os.path.isfile(file)) for file in resolve_paths(root, map(as_posix_if_windows, paths))]
    names: dict[str, dict[str, str]] = {}
    for index, (file, is_there) in enumerate(found):
        if is_there:
            continue
        candidate = os.path.join(os.path.realpath(root), paths[index].replace("\\", "/"))
        if not candidate.isascii():
            candidate = match_unicode(candidate, names)
        if candidate != file and os.path.isfile(candidate):
            found[index] = (resolve_paths(root, [candidate])[0], True)
    return found


def as_posix_if_windows(path: str) -> str:
    """A Windows path with a drive, written as a path of this system; other paths are unchanged."""
    return path.replace("\\", "/") if os.sep == "/" and DRIVE.match(path) else path


def match_unicode(path: str, names: dict[str, dict[str, str]]) -> str:
    """The path of an existing file whose name differs only in its Unicode form, or else the path itself."""
    matched = os.sep if path.startswith(os.sep) else ""
    for part in os.path.normpath(path).split(os.sep):
        if not part:
            continue
        step = os.path.join(matched, part)
        if not part.isascii() and not os.path.lexists(step):
            if matched not in names:
                try:
                    names[matched] = {unicodedata.normalize("NFC", name): name for name in os.listdir(matched or ".")}
                except OSError:
                    names[matched] = {}
            step = os.path.join(matched, names[matched].get(unicodedata.normalize("NFC", part), part))
        matched = step
    return matched


def shown_path(path: str, root: str | os.PathLike) -> str:
    """A path for messages: from `root` on, so that users can find it; outside of `root`, only the name."""
    path = path.replace("\\", "/")
    whole, root = os.path.normpath(os.path.join(os.path.abspath(root), path)), os.path.abspath(root)
    for folder in (root, os.path.realpath(root)):
        if whole.startswith(os.path.join(folder, "")):
            return whole[len(os.path.join(folder, "")) :]
    return os.path.basename(path)
