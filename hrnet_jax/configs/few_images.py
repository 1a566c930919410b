"""Ten to twenty labeled images: `finetune` with what keeps a network from learning them by heart.

    python train.py --config=configs/few_images.py --config.data.root=DIR --workdir=OUT

As `finetune`, with more varied samples: scales 0.5 to 2, colors (`data.photometric`), and classes of
another image pasted over half of the images (`data.class_mix`). A run of 150 steps with batch 4 sees
each of 12 images 50 times.

More images of the kind without labels help most where a network exists that knows the classes: see
"Images without labels" in docs/data.md. `:scratch`, `:runlocal` and variants are those of `finetune`.
Measured in docs/experiments/finetuning.md.
"""

from hrnet_jax.configs import finetune


def get_config(arg=None):
    config = finetune.get_config(arg)
    config.data.scale_min = 0.5
    config.data.scale_max = 2.0
    config.data.photometric = 0.5
    config.data.class_mix = 0.5
    return config
