"""Ready-made class maps between datasets of streets, for `config.data.mix`.

Each table lists, for a class of the target, the classes of the other dataset that become it; the
key "" lists those that are ignored. Rules: what Cityscapes ignores (parking, guard rails, bridges,
backs of signs) stays ignored; a class that holds several of the target's becomes the one that is
most of it, or is ignored if none is. KITTI, KITTI-360, BDD100K, ACDC and Dark Zurich have the
classes of Cityscapes, by name, so its tables are theirs.

Sources: the class definitions of Cityscapes (https://www.cityscapes-dataset.com/dataset-overview),
Mapillary Vistas (arXiv 1802.05768 and config_v1.2.json), IDD (its csTrainId and level3Id), and the
grouping of CamVid's 32 classes into 11 of SegNet (arXiv 1511.00561).
"""

from collections.abc import Mapping

from hrnet_jax.data.sources import camvid, cityscapes, public

# What both versions of Vistas call alike, for Cityscapes.
_VISTAS_TO_CITYSCAPES: Mapping[str, str] = {
    "vegetation": "Vegetation",
    "terrain": "Terrain; Sand",
    "sky": "Sky",
    "person": "Person",
    "rider": "Bicyclist; Motorcyclist; Other Rider",
    "car": "Car",
    "truck": "Truck",
    "bus": "Bus",
    "train": "On Rails",
    "motorcycle": "Motorcycle",
    "bicycle": "Bicycle",
}

# (from, to) -> {class of the target: classes of the other dataset, separated by "; "}
_TABLES: Mapping[tuple[str, str], Mapping[str, str]] = {
    ("mapillary_vistas_v1.2", "cityscapes"): {
        "road": "Road; Lane Marking - General; Lane Marking - Crosswalk; Crosswalk - Plain; "
        "Bike Lane; Service Lane; Pothole",
        "sidewalk": "Sidewalk; Pedestrian Area; Curb; Curb Cut",
        "building": "Building",
        "wall": "Wall",
        "fence": "Fence",
        "pole": "Pole; Utility Pole",
        "traffic light": "Traffic Light",
        "traffic sign": "Traffic Sign (Front)",
        **_VISTAS_TO_CITYSCAPES,
        "": "Bird; Ground Animal; Guard Rail; Barrier; Parking; Rail Track; Bridge; Tunnel; "
        "Mountain; Snow; Water; Banner; Bench; Bike Rack; Billboard; Catch Basin; CCTV Camera; "
        "Fire Hydrant; Junction Box; Mailbox; Manhole; Phone Booth; Street Light; "
        "Traffic Sign Frame; Traffic Sign (Back); Trash Can; Boat; Caravan; Other Vehicle; "
        "Trailer; Wheeled Slow; Car Mount; Ego Vehicle",
    },
    ("mapillary_vistas_v1.2", "idd"): {
        "road": "Road; Lane Marking - General; Lane Marking - Crosswalk; Crosswalk - Plain; "
        "Bike Lane; Service Lane; Pothole",
        "drivable fallback": "Parking",
        "sidewalk": "Sidewalk; Pedestrian Area",
        "non-drivable fallback": "Terrain; Sand; Rail Track",
        "person": "Person; Ground Animal",
        "rider": "Bicyclist; Motorcyclist; Other Rider",
        "motorcycle": "Motorcycle",
        "bicycle": "Bicycle",
        "car": "Car",
        "truck": "Truck",
        "bus": "Bus",
        "vehicle fallback": "Caravan; Trailer; On Rails",
        "curb": "Curb; Curb Cut",
        "wall": "Wall",
        "fence": "Fence",
        "guard rail": "Guard Rail",
        "billboard": "Billboard",
        "traffic sign": "Traffic Sign (Front)",
        "traffic light": "Traffic Light",
        "pole": "Pole; Utility Pole",
        "building": "Building",
        "bridge": "Bridge; Tunnel",
        "vegetation": "Vegetation",
        "sky": "Sky",
        "": "Bird; Barrier; Mountain; Snow; Water; Banner; Bench; Bike Rack; Catch Basin; "
        "CCTV Camera; Fire Hydrant; Junction Box; Mailbox; Manhole; Phone Booth; Street Light; "
        "Traffic Sign Frame; Traffic Sign (Back); Trash Can; Boat; Other Vehicle; Wheeled Slow; "
        "Car Mount; Ego Vehicle",
    },
    ("mapillary_vistas_v1.2", "camvid"): {
        "sky": "Sky",
        "building": "Building; Wall; Bridge; Tunnel",
        "pole": "Pole; Utility Pole",
        "road": "Road; Lane Marking - General; Lane Marking - Crosswalk; Crosswalk - Plain; "
        "Bike Lane; Service Lane; Pothole",
        "pavement": "Sidewalk; Pedestrian Area; Curb; Curb Cut",
        "tree": "Vegetation",
        "sign symbol": "Traffic Light; Traffic Sign (Front)",
        "fence": "Fence",
        "car": "Car; Truck; Bus; On Rails; Caravan; Trailer; Other Vehicle",
        "pedestrian": "Person",
        "bicyclist": "Bicyclist; Motorcyclist; Bicycle; Motorcycle",
        "": "Bird; Ground Animal; Guard Rail; Barrier; Parking; Rail Track; Other Rider; Mountain; "
        "Sand; Snow; Terrain; Water; Banner; Bench; Bike Rack; Billboard; Catch Basin; "
        "CCTV Camera; Fire Hydrant; Junction Box; Mailbox; Manhole; Phone Booth; Street Light; "
        "Traffic Sign Frame; Traffic Sign (Back); Trash Can; Boat; Wheeled Slow; Car Mount; "
        "Ego Vehicle",
    },
    ("mapillary_vistas_v2.0", "cityscapes"): {
        "road": "Road; Bike Lane; Crosswalk - Plain; Service Lane; Pothole; "
        "Lane Marking - Dashed Line; Lane Marking - Straight Line; Lane Marking - Zigzag Line; "
        "Lane Marking - Arrow (Left); Lane Marking - Arrow (Other); Lane Marking - Arrow (Right); "
        "Lane Marking - Arrow (Split Left or Straight); "
        "Lane Marking - Arrow (Split Right or Straight); Lane Marking - Arrow (Straight); "
        "Lane Marking - Crosswalk; Lane Marking - Give Way (Row); "
        "Lane Marking - Give Way (Single); Lane Marking - Hatched (Chevron); "
        "Lane Marking - Hatched (Diagonal); Lane Marking - Other; Lane Marking - Stop Line; "
        "Lane Marking - Symbol (Bicycle); Lane Marking - Symbol (Other); Lane Marking - Text; "
        "Lane Marking (only) - Dashed Line; Lane Marking (only) - Crosswalk; "
        "Lane Marking (only) - Other; Lane Marking (only) - Test",
        "sidewalk": "Sidewalk; Pedestrian Area; Curb; Curb Cut; Traffic Island",
        "building": "Building; Garage",
        "wall": "Wall",
        "fence": "Fence",
        "pole": "Pole; Utility Pole",
        "traffic light": "Traffic Light - General (Single); Traffic Light - Pedestrians; "
        "Traffic Light - General (Upright); Traffic Light - General (Horizontal); "
        "Traffic Light - Cyclists; Traffic Light - Other",
        "traffic sign": "Traffic Sign (Front); Traffic Sign - Direction (Front); "
        "Traffic Sign - Parking; Traffic Sign - Temporary (Front)",
        **_VISTAS_TO_CITYSCAPES,
        "": "Bird; Ground Animal; Concrete Block; Guard Rail; Barrier; Road Median; Road Side; "
        "Lane Separator; Temporary Barrier; Driveway; Parking; Parking Aisle; Rail Track; "
        "Road Shoulder; Bridge; Tunnel; Mountain; Snow; Water; Banner; Bench; Bike Rack; "
        "Catch Basin; CCTV Camera; Fire Hydrant; Junction Box; Mailbox; Manhole; Parking Meter; "
        "Phone Booth; Signage - Advertisement; Signage - Back; Signage - Information; "
        "Signage - Other; Signage - Store; Street Light; Traffic Sign Frame; Traffic Cone; "
        "Traffic Sign (Back); Traffic Sign - Direction (Back); Traffic Sign - Temporary (Back); "
        "Trash Can; Boat; Caravan; Other Vehicle; Trailer; Wheeled Slow; Water Valve; Car Mount; "
        "Dynamic; Ego Vehicle; Ground; Static",
    },
    ("idd", "cityscapes"): {
        "road": "road",
        "sidewalk": "sidewalk",
        "building": "building",
        "wall": "wall",
        "fence": "fence",
        "pole": "pole",
        "traffic light": "traffic light",
        "traffic sign": "traffic sign",
        "vegetation": "vegetation",
        "terrain": "non-drivable fallback",
        "sky": "sky",
        "person": "person",
        "rider": "rider",
        "car": "car",
        "truck": "truck",
        "bus": "bus",
        "motorcycle": "motorcycle",
        "bicycle": "bicycle",
        "": "drivable fallback; autorickshaw; vehicle fallback; curb; guard rail; billboard; "
        "obs-str-bar-fallback; bridge",
    },
    ("idd", "mapillary_vistas_v1.2"): {
        "Road": "road",
        "Sidewalk": "sidewalk",
        "Terrain": "non-drivable fallback",
        "Person": "person",
        "Motorcycle": "motorcycle",
        "Bicycle": "bicycle",
        "Car": "car",
        "Truck": "truck",
        "Bus": "bus",
        "Curb": "curb",
        "Wall": "wall",
        "Fence": "fence",
        "Guard Rail": "guard rail",
        "Billboard": "billboard",
        "Traffic Sign (Front)": "traffic sign",
        "Traffic Light": "traffic light",
        "Pole": "pole",
        "Building": "building",
        "Bridge": "bridge",
        "Vegetation": "vegetation",
        "Sky": "sky",
        "": "drivable fallback; rider; autorickshaw; vehicle fallback; obs-str-bar-fallback",
    },
    ("idd", "camvid"): {
        "sky": "sky",
        "building": "building; wall; bridge",
        "pole": "pole",
        "road": "road",
        "pavement": "sidewalk; curb",
        "tree": "vegetation",
        "sign symbol": "traffic sign; traffic light",
        "fence": "fence",
        "car": "car; truck; bus; autorickshaw; vehicle fallback",
        "pedestrian": "person",
        "bicyclist": "rider; motorcycle; bicycle",
        "": "drivable fallback; non-drivable fallback; guard rail; billboard; obs-str-bar-fallback",
    },
    ("camvid", "cityscapes"): {
        "road": "road",
        "sidewalk": "pavement",
        "building": "building",
        "fence": "fence",
        "pole": "pole",
        "traffic sign": "sign symbol",
        "vegetation": "tree",
        "sky": "sky",
        "person": "pedestrian",
        "car": "car",
        "": "bicyclist",
    },
    ("camvid", "mapillary_vistas_v1.2"): {
        "Road": "road",
        "Sidewalk": "pavement",
        "Building": "building",
        "Fence": "fence",
        "Pole": "pole",
        "Traffic Sign (Front)": "sign symbol",
        "Vegetation": "tree",
        "Sky": "sky",
        "Person": "pedestrian",
        "Car": "car",
        "": "bicyclist",
    },
    ("camvid", "idd"): {
        "road": "road",
        "sidewalk": "pavement",
        "building": "building",
        "fence": "fence",
        "pole": "pole",
        "traffic sign": "sign symbol",
        "vegetation": "tree",
        "sky": "sky",
        "person": "pedestrian",
        "car": "car",
        "": "bicyclist",
    },
    ("cityscapes", "mapillary_vistas_v1.2"): {
        "Road": "road",
        "Sidewalk": "sidewalk",
        "Building": "building",
        "Wall": "wall",
        "Fence": "fence",
        "Pole": "pole",
        "Traffic Light": "traffic light",
        "Traffic Sign (Front)": "traffic sign",
        "Vegetation": "vegetation",
        "Terrain": "terrain",
        "Sky": "sky",
        "Person": "person",
        "Car": "car",
        "Truck": "truck",
        "Bus": "bus",
        "On Rails": "train",
        "Motorcycle": "motorcycle",
        "Bicycle": "bicycle",
        "": "rider",
    },
    ("cityscapes", "idd"): {
        "road": "road",
        "sidewalk": "sidewalk",
        "non-drivable fallback": "terrain",
        "person": "person",
        "rider": "rider",
        "motorcycle": "motorcycle",
        "bicycle": "bicycle",
        "car": "car",
        "truck": "truck",
        "bus": "bus",
        "vehicle fallback": "train",
        "wall": "wall",
        "fence": "fence",
        "traffic sign": "traffic sign",
        "traffic light": "traffic light",
        "pole": "pole",
        "building": "building",
        "vegetation": "vegetation",
        "sky": "sky",
    },
    ("cityscapes", "camvid"): {
        "sky": "sky",
        "building": "building; wall",
        "pole": "pole",
        "road": "road",
        "pavement": "sidewalk",
        "tree": "vegetation",
        "sign symbol": "traffic sign; traffic light",
        "fence": "fence",
        "car": "car; truck; bus; train",
        "pedestrian": "person",
        "bicyclist": "rider; motorcycle; bicycle",
        "": "terrain",
    },
}


def pairs() -> tuple[tuple[str, str], ...]:
    """The pairs (from, to) of datasets with a table."""
    return tuple(_TABLES)


def class_map(source: str, target: str) -> dict[str, str]:
    """The table of a pair: {class of `source`: class of `target`, or "" to ignore it}."""
    table = _TABLES[source, target]
    return {name: new for new, names in table.items() for name in names.split("; ")}


def find(source: tuple[str, ...], target: tuple[str, ...]) -> dict[str, str] | None:
    """The map between two class lists, given by the names of their classes.

    Lists with the same names in another order need no table. None for equal lists, and where there
    is no ready-made map.
    """
    if source == target:
        return None
    if sorted(source) == sorted(target):
        return {name: name for name in source}
    for pair in _TABLES:
        if (names_of(pair[0]), names_of(pair[1])) == (source, target):
            return class_map(*pair)
    return None


def names_of(dataset: str) -> tuple[str, ...]:
    """The names of the classes of a dataset that has a table here."""
    own = {"cityscapes": cityscapes.CLASSES, "camvid": camvid.CLASSES}
    return own[dataset].names if dataset in own else public.read(dataset).classes.names
