"""Files are written whole or not at all."""

import pytest

from hf_vla.utils.files import atomic_write


def test_a_file_is_written_with_its_folders(tmp_path):
    with atomic_write(tmp_path / "a" / "b.png") as partial:
        assert partial.suffix == ".png" and not (tmp_path / "a" / "b.png").exists()
        partial.write_bytes(b"whole")
    assert (tmp_path / "a" / "b.png").read_bytes() == b"whole" and len(list((tmp_path / "a").iterdir())) == 1


def test_the_old_file_stays_where_writing_fails(tmp_path):
    file = tmp_path / "b.txt"
    file.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(file) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_nothing_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "b.txt"):
        pass
