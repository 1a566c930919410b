"""Damage and strange contents are found before anything is restored."""

import json

import pytest
from etils import epath
from states import METADATA, flip_bit, newest_arrays, write_steps

from hrnet_jax.checkpoints import manifest
from hrnet_jax.checkpoints.load import load_checkpoint


def test_every_byte_of_the_arrays_counts(tmp_path):
    write_steps(tmp_path, {3: None})
    folder = epath.Path(tmp_path / "checkpoints" / "3")
    assert not manifest.find_damage(folder)
    file = newest_arrays(tmp_path)
    for place in range(0, file.stat().st_size, 7):
        flip_bit(file, place)
        assert "checksum" in manifest.find_damage(folder), place
        flip_bit(file, place)
    assert not manifest.find_damage(folder)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[]",
        "{}",
        json.dumps(METADATA | {"model": {"variant": ["w18"]}}),
        json.dumps(METADATA | {"model": {"__class__": "os.system"}}),
        json.dumps(METADATA | {"model": "w18"}),
    ],
    ids=["deep", "list", "empty", "type", "key", "text"],
)
def test_metadata_of_strangers(tmp_path, text):
    """With a manifest to match: whoever can write the folder can write that, too."""
    write_steps(tmp_path, {3: None})
    folder = epath.Path(tmp_path / "checkpoints" / "3")
    (folder / "metadata" / "metadata").write_text(text)
    files = {n: [size, manifest.checksum(f)] for n, f, size in manifest.step_files(folder)}
    contents = manifest.read_manifest(folder) | {"files": files}
    manifest.write_manifest(folder, contents)
    with pytest.raises(ValueError, match=r"checkpoint .*/3"):
        load_checkpoint(folder)


def test_links_are_not_followed(tmp_path):
    write_steps(tmp_path, {3: None})
    (tmp_path / "checkpoints" / "3" / "up").symlink_to(tmp_path)
    (tmp_path / "checkpoints" / "3" / "root").symlink_to("/")
    assert load_checkpoint(tmp_path).step == 3
    file = newest_arrays(tmp_path)
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="damaged"):
        load_checkpoint(tmp_path)


def test_nothing_is_read_outside_the_folder(tmp_path):
    write_steps(tmp_path, {3: None})
    folder = epath.Path(tmp_path / "checkpoints" / "3")
    contents = manifest.read_manifest(folder)
    contents["files"]["../../../../dev/zero"] = [0, "00000000"]
    manifest.write_manifest(folder, contents)
    with pytest.raises(ValueError, match="dev/zero is missing"):
        load_checkpoint(folder)
