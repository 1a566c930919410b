"""Every ready-made map names each class of one dataset once, and only classes of the other."""

import pytest

from hrnet_jax.data.sources import class_maps, public


@pytest.mark.parametrize("pair", class_maps.pairs(), ids=" to ".join)
def test_complete(pair):
    source, target = map(class_maps.names_of, pair)
    names = [n for text in class_maps._TABLES[pair].values() for n in text.split("; ")]
    assert sorted(names) == sorted(source)
    found = class_maps.class_map(*pair)
    assert set(found.values()) <= {*target, ""}
    # What has the same name is the same.
    assert all(found[name] == name for name in set(source) & set(target))


def test_all_pairs_of_street_datasets():
    names = ("cityscapes", "mapillary_vistas_v1.2", "idd", "camvid")
    expected = {(a, b) for a in names for b in names if a != b}
    assert expected <= set(class_maps.pairs())


def test_found_by_the_class_lists():
    bdd = public.read("bdd100k").classes.names
    camvid = class_maps.names_of("camvid")
    found = class_maps.find(camvid, bdd)
    assert found["pavement"] == "sidewalk"
    assert found["bicyclist"] == ""
    assert class_maps.find(bdd, camvid)["truck"] == "car"
    assert class_maps.find(camvid, ("a", "b")) is None
    assert class_maps.find(("a", "b"), ("b", "a")) == {"a": "a", "b": "b"}
    assert class_maps.find(("a", "b"), ("a", "b")) is None
