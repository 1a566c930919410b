"""Labels that can be trained on but hardly mean what the class list says.

Each check takes what audits have found, and returns the messages, with the likely reason and the
way out. The checks are few and narrow: correct datasets, and a few images of one, pass.
"""

from collections.abc import Sequence

from hrnet_jax.data.pipeline.audit import LabelAudit
from hrnet_jax.data.sources.source import IGNORE_LABEL

# With a larger fraction of ignored pixels, an absent class is suspicious.
LARGE_IGNORED = 0.2
# So many labels with the same numbers of pixels are not equal by chance.
MANY_IMAGES = 8


def reasons_to_stop(audit: LabelAudit) -> list[str]:
    """What makes training on these labels pointless."""
    if audit.mapped:  # a part of a mixture, with another dataset's class list
        return []
    return [m for m in (one_class_only(audit), train_ids_in_files(audit)) if m]


def reasons_to_doubt(train: Sequence[LabelAudit], val: LabelAudit | None) -> list[str]:
    """What may be wrong, for a warning.

    Args:
        train: of the splits that are trained on together.
        val: of the split that is evaluated, if there is one.
    """
    found = [absent_beside_ignored(train), *(map(all_equal, train))]
    if val is not None:
        found += [not_in_training(train, val), the_same_images(train[0], val)]
    return [m for m in found if m]


def one_class_only(audit: LabelAudit) -> str:
    """All labeled pixels belong to one of several classes, as in masks of 0 and 255."""
    present = [k for k, pixels in enumerate(audit.counts) if pixels]
    if len(present) != 1:
        return ""
    name = audit.names[present[0]]
    message = (
        f"{_where(audit)} hold one class only, {name!r}; ids found: {list(audit.ids)}. A network "
        f"would learn to predict {name!r} everywhere, with loss 0 and mIoU 1."
    )
    table = audit.classes.lookup()
    ignored = [i for i in audit.ids if table[i] == IGNORE_LABEL]
    if len(ignored) != 1 or not audit.classes.stores_raw_ids:
        return message + " Are these labels of another kind, or only a part of the dataset?"
    message += f" The id {ignored[0]} is ignored"
    if len(audit.names) > 2:
        return message + ": if it is a class, it must be in label_ids and not in ignore_ids"
    own = next(i for i in audit.ids if table[i] == present[0])
    label_ids = [own, ignored[0]] if present[0] == 0 else [ignored[0], own]
    return (
        f'{message}: if it is {audit.absent[0]!r}, write "label_ids": {label_ids}, "ignore_ids": '
        "[] into the class file"
    )


def train_ids_in_files(audit: LabelAudit) -> str:
    """Files that should hold label ids, such as 7, 8, 11, ... hold 0, 1, 2, ... already.

    It needs all of these: no id beyond the number of classes, at least half of the classes absent,
    and many pixels of at least two ids that are ignored but would be classes as train ids. Images
    of a real dataset with label ids also hold classes with larger ids (in Cityscapes 21 vegetation,
    23 sky, 26 car).
    """
    count, table = len(audit.names), audit.classes.lookup()
    found = [i for i in audit.ids if i != IGNORE_LABEL]
    beyond = (table[count:] < count).any()
    lost = [i for i in found if i < count and table[i] == IGNORE_LABEL]
    pixels = sum(audit.ids.values())
    if (
        not beyond
        or max(found) >= count
        or 2 * len(audit.absent) < count
        or len(lost) < 2
        or sum(audit.ids[i] for i in lost) < LARGE_IGNORED * pixels
    ):
        return ""
    return (
        f"{_where(audit)} hold the ids {found} only, of which {lost} are ignored, and "
        f"{len(audit.absent)} of {count} classes have no pixel: these look like train ids "
        f"0..{count - 1} where label ids belong {list(audit.classes.label_ids)}. Use the files "
        f'with label ids, or a class file with "label_ids": {list(range(count))}'
    )


def absent_beside_ignored(train: Sequence[LabelAudit]) -> str:
    """Classes without a pixel, and many pixels that are ignored: is an id in the wrong list?"""
    absent = [n for n in train[0].names if all(n in audit.absent for audit in train)]
    if not absent or train[0].ignored_fraction <= LARGE_IGNORED:
        return ""
    table = train[0].classes.lookup()
    ignored = {i: p for i, p in train[0].ids.items() if table[i] == IGNORE_LABEL}
    return (
        f"{_where(train[0])} have no pixel of {', '.join(map(repr, absent))}, but "
        f"{train[0].ignored_fraction:.0%} of all pixels are ignored (ids {sorted(ignored)}). A "
        "class that is never seen cannot be learned. Is an id of a class ignored?"
    )


def all_equal(audit: LabelAudit) -> str:
    """Every label holds the same numbers of pixels, as copies of one file do."""
    if audit.num_counted < MANY_IMAGES or len(set(audit.by_image.values())) > 1:
        return ""
    return (
        f"{_where(audit)} all hold the same ids with the same numbers of pixels: are they copies "
        "of one file?"
    )


def not_in_training(train: Sequence[LabelAudit], val: LabelAudit) -> str:
    """Classes that are evaluated but not trained."""
    lacking = [
        n for n in train[0].names if all(n in a.absent for a in train) and n not in val.absent
    ]
    if not lacking:
        return ""
    return (
        f"classes with pixels in the labels of {val.split!r} but none in those of "
        f"{train[0].split!r} ({_counted(train[0])}): {', '.join(map(repr, lacking))}. They cannot "
        "be learned, and their IoU will be about 0"
    )


def the_same_images(train: LabelAudit, val: LabelAudit) -> str:
    """Most images that are evaluated are trained on: same name, same pixels of each id."""
    same = [name for name, ids in val.by_image.items() if train.by_image.get(name) == ids]
    differing = len({val.by_image[name] for name in same})
    if train.split == val.split or 2 * len(same) < val.num_counted or differing < 2:
        return ""
    return (
        f"{len(same)} of {val.num_counted} labels of {val.split!r} are in {train.split!r}, too, "
        f"under the same names, e.g. {same[0]}: the metrics would say nothing about new images"
    )


def framed(text: str) -> str:
    """A warning that is seen among other lines."""
    bar = "*" * 80
    return f"\n{bar}\nWARNING: {text}\n{bar}"


def _where(audit: LabelAudit) -> str:
    return f"{_counted(audit)} of {audit.name!r}, split {audit.split!r},"


def _counted(audit: LabelAudit) -> str:
    if audit.num_counted == audit.num_images:
        return f"all {audit.num_images} labels"
    return f"{audit.num_counted} of {audit.num_images} labels, which were counted"
