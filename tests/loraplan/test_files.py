"""Files are written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from loraplan.errors import BadInputError
from loraplan.files import parse_yaml, read_yaml, require_writable, sha256, write_text


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_text(path, "old")
    write_text(path, "neu \N{SNOWMAN}\n")
    assert path.read_bytes() == "neu \N{SNOWMAN}\n".encode()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("odd")])
def test_a_failure_midway_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    path = tmp_path / "plan.json"
    write_text(path, "old")

    def fail(self: Path, target: Path) -> None:
        assert self.read_text() == "new"
        assert target.read_text() == "old"
        raise failure

    monkeypatch.setattr(Path, "replace", fail)
    expected = BadInputError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected, match="No space left on device" if isinstance(failure, OSError) else None):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_text_that_cannot_be_encoded_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("umask")
def test_a_file_is_as_readable_as_any_other_new_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_text(path, "text")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.umask(0o027) == 0o027  # what the process had is what it has


@pytest.mark.parametrize("write", [lambda path: write_text(path, "text"), require_writable], ids=["write", "check"])
def test_places_that_cannot_be_written_are_named(tmp_path: Path, write: object) -> None:
    assert callable(write)
    file = tmp_path / "file"
    file.write_text("mine")
    for path, complaint in [
        (tmp_path / "nowhere" / "plan.json", f"cannot write .*: there is no folder {tmp_path / 'nowhere'}$"),
        (file / "plan.json", f"there is no folder {file}$"),
        (tmp_path, "it is not a file$"),
        (Path("/dev/null"), "cannot write /dev/null: it is not a file$"),  # root could rename over it
    ]:
        with pytest.raises(BadInputError, match=complaint):
            write(path)
    assert list(tmp_path.iterdir()) == [file]
    assert file.read_text() == "mine"
    assert Path("/dev/null").is_char_device()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(BadInputError, match="is read-only"):
        write_text(tmp_path / "plan.json", "text")


def test_a_digest_is_that_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(b"a,b\n" * 100_000)
    assert sha256(path) == hashlib.sha256(b"a,b\n" * 100_000).hexdigest()
    with pytest.raises(BadInputError, match=f"^{tmp_path / 'gone'}: No such file"):
        sha256(tmp_path / "gone")
    with pytest.raises(BadInputError, match="Is a directory"):
        sha256(tmp_path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: 1\nb: 2\na: 3\n", "key 'a' is given twice, on line 1 and on line 3"),
        ("b:\n- {x: 1, 'x': 2}\n", "key 'x' is given twice, on line 2 and on line 2"),
        ("2023-02-30", "not valid YAML: day "),
        ("{" * 5000, "not valid YAML: maximum recursion depth exceeded"),
        ("a: !!python/name:os.system ''", "not valid YAML: could not determine a constructor"),
    ],
)
def test_wrong_yaml_is_one_line(text: str, complaint: str) -> None:
    with pytest.raises(BadInputError) as error:
        parse_yaml(text, "config x")
    assert str(error.value).startswith(f"config x: {complaint}")
    assert "\n" not in str(error.value)


def test_a_key_of_its_own_may_override_a_merged_one(tmp_path: Path) -> None:
    path = tmp_path / "merged.yaml"
    # Merged mappings that have no key in common: versions of PyYAML differ in which of two wins.
    path.write_text("base: &base {x: 1, y: 2}\nown: {<<: *base, x: 3}\nother: {<<: [*base, {z: 5}], y: 4}\n")
    assert read_yaml(path, "config")["own"] == {"x": 3, "y": 2}
    assert read_yaml(path, "config")["other"] == {"x": 1, "y": 4, "z": 5}
