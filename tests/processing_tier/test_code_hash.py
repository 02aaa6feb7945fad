import shutil

from processing_tier.code_hash import FOLDER, hash_code


def test_the_hash_tells_changed_code_and_nothing_else(tmp_path):
    for file in FOLDER.glob("*_tier.py"):
        shutil.copy(file, tmp_path)
    assert hash_code([tmp_path]) == hash_code()  # wherever the package lies
    (tmp_path / "records.py").write_text("# makes no pixel")
    assert hash_code([tmp_path]) == hash_code()
    with open(tmp_path / "dicom_tier.py", "a") as file:
        file.write("#")
    assert hash_code([tmp_path]) != hash_code()
    shutil.copy(FOLDER / "dicom_tier.py", tmp_path)
    (tmp_path / "tiff_tier.py").rename(tmp_path / "tif_tier.py")
    assert hash_code([tmp_path]) != hash_code()
