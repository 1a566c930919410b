"""The configuration of a training with the tiny network; the fixture `quick` knows that variant."""

import jax

from hrnet_jax.configs import common


def tiny_config(root, **values):
    """Batches of two small crops of a dataset, on one device.

    Args:
        root: folder of the dataset.
        values: of other keys, or in place of these.
    """
    config = common.get_config()
    own = {
        "variant": "tiny",
        "batch_size": 2,
        "compilation_cache": jax.config.jax_compilation_cache_dir or "",
        "data.root": str(root),
        "data.crop_size": (32, 64),
        "mesh.data": 1,
    }
    config.update_from_flattened_dict(own | values)
    return config
