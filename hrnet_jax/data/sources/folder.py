"""Any folder of images and labels, with a class file that says what the labels mean.

    root/images/SPLIT/**/NAME.{png,jpg,jpeg,webp,tif,tiff,bmp,ppm}
    root/labels/SPLIT/**/NAME.png               same relative path
    root/classes.json

is the layout unless the class file says another one. Each folder in root/images is a split. A split
without a folder under root/labels has no labels and can be predicted only.
"""

import os

from hrnet_jax.data.sources import class_file as class_files
from hrnet_jax.data.sources import layout as layouts
from hrnet_jax.data.sources.source import Source
from hrnet_jax.runtime import storage


def open_folder(root: str | os.PathLike, split: str, class_file: str | os.PathLike = "") -> Source:
    """The images of `split` with their labels.

    Args:
        root: the dataset's folder.
        split: by default the name of a folder in root/images.
        class_file: instead of root/classes.json.

    Raises:
        FileNotFoundError: if the class file, the images or a label are not there.
        ValueError: if the class file is invalid, or two images have the same name.
    """
    root = storage.path(root)
    classes, layout = class_files.read(class_file or root / "classes.json")
    return layouts.open_split("folder", root, split, classes, layout)
