"""The nine HRNet variants as plain data: no JAX, frozen and hashable.

Source: arXiv 1908.07919, tables 1 and 7, and the configuration files of the official
implementation (the two small models are found only there).
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Variant:
    """Everything that distinguishes one HRNet from another.

    Attributes:
      name: the key in `VARIANTS`.
      width: channels of the highest-resolution branch; branch k has ``width * 2**k``.
      layer1_blocks: bottleneck blocks in stage 1.
      layer1_planes: bottleneck width in stage 1; its output has four times as many channels.
      num_modules: modules (one round of branches and fusion) in stages 2, 3 and 4.
      num_blocks: basic blocks in each branch of each module.
    """

    name: str
    width: int
    layer1_blocks: int = 4
    layer1_planes: int = 64
    num_modules: tuple[int, int, int] = (1, 4, 3)
    num_blocks: int = 4

    @property
    def channels(self) -> tuple[int, int, int, int]:
        """Channels of the four branches, from 1/4 to 1/32 resolution."""
        return tuple(self.width * 2**k for k in range(4))


VARIANTS: dict[str, Variant] = {
    v.name: v
    for v in (
        Variant(
            "w18_small_v1",
            width=16,
            layer1_blocks=1,
            layer1_planes=32,
            num_modules=(1, 1, 1),
            num_blocks=2,
        ),
        Variant("w18_small_v2", width=18, layer1_blocks=2, num_modules=(1, 3, 2), num_blocks=2),
        Variant("w18", width=18),
        Variant("w30", width=30),
        Variant("w32", width=32),
        Variant("w40", width=40),
        Variant("w44", width=44),
        Variant("w48", width=48),
        Variant("w64", width=64),
    )
}


def get_variant(variant: str | Variant) -> Variant:
    """Looks a variant up by name; a `Variant` passes through.

    Raises:
      ValueError: the name is not in the table.
    """
    if isinstance(variant, Variant):
        return variant
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; known: {sorted(VARIANTS)}")
    return VARIANTS[variant]
