"""ImageNet classification, to start segmentation from: the official recipe.

    python train.py --config=configs/imagenet.py:variant=w18 --config.data.root=DIR --workdir=OUT
    python train.py --config=configs/cityscapes.py:variant=w18 ... --config.init_from=OUT

DIR holds a folder per class, `train/CLASS/*.JPEG` and `val/CLASS/*.JPEG`; any other dataset in this
layout will do as well, with any number of classes. With `--config.data.name=tfds_imagenet` it is
the data_dir in which TensorFlow Datasets has prepared `imagenet2012`.

100 epochs, SGD with Nesterov momentum, learning rate 0.1 at batch 256 (scale it with the batch)
divided by 10 after 30, 60 and 90 epochs, weight decay 1e-4, random crops of 224x224, mirrored.
Evaluated on the central 224x224 of images whose short side is 256; checkpoints are ranked by top-1.
Published for it, top-1 / top-5 error in %: W18 23.2 / 6.6, W32 21.5 / 5.8, W48 20.7 / 5.5.

`:runlocal` shrinks it to about a minute (compiling a large variant comes on top).
"""

from hrnet_jax.configs import common


def get_config(arg=None):
    arg = common.parse_arg(arg, variant="w18", runlocal=False)
    config = common.get_config()
    config.variant = arg.variant
    config.head = "classification"
    config.batch_size = 256
    config.num_epochs = 100
    config.data.name = "image_folder"
    config.data.crop_size = (224, 224)
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 1e-4
    config.optimizer.nesterov = True
    config.optimizer.schedule = "multistep"
    config.eval.every_epochs = 1.0
    config.eval.batch_size = 128
    if arg.runlocal:
        common.shrink(config)
        config.batch_size = 16
        config.data.crop_size = (64, 64)
        config.data.eval_short_side = 72
        config.eval.batch_size = 16
        config.eval.num_images = 64
        config.optimizer.learning_rate = 0.02
    return config
