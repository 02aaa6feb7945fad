import pytest

from evaluation_tier.output.links import leads_outside, refuse_links_outside


def test_links_that_lead_outside_are_named(tmp_path):
    folder = tmp_path / "run"
    (folder / "inner").mkdir(parents=True)
    (folder / "model.txt").write_text("a")
    (tmp_path / "secret.txt").write_text("b")
    (folder / "same").symlink_to(folder / "model.txt")
    (folder / "inner" / "up").symlink_to("../model.txt")
    refuse_links_outside(folder)
    assert not leads_outside(folder / "inner" / "up", folder)
    for link in (folder / "inner" / "out.txt", folder / "whole"):
        link.symlink_to(tmp_path / "secret.txt" if link.suffix else tmp_path)
        with pytest.raises(ValueError, match=f"{link.name}' is a link to something outside the folder"):
            refuse_links_outside(folder)
        link.unlink()
