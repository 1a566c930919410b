"""Ten to twenty labeled images: `finetune` with more varied samples.

    python train.py --config=configs/few_images.py --config.data.root=DIR --workdir=OUT

As `finetune`, with scales from 0.5 to 2, changed colors (`data.photometric`), and classes of
another image pasted over half of the images (`data.class_mix`): 150 steps of 4 crops show each of
12 images 50 times.

`:scratch`, `:runlocal` and variants are those of `finetune`. A starting point: what these keys
bring is not measured yet.
"""

from hrnet_jax.configs import finetune


def get_config(arg=None):
    config = finetune.get_config(arg)
    config.data.scale_min = 0.5
    config.data.scale_max = 2.0
    config.data.photometric = 0.5
    config.data.class_mix = 0.5
    return config
