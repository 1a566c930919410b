"""Ten to twenty labeled images: `finetune` with more steps.

    python train.py --config=configs/few_images.py --config.data.root=DIR --workdir=OUT

600 steps of 4 crops show each of 12 images 200 times. Measured in docs/experiments/finetuning.md,
with and without more varied samples.

`:scratch`, `:runlocal` and variants are those of `finetune`.
"""

from hrnet_jax.configs import finetune


def get_config(arg=None):
    return finetune.get_config(arg, num_steps=600)
