"""Format, size and orientation of an image file from its header, before anything is decoded.

A small file can decode to gigabytes, a JPEG may be named .png, and a palette PNG holds indices that
decoders turn into colors. The header shows all of this, and takes some kilobytes to read.
"""

from hrnet_jax.data.images.containers import Bytes, Header, InFile, InMemory, parse

__all__ = [
    "IMAGE_SUFFIXES",
    "LABEL_FORMATS",
    "MAX_PIXELS",
    "Header",
    "check_image_header",
    "check_label_header",
    "check_pair",
    "check_sizes",
    "parse_header",
    "read_header",
]

# Files with these names, in any case, are images in folders; what they hold decides how they are
# read.
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Of labels; they keep every value.
LABEL_FORMATS = ("png", "tiff", "bmp")
# 67 Mpixels: four times the largest street images in use, 200 MB as RGB.
MAX_PIXELS = 2**26
_KINDS = ("gray", "rgb", "palette", "gray+alpha", "rgba", "cmyk")
# What a file is that is no image, by its first bytes: (position, bytes, what it is).
_OTHERS = (
    (0, b"GIF8", "a GIF file: save it as PNG, or predict it as a video"),
    (4, b"ftyphei", "a HEIC file: save it as JPEG or PNG"),
    (4, b"ftypmif", "a HEIC file: save it as JPEG or PNG"),
    (4, b"ftypavif", "an AVIF file: save it as JPEG or PNG"),
    (0, b"version https://git-lfs", "a pointer of Git LFS: run git lfs pull"),
    (0, b"<!DOCTYPE html", "a web page: the download has failed"),
    (0, b"<html", "a web page: the download has failed"),
)


def parse_header(data: bytes, name: str) -> Header:
    """Reads the header of an encoded image.

    Args:
        data: the file's bytes.
        name: what errors call it.

    Raises:
        ValueError: naming the file, if it is empty, of no known format, or larger than MAX_PIXELS.
    """
    return _checked(InMemory(data), name)


def read_header(path: str) -> Header:
    """`parse_header` of a file, reading no more of it than needed.

    Raises:
        FileNotFoundError, ValueError: naming the file.
    """
    return _checked(InFile(path), path)


def _checked(file: Bytes, name: str) -> Header:
    first = file.read(0, 32)
    if not first:
        raise ValueError(f"{name} is empty (0 bytes)")
    try:
        header = parse(file)
    except ValueError as error:
        raise ValueError(f"{name} is a {error}") from error
    if header is None:
        found = [what for start, sign, what in _OTHERS if first[start:].startswith(sign)]
        raise ValueError(
            f"{name} is {found[0]}"
            if found
            else f"{name} is no PNG, JPEG, WebP, TIFF, BMP or PPM file (begins with {first[:8]!r})"
        )
    if header.height < 1 or header.width < 1:
        raise ValueError(f"{name} has no pixels: {header.height}x{header.width}")
    if header.height * header.width > MAX_PIXELS:
        raise ValueError(
            f"{name} is {header.height}x{header.width} by its header: more than {MAX_PIXELS} "
            "pixels are not decoded; cut it into parts, or make it smaller"
        )
    return header


def check_image_header(header: Header, name: str, image_range: tuple | None = None) -> None:
    """Rejects images whose meaning is not clear.

    Args:
        header: of the file.
        name: of the file.
        image_range: `Classes.image_range`.

    Raises:
        ValueError: naming the file and how to correct it.
    """
    if header.pages > 1:
        raise ValueError(
            f"{name} holds several pages or frames: save the one that is meant as a file of its own"
        )
    if header.kind not in _KINDS:
        raise ValueError(
            f"{name} holds {header.kind}, which is not gray or RGB: save the three bands to be "
            "used as RGB, or one band as gray"
        )
    if header.bits > 8 and (header.format == "jpeg" or header.kind == "cmyk"):
        raise ValueError(
            f"{name} has {header.bits} bits per channel, which is not read from a "
            f"{header.kind} {header.format.upper()} file: save it as 8-bit RGB"
        )
    if header.bits > 8 and image_range is None:
        raise ValueError(
            f"{name} has {header.bits} bits per channel: write into the class file which values "
            'become 0 and 255, e.g. "image_range": [0, 4095], or save it with 8 bits'
        )


def check_pair(
    image: Header,
    label: Header,
    image_name: str,
    label_name: str,
    image_range: tuple | None = None,
) -> None:
    """Checks the headers of an image and its label, and that both have the same size.

    Raises:
        ValueError: naming the file and how to correct it.
    """
    check_image_header(image, image_name, image_range)
    check_label_header(label, label_name)
    check_sizes(image, label, image_name, label_name)


def check_sizes(image: Header, label: Header, image_name: str, label_name: str) -> None:
    """Raises ValueError if an image and its label, both upright, differ in size."""
    if image.size == label.size:
        return
    hint = ""
    if image.orientation != label.orientation:
        turned, number = ("image", image) if image.orientation != 1 else ("label", label)
        hint = (
            f". The {turned} has the orientation mark {number.orientation} and is turned upright; "
            "if both fit as stored, remove the mark (exiftool -Orientation= FILE)"
        )
    raise ValueError(
        f"label {label_name} is {label.size[0]}x{label.size[1]} but its image {image_name} is "
        f"{image.size[0]}x{image.size[1]}{hint}"
    )


def check_label_header(header: Header, name: str) -> None:
    """Rejects label files whose format cannot hold class ids.

    Raises:
        ValueError: naming the file and how to correct it.
    """
    if header.format not in LABEL_FORMATS:
        raise ValueError(
            f"label {name} is a {header.format.upper()} file, which may not keep values as they "
            f"are: labels must be {', '.join(LABEL_FORMATS)}"
        )
    if header.pages > 1:
        raise ValueError(f"label {name} holds several pages: save the one that is meant")
