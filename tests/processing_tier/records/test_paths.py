import pytest

from processing_tier.radiograph_tier import path_under
from processing_tier.records.paths import resolve_paths


def test_many_paths_resolve_as_each_does_alone(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "a" / "b").mkdir(parents=True)
    outside.mkdir()
    for path in (root / "a" / "b" / "1.png", root / "a" / "2.png", outside / "3.png"):
        path.touch()
    (root / "link").symlink_to(root / "a")
    (root / "a" / "link.png").symlink_to(root / "a" / "b" / "1.png")
    (tmp_path / "other").symlink_to(root)
    inside = ["a/b/1.png", "a/b/none.png", "link/b/1.png", "a/link.png", "a//b/./1.png", "a/b/../2.png", "none/x.png"]
    inside += [str(root / "a" / "2.png"), str(tmp_path / "other" / "a" / "2.png"), "a/" * 3000 + "x.png"]
    for folder in (root, tmp_path / "other"):
        assert resolve_paths(folder, inside * 2) == [str(path_under(folder, path)) for path in inside] * 2

    (root / "out").symlink_to(outside)
    (root / "3.png").symlink_to(outside / "3.png")
    for path in ("out/3.png", "3.png", "../outside/3.png", "a/../../outside/3.png", str(outside / "3.png"), "out/x/y"):
        with pytest.raises(ValueError) as error:
            resolve_paths(root, ["a/2.png", path])
        name = path.rpartition("/")[2]
        assert str(error.value) == f"{name}: the path leaves the image folder; name the folder that holds the images."
