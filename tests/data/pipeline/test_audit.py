import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hrnet_jax.data import Classes, open_source
from hrnet_jax.data.pipeline.audit import audit_labels
from hrnet_jax.data.sources.files import Files


def audit(source, **options):
    return audit_labels(source, progress=False, **options)


def test_counts_by_hand(make_source):
    label = np.array([[3, 3, 3, 5], [0, 255, 5, 3]], np.uint8)
    found = audit(make_source([(2, 4), (2, 4)], label=label))
    assert found.counts.tolist() == [8, 4, 0]
    assert found.counts.dtype == np.int64
    assert found.images.tolist() == [2, 2, 0]
    assert found.ignored == 4
    assert found.fractions.tolist() == [8 / 12, 4 / 12, 0]
    assert found.absent == ("sky",)
    assert (found.num_counted, found.num_images) == (2, 2)
    table = found.table()
    assert "labels of all 2 images" in table
    assert "66.667%" in table
    assert "ignored: 25.000%" in table
    assert "without a single pixel: sky" in table


def test_some_labels_only(make_source):
    found = audit(make_source([(2, 4)] * 10), max_images=3)
    assert found.num_counted == 3
    assert (found.counts.sum(), "3 of 10" in found.table()) == (24, True)
    with pytest.raises(ValueError, match="max_images"):
        audit(make_source([(2, 4)]), max_images=-1)


def test_real_layout(streets):
    found = audit(open_source("cityscapes", root=streets, split="train"))
    assert found.counts.sum() + found.ignored == 7 * 64 * 128
    assert found.names[int(found.counts.argmax())] in ("road", "building")


def test_unknown_ids_are_named_with_examples(make_source):
    source = make_source([(2, 4)] * 5)
    for k in (1, 3):
        Image.fromarray(np.full((2, 4), 44, np.uint8)).save(source.label_paths[k])
    pattern = r"id 44: 16 pixels in 2 images, e.g. .*label001.png.*label003.png.*known: \[3, 5, 7\]"
    with pytest.raises(ValueError, match=f"(?s){pattern}"):
        audit(source)


def test_the_likely_reason_for_unknown_ids(make_source):
    classes = Classes(("ground", "tree", "sky"), ((90, 60, 30),) * 3, label_ids=(0, 1, 2))

    def message(label):
        source = make_source([label.shape], label=label.astype(np.uint8), classes=classes)
        with pytest.raises(ValueError, match="does not know") as caught:
            audit(source)
        return str(caught.value).splitlines()

    *_, last = message(np.array([[0, 1, 2, 3]]))
    assert 'The labels seem to count from 1: "label_ids": [1, ..., 3]' in last
    *_, last = message(np.array([[0, 128, 255]]))
    assert '"label_ids": [0, 128, 255] in the class file' in last
    *lines, last = message(np.arange(30)[None])
    assert "resized with interpolation" in last
    assert len(lines) == 7  # five ids with examples
    assert lines[-1] == f"  and the ids {[*range(8, 30)]}"


def test_labels_given_as_images(make_source):
    source = make_source([(2, 4)] * 2)
    same = dataclasses.replace(source, records=Files(source.label_paths, source.label_paths))
    with pytest.raises(ValueError, match=r"are the same files, e\.g\. .*label000\.png"):
        audit(same)
    Path(source.image_paths[0]).write_bytes(Path(source.label_paths[0]).read_bytes())
    assert audit(source).num_counted == 2  # one of them only


def test_all_ignored(make_source):
    source = make_source([(2, 4)], label=np.full((2, 4), 255, np.uint8))
    with pytest.raises(ValueError, match=r"all 8 pixels in 1 labels .* Ids found: \[255\]"):
        audit(source)


def test_sizes_are_compared_for_all_files(make_source):
    source = make_source([(2, 4)] * 10)
    Image.fromarray(np.full((4, 2), 3, np.uint8)).save(source.label_paths[9])
    with pytest.raises(ValueError, match=r"label009.png is 4x2 but its image .* is 2x4"):
        audit(source, max_images=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"GIF89a", "a GIF file"), (b"\x89PNG\r\n\x1a\n", "damaged PNG")],
)
def test_bad_headers_are_found_without_counting(make_source, content, message):
    source = make_source([(2, 4)] * 10)
    for paths in (source.image_paths, source.label_paths):
        data = Path(paths[8]).read_bytes()
        Path(paths[8]).write_bytes(content)
        with pytest.raises(ValueError, match=f"{paths[8]}.*{message}"):
            audit(source, max_images=1)
        Path(paths[8]).write_bytes(data)


def test_damaged_label(make_source):
    source = make_source([(40, 40)])
    data = Path(source.label_paths[0]).read_bytes()
    Path(source.label_paths[0]).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"label000.png is damaged"):
        audit(source)


def test_missing_file_and_missing_labels(make_source):
    source = make_source([(2, 4)] * 2)
    with pytest.raises(ValueError, match="has no labels to audit"):
        audit(dataclasses.replace(source, records=Files(source.image_paths)))
    Path(source.label_paths[1]).unlink()
    with pytest.raises(FileNotFoundError, match=r"label001.png"):
        audit(source)
