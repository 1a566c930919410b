"""Fonts for class names in any script.

Pillow's own font has English letters only. For other ones the fonts of the system are searched for
one that has the glyphs, once per set of letters.
"""

import functools
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import ImageFont

logger = logging.getLogger(__name__)

_SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
# No font has a glyph for it: it is drawn as glyphs that are missing are.
_NO_CHARACTER = "\U0010ffff"


def find_font(text: str, size: int) -> ImageFont.FreeTypeFont:
    """A font that has the glyphs of the text: Pillow's, or else one of the system.

    If none has them all, the one with most of them; a warning says once which are missing.

    Args:
        text: what is drawn.
        size: of the letters, in pixels.
    """
    letters = (c for c in text if c.isprintable() and not c.isspace())
    return _font_of(frozenset(letters), size)


@functools.lru_cache(maxsize=256)
def _font_of(letters: frozenset[str], size: int) -> ImageFont.FreeTypeFont:
    own = ImageFont.load_default(size)
    if all(map(str.isascii, letters)) or not (missing := _missing(letters, own)):
        return own
    best, lacking = own, missing
    for path in _fonts_of_the_system():
        try:
            font = ImageFont.truetype(path, size)
        except OSError:  # damaged, or bitmaps of other sizes
            continue
        if len(now := _missing(letters, font)) < len(lacking):
            best, lacking = font, now
        if not lacking:
            return best
    _warn(lacking)
    return best


def _missing(letters: frozenset[str], font: ImageFont.FreeTypeFont) -> frozenset[str]:
    """The letters that the font draws as it draws a character that it does not have."""
    nothing = _drawn(font, _NO_CHARACTER)
    return frozenset(c for c in letters if _drawn(font, c) == nothing)


def _drawn(font: ImageFont.FreeTypeFont, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


@functools.cache
def _warn(missing: frozenset[str]) -> None:
    logger.warning(
        "no font of this system has the glyphs %s, so pictures show boxes in their place; install a"
        " font that has them, such as Noto (report.html uses the browser's fonts)",
        " ".join(sorted(missing)),
    )


@functools.cache
def _fonts_of_the_system() -> tuple[str, ...]:
    """Font files in the usual folders: plain ones without serifs first."""
    found = {str(path) for folder in _folders() for path in _below(folder)}
    styles = ("bold", "italic", "oblique", "light", "thin", "black", "condensed", "mono")

    def order(path: str) -> tuple[bool, bool, str]:
        name = os.path.basename(path).lower()
        return any(style in name for style in styles), "sans" not in name, path

    return tuple(sorted(found, key=order))


def _folders() -> list[Path]:
    home = Path.home()
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
    if sys.platform == "win32":
        return [Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts"]
    data = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    own = os.environ.get("XDG_DATA_HOME") or home / ".local/share"
    return [Path(own) / "fonts", home / ".fonts", *(Path(d) / "fonts" for d in data.split(":"))]


def _below(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, n) for n in names if n.lower().endswith(_SUFFIXES))
