"""ADE20K (MIT Scene Parsing), 150 classes, 20,210 training images.

    python train.py --config=configs/ade20k.py:variant=w48 --config.data.root=DIR --workdir=OUT

DIR is ADEChallengeData2016, with `images` and `annotations`. The recipe is that of mmsegmentation
for HRNet (configs/hrnet/fcn_hr48_4xb4-160k_ade20k-512x512): 160k steps with batch 16 and crops of
512x512, SGD 0.01, from ImageNet weights (`--config.init_from=FILE`). Published for it, single
scale: W48 42.02 mIoU, W18 36.79, small_v2 33.00. It differs in one way: images are scaled by
0.5 to 2 from their own size instead of a shorter side of 512, which most of them have.

The validation images have hundreds of sizes, and each size is compiled once. Therefore evaluation
pads them to multiples of 64. `hrnet evaluate --size_step=1` evaluates without padding.

`:runlocal` shrinks the run to about a minute.
"""

from hrnet_jax.configs import common


def get_config(arg=None):
    arg = common.parse_arg(arg, variant="w48", runlocal=False)
    config = common.get_config()
    config.variant = arg.variant
    config.batch_size = 16
    config.num_steps = 160_000
    config.checkpoint_every_steps = 4000
    config.data.name = "ade20k"
    config.data.crop_size = (512, 512)
    config.data.scale_max = 2.0
    config.data.scale_step = 0.0
    config.data.photometric = 1.0
    config.eval.every_steps = 16_000
    config.eval.size_step = 64
    if arg.runlocal:
        common.shrink(config)
    return config
