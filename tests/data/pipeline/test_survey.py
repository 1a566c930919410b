import dataclasses
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hrnet_jax.data.pipeline.survey import Team, survey
from hrnet_jax.data.sources.files import Files
from hrnet_jax.data.sources.source import spread_indices
from hrnet_jax.runtime import storage

LABEL = np.array([[3, 3, 3, 5], [0, 255, 5, 3]], np.uint8)
IDS = [[0, 1], [3, 4], [5, 2], [255, 1]]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def reads(monkeypatch):
    """The label files that are decoded."""
    found = []
    label = Files.label
    monkeypatch.setattr(
        Files, "label", lambda self, i: found.append(self.label_paths[i]) or label(self, i)
    )
    return found


def test_headers_and_ids_by_hand(make_source):
    (facts,) = survey(make_source([(2, 4)], label=LABEL), progress=False)
    assert (facts.image.kind, facts.image.size) == ("rgb", (2, 4))
    assert (facts.label.kind, facts.label.bits) == ("gray", 8)
    assert facts.ids.tolist() == IDS


def test_only_new_and_changed_files_are_read_again(make_source, reads):
    source = make_source([(2, 4)] * 5, label=LABEL)
    survey(source.take([0, 1, 2]), progress=False)
    assert sorted(reads) == sorted(source.label_paths[:3])
    reads.clear()
    Image.fromarray(np.full((2, 4), 7, np.uint8)).save(source.label_paths[1])
    os.utime(source.label_paths[1], ns=(1, 1))
    facts = survey(source, progress=False)
    assert sorted(reads) == sorted(source.label_paths[k] for k in (1, 3, 4))
    assert [f.ids.tolist() for f in facts] == [IDS, [[7, 8]], IDS, IDS, IDS]
    reads.clear()
    again = survey(source, progress=False)
    assert not reads
    assert [f.image for f in again] == [f.image for f in facts]
    assert len(list(storage.user_cache().iterdir())) == 1  # one file for the folder, none left over


def test_the_same_file_means_other_ids_with_another_class_list(make_source, reads):
    source = make_source([(2, 4)], label=LABEL)
    classes = dataclasses.replace(source.classes, label_ids=(3, 5, 300), ignore_ids=(0,))
    files = Files(source.image_paths, source.label_paths, classes)
    wide = dataclasses.replace(source, classes=classes, records=files)
    assert survey(source, progress=False)[0].ids.tolist() == IDS
    # One of its ids does not fit into a byte, so labels are read as train ids.
    assert survey(wide, progress=False)[0].ids.tolist() == [[0, 4], [1, 2], [255, 2]]
    assert len(reads) == 2


def test_opaque_images_are_looked_through_once(make_source, monkeypatch):
    source = make_source([(2, 4)] * 2, label=LABEL)
    Image.fromarray(np.full((2, 4, 4), 255, np.uint8)).save(source.image_paths[1])
    opened, read = [], Files.open
    monkeypatch.setattr(Files, "open", lambda self, i: opened.append(i) or read(self, i))
    for _ in range(2):
        facts = survey(source, progress=False)
        assert (facts[1].image.kind, facts[1].image.alpha) == ("rgba", False)
    assert opened == [1]
    Image.fromarray(np.full((2, 4, 4), 99, np.uint8)).save(source.image_paths[1])
    with pytest.raises(ValueError, match=r"image001\.png.* transparent"):
        survey(source, progress=False)


def test_a_part_of_the_labels(make_source, reads):
    source = make_source([(2, 4)] * 10, label=LABEL)
    facts = survey(source, max_labels=3, progress=False)
    assert [k for k, f in enumerate(facts) if f.ids is not None] == [0, 3, 6]
    assert len(reads) == 3
    assert all(f.image for f in facts)  # all headers
    assert list(spread_indices(4, 0)) == list(spread_indices(4, 9)) == [0, 1, 2, 3]


def test_what_was_counted_before_an_error_is_kept(make_source, reads):
    source = make_source([(2, 4)] * 30, label=LABEL)
    data = Path(source.label_paths[29]).read_bytes()
    Path(source.label_paths[29]).write_bytes(data[:45])
    with pytest.raises(ValueError, match=r"label029\.png is damaged"):
        survey(source, progress=False)
    reads.clear()
    Path(source.label_paths[29]).write_bytes(data)
    survey(source, progress=False)
    assert reads == [source.label_paths[29]]


def test_a_damaged_cache_is_made_again(make_source, caplog):
    source = make_source([(2, 4)], label=LABEL)
    survey(source, progress=False)
    (kept,) = storage.user_cache().iterdir()
    kept.write_bytes(kept.read_bytes()[:50])
    assert survey(source, progress=False)[0].ids.tolist() == IDS
    assert "is damaged and is made again" in caplog.text
    caplog.clear()
    assert survey(source, progress=False)[0].ids.tolist() == IDS
    assert not caplog.records


def test_a_cache_that_cannot_be_written_does_not_stop_the_run(make_source, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert survey(make_source([(2, 4)], label=LABEL), progress=False)[0].ids.tolist() == IDS
    assert "not kept for the next run" in caplog.text


def teams(count):
    """The processes of a job, as threads."""
    barrier, values = threading.Barrier(count), [None] * count

    def gather_of(process):
        def gather(value):
            values[process] = value
            barrier.wait(timeout=20)
            found = list(values)
            barrier.wait(timeout=20)
            return found

        return gather

    return [Team(k, count, gather_of(k)) for k in range(count)]


def in_threads(function, count):
    results = [None] * count

    def call(team):
        try:
            results[team.process] = function(team)
        except ValueError as error:
            results[team.process] = error

    threads = [threading.Thread(target=call, args=(t,), name=str(t.process)) for t in teams(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_processes_share_the_work(make_source, reads):
    source = make_source([(2, 4)] * 7, label=LABEL)
    for facts in in_threads(lambda team: survey(source, progress=False, team=team), 3):
        assert [f.ids.tolist() for f in facts] == [IDS] * 7
    assert sorted(reads) == sorted(source.label_paths)
    reads.clear()
    survey(source, progress=False)
    assert not reads


def test_processes_with_other_caches_work_alone(make_source, reads, tmp_path, monkeypatch):
    source = make_source([(2, 4)] * 4, label=LABEL)
    survey(source.take([0]), progress=False)
    reads.clear()
    folders = {"0": storage.user_cache(), "1": tmp_path / "of another machine"}
    monkeypatch.setattr(storage, "user_cache", lambda: folders[threading.current_thread().name])
    for facts in in_threads(lambda team: survey(source, progress=False, team=team), 2):
        assert [f.ids.tolist() for f in facts] == [IDS] * 4
    assert len(reads) == 3 + 4
    (kept,) = folders["1"].iterdir()
    kept.unlink()  # now process 0 alone knows everything
    for facts in in_threads(lambda team: survey(source, progress=False, team=team), 2):
        assert [f.ids.tolist() for f in facts] == [IDS] * 4
    assert len(reads) == 3 + 4 + 4
    assert kept.exists()


def test_an_error_of_one_process_ends_all(make_source):
    source = make_source([(2, 4)] * 4, label=LABEL)
    Path(source.label_paths[2]).write_bytes(b"")
    errors = in_threads(lambda team: survey(source, progress=False, team=team), 2)
    assert [str(e) for e in errors] == [f"{source.label_paths[2]} is empty (0 bytes)"] * 2
