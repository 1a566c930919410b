"""The full recipe with every key there is, and the parser of the `:variant=NAME,runlocal` argument.

The other configurations start from `get_config()` and change values. The result is locked: an
unknown key is an error. Keys and values of earlier versions are read, with a warning
(`train.config.RENAMED_KEYS`).
"""

import difflib
import types

from ml_collections import ConfigDict, config_dict

from hrnet_jax.models.variants import get_variant
from hrnet_jax.train.config import Config


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


def get_config() -> Config:
    """All keys with the values of the official Cityscapes recipe, without a dataset.

    One page on purpose: a list of keys is easier to read and search in one place than in parts.
    """
    config = Config()
    config.variant = "w48"
    config.head = "segmentation"
    config.seed = 0  # of initialization, data order, augmentation and dropout
    config.batch_size = 12  # images per optimizer step, over all devices and processes
    config.num_epochs = 484
    config.num_steps = 0  # length of the run in optimizer steps; 0: num_epochs decides
    # Start from these weights instead of random ones: a folder with one of our checkpoints, a
    # PyTorch file, or the name of weights that come with the package ("camvid_w18_small_v1").
    config.init_from = ""
    # Go on with the run in the workdir under another length, batch size or learning rate; see
    # docs/finetune.md for what that means.
    config.extend = False
    config.log_every_steps = 50  # also logged: the first step and every saved one
    config.checkpoint_every_steps = 1000  # also saved: every evaluated step and the last one
    config.compilation_cache = ""  # folder; "": JAX_COMPILATION_CACHE_DIR or the user's cache

    config.data = data = Config()
    data.name = "cityscapes"
    data.root = ""
    data.class_file = ""  # "": the dataset's own classes; for "folder" ROOT/classes.json
    data.train_split = "train"  # "train+val": several at once
    data.eval_split = "val"  # "": no evaluation
    # Labels of each split whose ids are counted before the first step, spread evenly; 0: all of
    # them. Of classification: images that are decoded; 0: 500.
    data.audit_images = 0
    data.allow_odd_labels = False  # train also on labels that hardly mean what the class list says
    data.crop_size = (512, 1024)  # height, width
    data.allow_any_crop = False  # True: also sizes that are not multiples of 32
    # Segmentation: each image is scaled by a random factor of this range before it is cropped.
    data.scale_min = 0.5
    data.scale_max = 2.1
    data.scale_step = 0.1  # distance of the factors; 0: any factor between min and max
    data.flip = True  # horizontally, every second image on average
    data.brightness = 0  # largest shift of the pixel values, 0..255
    # Brightness, contrast and saturation of each image are multiplied by random factors in
    # 1 +- this, 0..1, on the device (train.augment.adjust_color). The official recipes have 0.
    data.color_jitter = 0.0
    # Fraction of the samples that get some classes of the next sample of the batch pasted, 0..1, on
    # the device (train.augment.mix_classes). The official recipes have 0.
    data.class_mix = 0.0
    # More datasets to train on, each a dict with name, root, split, weight (its fraction of the
    # samples) and class_map ({its class: class here, or "" to ignore it}; may be left out where a
    # ready-made one exists): see docs/data.md.
    data.mix = ()
    # Fraction of the samples for which a class is drawn first, then an image that has it. It makes
    # rare classes more frequent.
    data.class_uniform = 0.0
    data.threads = 0  # that make samples; 0: one per core
    data.prefetch = 2  # batches prepared in advance
    data.service = ()  # ("HOST:PORT", ...) of machines that make the samples (tools.serve_data)
    # Classification: a random part of each image is resized to crop_size, instead of scale_min,
    # scale_max, scale_step and brightness.
    data.area_min = 0.08  # smallest fraction of the image in a crop
    data.aspect_max = 4 / 3  # largest width / height of a crop, and height / width
    data.eval_short_side = 256  # images are resized to it, then the center is cropped

    config.model = model = Config()
    model.dtype = (
        "float32"  # of the arithmetic; parameters are float64 with "float64", else float32
    )
    # What the backward pass recomputes to save memory: "none", "norm" (normalization and
    # activation), "block" (residual blocks), "module" (branches and their exchange).
    model.remat = "none"
    # What is compiled once and run in a loop, to compile faster: "none", the "modules" of a stage,
    # or the residual "blocks" of each branch, too. "auto": "blocks" on TPU, "none" on CPU and
    # GPU, where loops cost time or memory traffic.
    model.scan = "auto"
    # Evaluation and prediction: fraction of each image's own statistics in BatchNorm, 0..1.
    model.image_statistics = 0.0
    model.align_corners = config_dict.placeholder(bool)  # None: as in the head's official code
    # "kaiming", or "normal" of the official segmentation code, which starts from trained weights.
    model.init = "kaiming"

    # BatchNorm in training: "statistics" uses the running statistics and keeps them, for small
    # batches; "all" keeps its scale and bias, too.
    model.frozen_norm = "none"

    config.optimizer = optimizer = Config()
    optimizer.name = "sgd"  # as in the official code, or "adamw"
    optimizer.learning_rate = 0.01
    optimizer.momentum = 0.9  # beta1 of AdamW
    optimizer.beta2 = 0.999  # of AdamW
    optimizer.weight_decay = 5e-4  # on all parameters, biases and BatchNorm included
    optimizer.decay_norm_and_bias = True  # False: no decay on biases and BatchNorm's parameters
    # Factors of the learning rate for parts of the network, such as {"backbone": 0.1,
    # "backbone/stem": 0}; the longest name that fits counts. 0 freezes: no gradient, no state of
    # the optimizer, and BatchNorm as in evaluation.
    optimizer.multipliers = Config({})
    optimizer.decay_multipliers = Config({})  # factors of the weight decay, in the same way
    optimizer.clip_norm = 0.0  # gradients with a larger norm are scaled to this one; 0: never
    # "module:function" of your own in place of name, momentum, beta2, weight_decay and nesterov:
    # docs/finetune.md.
    optimizer.function = ""
    optimizer.nesterov = False
    optimizer.schedule = "poly"  # or "multistep", "cosine", "one_cycle"
    optimizer.schedule_function = ""  # "module:function" in place of the schedule
    optimizer.poly_power = 0.9
    # Of "multistep": after each of these epochs the learning rate is multiplied by gamma.
    optimizer.milestones = (30, 60, 90)
    optimizer.gamma = 0.1
    optimizer.rise_fraction = 0.3  # of "one_cycle": fraction of the steps with a rising rate
    optimizer.warmup_steps = 0  # linear warm-up; shortened, with a warning, if the run is shorter
    # The batch is computed in this many parts, one after the other; their gradients are averaged.
    optimizer.gradient_accumulation = 1
    optimizer.ema_decay = 0.0  # of a moving average of the weights; 0: none is kept
    # Steps with an infinite or NaN loss or gradient that are skipped; one more ends the run.
    optimizer.skip_nonfinite = 0

    config.loss = loss = Config()
    loss.name = "cross_entropy"  # or "ohem"
    loss.function = ""  # "module:function" of your own for the main output: docs/finetune.md
    loss.class_weights = config_dict.placeholder(tuple)  # one per class; None: all are 1
    loss.label_smoothing = 0.0  # fraction of each label that is spread over all classes, 0..1
    # Heads with an auxiliary output (ocr): weights of both losses. The auxiliary one is always
    # cross-entropy, as in the official code; loss.name is that of the main output.
    loss.main_weight = 1.0
    loss.aux_weight = 0.4
    loss.ohem_threshold = 0.9  # pixels whose class has a lower probability are kept
    loss.ohem_min_kept = 131072  # pixels of a batch, or of its part with gradient accumulation

    # Devices along the batch and along the height of the images; -1: all that are left.
    config.mesh = Config({"data": -1, "space": 1})

    config.eval = evaluation = Config()
    evaluation.every_steps = 0  # 0: every_epochs decides
    evaluation.every_epochs = 10.0  # 0: only after the last step
    evaluation.batch_size = 4
    evaluation.num_images = 0  # 0: all
    # The run ends after so many evaluations in a row without a better metric; 0: never.
    evaluation.patience = 0
    return config.lock()


def shrink(config: ConfigDict) -> None:
    """Shortens any run to about a minute on two cores: `:runlocal`."""
    config.batch_size = 2
    config.num_steps = 20
    config.log_every_steps = 5
    config.checkpoint_every_steps = 10
    config.data.crop_size = (128, 256)
    config.optimizer.warmup_steps = 0
    config.eval.every_steps = 20
    config.eval.batch_size = 2
    config.eval.num_images = 4
