"""The full recipe with every key there is, and the parser of the `:variant=NAME,runlocal` argument.

The other configurations start from `get_config()` and change values. The result is locked: a key
that is not listed here is refused. No key exists that the trainer does not read.
"""

import difflib
import types

from ml_collections import ConfigDict, config_dict

from hrnet_jax.models.variants import get_variant


def parse_arg(arg: str | None, **defaults) -> types.SimpleNamespace:
    """Parses the text after the colon of `--config=FILE.py:ARG`.

    Args:
      arg: comma-separated `name=value` or, for switches, `name`.
      **defaults: the accepted names with their defaults; a bool makes the name a switch. `variant`
        is checked against the known ones.

    Raises:
      ValueError: for a name that is not accepted, a missing or superfluous value, or an unknown
        variant.
    """
    values = dict(defaults)
    for part in filter(None, (part.strip() for part in (arg or "").split(","))):
        name, equals, value = part.partition("=")
        if name not in defaults:
            near = difflib.get_close_matches(name, defaults, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"unknown config argument {name!r}{hint}; known: {sorted(defaults)}")
        if isinstance(defaults[name], bool):
            if equals:
                raise ValueError(
                    f"config argument {name!r} is a switch and takes no value, got {value!r}"
                )
            values[name] = True
        elif not value:
            raise ValueError(f"config argument {name!r} needs a value: {name}=...")
        else:
            values[name] = type(defaults[name])(value)
    if "variant" in values:
        get_variant(values["variant"])
    return types.SimpleNamespace(**values)


def get_config() -> ConfigDict:
    """All keys with the values of the official Cityscapes recipe, without a data set."""
    config = ConfigDict()
    config.variant = "w48"
    config.head = "segmentation"
    config.seed = 0  # of initialisation, data order, augmentation and dropout
    config.batch_size = 12  # images per optimizer step, over all devices and hosts
    config.num_epochs = 484
    config.num_steps = 0  # 0: as many as num_epochs take
    # Start from these weights instead of random ones: a folder with a checkpoint of ours, a
    # PyTorch file, or a name such as "camvid_w18_small_v1" of weights that come with the package.
    config.init_from = ""
    config.log_every_steps = 50
    config.checkpoint_every_steps = 1000  # besides, at every evaluation and at the end
    config.compilation_cache = ""  # folder; "": JAX_COMPILATION_CACHE_DIR or the user's cache

    config.data = data = ConfigDict()
    data.name = "cityscapes"
    data.root = ""
    data.class_file = ""  # of name="folder"
    data.train_split = "train"
    data.eval_split = "val"
    data.crop_size = (512, 1024)  # height, width
    data.allow_any_crop = False  # True: also sizes that 32 does not divide
    data.scale_min = 0.5
    data.scale_max = 2.1
    data.scale_step = 0.1  # 0: uniform between min and max
    data.flip = True
    data.brightness = 0  # largest shift of the pixel values, 0..255
    # Brightness, contrast and saturation of each image times random factors in 1 +- this, 0..1;
    # on the device (preprocess.adjust_color). 0: none, as in the official recipes.
    data.color_jitter = 0.0
    # Share of the samples over which some classes of the batch's next sample are pasted, 0..1; on
    # the device (preprocess.mix_classes). 0: none, as in the official recipes.
    data.class_mix = 0.0
    # More sets to train on, each a dict with name, root, split, weight (its share of the samples)
    # and class_map ({class there: class here, or "" to ignore it}). docs/data.md has an example.
    data.mix = ()
    # Share of the samples chosen by drawing a class first, then an image with it: for rare classes.
    data.class_uniform = 0.0
    data.threads = 0  # that make samples; 0: one for each core
    data.prefetch = 2  # batches made ahead
    data.service = ()  # ("HOST:PORT", ...) of machines that make the samples (tools.serve_data)
    # Of whole images with one class (head="classification"), instead of scale and brightness:
    data.area_min = 0.08  # smallest share of the image in a crop
    data.aspect_max = 4 / 3  # most elongated crop
    data.eval_short_side = 256  # images are resized to it, then their centre is cropped

    config.model = model = ConfigDict()
    model.dtype = "float32"  # of the arithmetic; parameters and statistics are float32 or float64
    # What the backward pass computes again, for memory: "none", "norm" (normalisation and
    # activation), "block" (residual blocks), "module" (rounds of branches and exchange).
    model.remat = "none"
    # What is compiled once and run in a loop: "none", a stage's "modules", or "blocks", too.
    # "auto": "blocks" on TPU, "none" on CPU and GPU.
    model.scan = "auto"
    # Share of each image's own statistics in BatchNorm's where the network is not trained, 0..1.
    model.image_statistics = 0.0
    model.align_corners = config_dict.placeholder(bool)  # None: as the head's official code
    model.init = (
        "kaiming"  # "normal": the official segmentation code's, for use with pretrained weights
    )

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "sgd"  # the official one, or "adamw"
    optimizer.learning_rate = 0.01
    optimizer.momentum = 0.9  # of AdamW: beta1
    optimizer.beta2 = 0.999  # of AdamW
    optimizer.weight_decay = 5e-4  # on all parameters, biases and BatchNorm included
    optimizer.nesterov = False
    optimizer.schedule = "poly"  # or "staircase"
    optimizer.poly_power = 0.9
    optimizer.drop_epochs = (30, 60, 90)  # of the staircase: where the learning rate drops
    optimizer.drop_factor = 0.1
    optimizer.warmup_steps = 0
    optimizer.accumulate = 1  # the batch is computed in this many parts, one after the other
    optimizer.ema_decay = 0.0  # 0: no moving average of the weights
    optimizer.skip_nonfinite = 0  # steps that may be left out as not finite; one more ends the run

    config.loss = loss = ConfigDict()
    loss.name = "cross_entropy"  # or "ohem"
    loss.class_weights = config_dict.placeholder(tuple)
    loss.label_smoothing = 0.0  # 0..1: share of each label that is spread over all classes
    loss.ohem_threshold = 0.9
    loss.ohem_min_kept = 131072

    config.mesh = ConfigDict({"data": -1, "space": 1})  # -1: all devices

    config.eval = evaluation = ConfigDict()
    evaluation.every_steps = 0  # 0: by epochs
    evaluation.every_epochs = 10.0
    evaluation.batch_size = 4
    evaluation.num_images = 0  # 0: all
    return config.lock()


def shrink(config: ConfigDict) -> None:
    """Makes a run of about a minute on two cores of any configuration: `:runlocal`."""
    config.batch_size = 2
    config.num_steps = 20
    config.log_every_steps = 5
    config.checkpoint_every_steps = 10
    config.data.crop_size = (128, 256)
    config.optimizer.warmup_steps = 0
    config.eval.every_steps = 20
    config.eval.batch_size = 2
    config.eval.num_images = 4
