"""CamVid, 11 classes, 367 training frames of 360x480 in the SegNet split, from random weights.

    python train.py --config=configs/camvid.py:variant=w18_small_v1 --config.data.root=DIR
    --workdir=OUT

DIR holds `train`, `trainannot`, `val` and `valannot`. 60 epochs with batch 8 (2752 steps). The
official PyTorch code, trained so on two CPU cores at 55-88 s an epoch, reached a training loss of
0.83 in epoch 3 and 0.63 in epoch 8, and a validation mIoU of 38.4 after 10 epochs, 47.3 after 20,
50.9 after 30, 56.1 after 50.

`:runlocal` shrinks it to about a minute.
"""

from configs import common


def get_config(arg=None):
    arg = common.parse_arg(arg, variant="w18_small_v1", runlocal=False)
    config = common.get_config()
    config.variant = arg.variant
    config.batch_size = 8
    config.num_epochs = 60
    config.log_every_steps = 15
    config.checkpoint_every_steps = 230
    config.data.name = "camvid"
    config.data.crop_size = (360, 480)  # the frames' own size
    config.data.allow_any_crop = True
    config.data.scale_max = 2.0
    config.data.scale_step = 0.0
    config.optimizer.learning_rate = 0.02
    config.eval.every_epochs = 5.0
    config.eval.batch_size = 8
    if arg.runlocal:
        common.shrink(config)
    return config
