"""Draws docs/architecture.svg: one variant of the network, and the table of all variants.

python docs/architecture_picture.py

Everything in it comes from `hrnet_jax.models.variants`, so the picture follows the code; a test
compares the file.
"""

import pathlib

from hrnet_jax.models.variants import VARIANTS, Variant

FILE = pathlib.Path(__file__).resolve().parent / "architecture.svg"
SHOWN = "w48"
CLASSES = 19

# Of the branches at 1/4, 1/8, 1/16 and 1/32: fill, height of the boxes, center of the row.
COLORS = ("#dbeafe", "#bfdbfe", "#93c5fd", "#60a5fa")
HEIGHTS = (52, 44, 36, 28)
ROWS = (104, 182, 252, 314)
BOX, GAP = 44, 52  # width of a module, and between modules, where branches exchange
SAME, DOWN, UP = "#475569", "#b45309", "#15803d"
TABLE_TOP, LINE = 412, 20
COLUMNS = (24, 150, 240, 410, 650, 850)
HEADINGS = (
    "variant", "width", "stage 1", "modules of stages 2, 3, 4", "blocks per module",
    "channels of the branches",
)  # fmt: skip


def text(x: float, y: float, content: str, *, anchor: str = "middle", style: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{style}>{content}</text>'


def box(x: float, k: int, width: float, label: str) -> str:
    """A box in the row of branch k, with its left side at x."""
    top = ROWS[k] - HEIGHTS[k] / 2
    return (
        f'<rect x="{x:g}" y="{top:g}" width="{width:g}" height="{HEIGHTS[k]}" rx="4"'
        f' fill="{COLORS[k]}" stroke="#1e3a8a"/>' + text(x + width / 2, ROWS[k] + 4, label)
    )


def line(x: float, start: int, end: int) -> str:
    """From the box of one branch that ends at x to the next box of another."""
    color = SAME if start == end else DOWN if end > start else UP
    return (
        f'<line x1="{x:g}" y1="{ROWS[start]}" x2="{x + GAP:g}" y2="{ROWS[end]}"'
        f' stroke="{color}" stroke-width="1.2"/>'
    )


def network(variant: Variant) -> tuple[list[str], float]:
    """The parts of the picture from image to logits, and its width."""
    parts = [text(42, 40, "image"), text(42, ROWS[0] + 4, "RGB")]
    parts += [box(88, 0, 56, "64"), line(144, 0, 0)]
    parts += [text(116, 40, "stem"), text(116, 58, "1/4")]
    x = 144 + GAP
    first = f"{4 * variant.layer1_planes}"
    parts += [box(x, 0, 56, first), line(x + 56, 0, 0), line(x + 56, 0, 1)]
    parts += [text(x + 28, 40, "stage 1"), text(x + 28, 58, f"{variant.layer1_blocks} bottlenecks")]
    x += 56 + GAP
    for stage, modules in enumerate(variant.num_modules, 2):
        center = x + (modules * (BOX + GAP) - GAP) / 2
        parts += [text(center, 40, f"stage {stage}")]
        parts += [text(center, 58, f"{modules} module{'s' if modules > 1 else ''}")]
        for module in range(modules):
            last = module == modules - 1
            for k in range(stage):
                parts.append(box(x, k, BOX, f"{variant.channels[k]}"))
                # To all branches of this stage; the next stage's new branch comes from the lowest.
                parts += [line(x + BOX, k, end) for end in range(stage)]
            if last and stage < 4:
                parts.append(line(x + BOX, stage - 1, stage))
            x += BOX + GAP
    for k in range(4):
        parts.append(box(x, k, 30, ""))
    total = sum(variant.channels)
    parts += [text(x + 15, 40, "concatenate"), text(x + 15, 58, f"{total}, at 1/4")]
    parts += [box(x + 30 + GAP, 0, 64, f"{CLASSES} classes"), line(x + 30, 0, 0)]
    parts += [text(x + 62 + GAP, 40, "head"), text(x + 62 + GAP, 58, "two 1x1")]
    return parts, x + 30 + GAP + 64 + 40


def table() -> list[str]:
    """A line for each variant."""
    bold = ' font-weight="bold"'
    lines = [
        text(x, TABLE_TOP, heading, anchor="start", style=bold)
        for x, heading in zip(COLUMNS, HEADINGS, strict=True)
    ]
    for row, v in enumerate(VARIANTS.values(), 1):
        cells = (
            v.name,
            v.width,
            f"{v.layer1_blocks} bottlenecks of {v.layer1_planes}",
            ", ".join(map(str, v.num_modules)),
            v.num_blocks,
            ", ".join(map(str, v.channels)),
        )
        lines += [
            text(x, TABLE_TOP + row * LINE, str(cell), anchor="start")
            for x, cell in zip(COLUMNS, cells, strict=True)
        ]
    return lines


def legend() -> list[str]:
    """What the lines mean, and the resolutions of the rows."""
    meanings = (
        (SAME, "same resolution"),
        (DOWN, "down: 3x3 convolutions, stride 2"),
        (UP, "up: 1x1 convolution, bilinear resizing"),
    )
    parts = [
        text(24, ROWS[k] + 4, f"1/{4 * 2**k}", anchor="start", style=' fill="#64748b"')
        for k in range(1, 4)
    ]
    for number, (color, meaning) in enumerate(meanings):
        x = 24 + 270 * number
        parts.append(
            f'<line x1="{x}" y1="360" x2="{x + 24}" y2="360" stroke="{color}" stroke-width="2"/>'
        )
        parts.append(text(x + 32, 364, meaning, anchor="start"))
    return parts


def draw() -> str:
    """The file's text."""
    parts, width = network(VARIANTS[SHOWN])
    height = TABLE_TOP + (len(VARIANTS) + 1) * LINE
    title = f"{SHOWN}: each box is one branch of a module, with its number of channels"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height}"'
            ' font-family="Helvetica, Arial, sans-serif" font-size="12" fill="#0f172a">',
            f'<rect width="{width:g}" height="{height}" fill="white"/>',
            text(24, 18, title, anchor="start", style=' font-weight="bold"'),
            *parts,
            *legend(),
            *table(),
            "</svg>",
            "",
        ]
    )


def main() -> None:
    FILE.write_text(draw(), "utf-8")
    print(f"Wrote {FILE}")


if __name__ == "__main__":
    main()
