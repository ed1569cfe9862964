import errno
from pathlib import Path

import pytest

from rlhf.writing import writing

FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="a device of Linux")
def test_a_refused_write_names_the_file() -> None:
    with pytest.raises(OSError, match=r"No space left on device: 'curve\.csv'") as caught, writing(Path("curve.csv")):
        FULL.write_text("x")
    assert caught.value.errno == errno.ENOSPC


def test_the_text_of_a_library_is_understood() -> None:
    with pytest.raises(OSError, match="No space left on device: 'model'"), writing(Path("model")):
        raise RuntimeError("I/O error: No space left on device (os error 28)")


def test_other_errors_pass_as_they_are() -> None:
    with pytest.raises(ValueError, match=r"^x$"), writing(Path("model")):
        raise ValueError("x")
    with pytest.raises(FileNotFoundError) as caught, writing(Path("model")):
        Path("nowhere/at all").read_text()
    assert caught.value.filename == "nowhere/at all"


def test_the_place_through_which_a_file_goes_is_not_what_is_told() -> None:
    with pytest.raises(OSError, match=r"Is a directory: 'model'"), writing(Path("model"), through=Path(".model.1-x")):
        raise IsADirectoryError(errno.EISDIR, "Is a directory", ".model.1-x/config.json")
    with pytest.raises(OSError, match=r"'other'"), writing(Path("model"), through=Path(".model.1-x")):
        raise IsADirectoryError(errno.EISDIR, "Is a directory", "other")
