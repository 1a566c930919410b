"""CamVid, 11 classes, 367 training frames of 360x480 in the SegNet split, from random weights.

    python train.py --config=configs/camvid.py:variant=w18_small_v1 --config.data.root=DIR
    --workdir=OUT

DIR holds `train`, `trainannot`, `val` and `valannot`. 60 epochs with batch 8 (2752 steps). The
official PyTorch code, trained so on two CPU cores at 55-88 s an epoch, reached a training loss of
0.83 in epoch 3 and 0.63 in epoch 8, and a validation mIoU of 38.4 after 10 epochs, 47.3 after 20,
50.9 after 30, 56.1 after 50.

`:recipe=complete` trains in one run with what was found to help: AdamW, class weights, color
jitter, ClassMix from the first step on, averaged weights, and a tenth of BatchNorm's statistics
from each image. The learning rate stays for half of the run, then falls to 0.

`:recipe=constant` and `:recipe=decay` are the parts behind the weights that come with the package:
the learning rate stays, so the first run may be ended at any time; from its averaged weights
(`--config.init_from=OUT`) the second one goes on in whole frames while the learning rate falls
to 0.

`:holdout=0006R0` trains on the frames of the other sequences and evaluates on those of 0006R0, of
the training split. The sequences are 0001TP, 0006R0 and 0016E5. `:runlocal` shrinks any of them to
about a minute.
"""

from hrnet_jax.configs import common
from hrnet_jax.data.sources import selection

# (Fraction of each class among the training pixels) ** -1/4, divided by its mean over the pixels:
# a bicyclist (0.3 % of all) counts three times as much as road (33 %).
CLASS_WEIGHTS = (0.97, 0.89, 1.97, 0.83, 1.35, 1.11, 1.89, 1.91, 1.26, 2.2, 2.67)


def get_config(arg=None):
    arg = common.parse_arg(
        arg, variant="w18_small_v1", recipe="official", holdout="", runlocal=False
    )
    recipes = {"official": official, "complete": complete, "constant": constant, "decay": decay}
    if arg.recipe not in recipes:
        raise ValueError(f"unknown recipe {arg.recipe!r}; known: {sorted(recipes)}")
    config = common.get_config()
    config.variant = arg.variant
    config.data.name = "camvid"
    config.data.scale_max = 2.0
    config.data.scale_step = 0.0
    config.optimizer.learning_rate = 0.02
    config.eval.batch_size = 8
    recipes[arg.recipe](config)
    if arg.holdout:
        data = config.data
        data.train_split, data.eval_split = selection.held_out(data.train_split, arg.holdout)
    if arg.runlocal:
        common.shrink(config)
    return config


def official(config):
    config.batch_size = 8
    config.num_epochs = 60
    config.log_every_steps = 15
    config.checkpoint_every_steps = 230
    config.data.crop_size = (360, 480)  # the frames' own size
    config.data.allow_any_crop = True
    config.eval.every_epochs = 5.0


def complete(config):
    adamw(config)
    whole_frames(config)
    config.num_epochs = 120
    config.data.class_mix = 0.5
    config.optimizer.learning_rate = 0.002
    config.optimizer.hold_fraction = 0.5
    config.optimizer.poly_power = 1.0
    config.eval.every_epochs = 10.0


def constant(config):
    adamw(config)
    config.batch_size = 8
    config.num_epochs = 1000
    # A quarter of a frame: twice as many steps in the same time learn more than larger crops do.
    config.data.crop_size = (192, 256)
    config.optimizer.learning_rate = 0.002
    config.optimizer.poly_power = 0.0
    config.eval.every_epochs = 20.0


def decay(config):
    adamw(config)
    whole_frames(config)
    config.num_epochs = 8
    config.data.class_mix = 0.5
    config.optimizer.learning_rate = 0.001
    config.optimizer.poly_power = 1.0
    config.optimizer.ema_decay = 0.99
    config.eval.every_epochs = 2.0


def adamw(config):
    """What all recipes but the official one share."""
    config.log_every_steps = 46
    config.checkpoint_every_steps = 460
    config.data.scale_max = 1.5
    config.data.color_jitter = 0.3
    config.optimizer.name = "adamw"
    config.optimizer.beta2 = 0.99
    config.optimizer.weight_decay = 0.02
    config.optimizer.warmup_steps = 100
    config.optimizer.ema_decay = 0.999
    config.loss.class_weights = CLASS_WEIGHTS


def whole_frames(config):
    """Frames nearly as evaluation shows them, so that each has statistics of its own."""
    config.batch_size = 4
    config.data.crop_size = (360, 480)  # the frames' own size
    config.data.allow_any_crop = True
    config.data.scale_min = 0.75
    config.model.image_statistics = 0.1
