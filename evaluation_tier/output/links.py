"""Links in a folder whose content is about to be shown or published."""

from pathlib import Path


def leads_outside(path: str | Path, folder: str | Path) -> bool:
    """Whether a path in a folder is, or passes through, a link to something outside that folder."""
    return not Path(path).resolve().is_relative_to(Path(folder).resolve())


def refuse_links_outside(folder: str | Path) -> None:
    """ValueError that names a link, at any depth of a folder, to something outside it."""
    for path in sorted(Path(folder).rglob("*")):
        if path.is_symlink() and leads_outside(path, folder):
            raise ValueError(
                f"{str(path)!r} is a link to something outside the folder, which an upload would publish; remove the "
                "link."
            )
