"""BDD100K semantic segmentation, the 19 classes of Cityscapes, 7000 training images of 720x1280.

    python train.py --config=configs/bdd100k.py:variant=w48 --config.data.root=DIR --workdir=OUT

DIR is the folder `bdd100k`, with `images/10k` and `labels/sem_seg`. The recipe is that of the
dataset's own models (https://github.com/SysCV/bdd100k-models, fcn_hr48_512x1024_80k): 80k steps
with batch 16 and crops of 512x1024 at scales of 0.5 to 2, SGD 0.01, from ImageNet weights
(`--config.init_from=FILE`). Published for it: W48 63.9 mIoU on validation. Its random brightness,
contrast, saturation and hue are a color jitter of 0.3 without hue here.

`:runlocal` shrinks the run to about a minute.
"""

from hrnet_jax.configs import common


def get_config(arg=None):
    arg = common.parse_arg(arg, variant="w48", runlocal=False)
    config = common.get_config()
    config.variant = arg.variant
    config.batch_size = 16
    config.num_steps = 80_000
    config.checkpoint_every_steps = 2000
    config.data.name = "bdd100k"
    config.data.scale_max = 2.0
    config.data.scale_step = 0.0
    config.data.color_jitter = 0.3
    config.eval.every_steps = 8000
    if arg.runlocal:
        common.shrink(config)
    return config
