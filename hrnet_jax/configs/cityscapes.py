"""Cityscapes, 19 classes, 2975 training images.

    python train.py --config=configs/cityscapes.py:variant=w48 --config.data.root=DIR --workdir=OUT

DIR holds `leftImg8bit` and `gtFine`. This is the official recipe: 484 epochs (about 120k steps)
with batch 12, SGD 0.01, class-weighted cross-entropy. It is meant to start from ImageNet weights
(`--config.init_from=FILE`). Published for it, single scale, with those weights: W48 81.1 mIoU,
small_v2 76.2, small_v1 70.3.
Cost: the official code takes 0.7 s a step for W48 with batch 8 on four V100, so about a day there.

`:variant=w48,scratch` trains from random weights: 1000 steps of warm-up, since large early steps
on untrained BatchNorm statistics are what goes wrong there; Kaiming initialization instead of the
normal(0.001) that presumes pretrained weights; OHEM in place of the class weights, and a moving
average of the weights, which smooths the noisier end of such a run. Users report 65.2 for small_v1
and 70-73 for W48 from scratch with the official code.

`:runlocal` shrinks either to about a minute (compiling a large variant comes on top).
Names: the default variant is w48; `hrnet_jax.models.VARIANTS` lists all.
"""

from hrnet_jax.configs import common

# The official weights, in the order of the train ids.
CLASS_WEIGHTS = (
    0.8373, 0.918, 0.866, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023,
    0.9539, 0.9843, 1.1116, 0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507,
)  # fmt: skip


def get_config(arg=None):
    arg = common.parse_arg(arg, variant="w48", scratch=False, runlocal=False)
    config = common.get_config()
    config.variant = arg.variant
    config.loss.class_weights = CLASS_WEIGHTS
    config.model.init = "normal"
    if arg.scratch:
        config.model.init = "kaiming"
        config.optimizer.warmup_steps = 1000
        config.optimizer.ema_decay = 0.999
        config.loss.name = "ohem"
        config.loss.class_weights = None
    if arg.runlocal:
        common.shrink(config)
    return config
