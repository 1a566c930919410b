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
    config.variant = "w48"  # size of the network: hrnet_jax/models/variants.py
    config.head = "segmentation"  # or "segmentation_v1", "ocr", "classification"
    config.seed = 0  # of initialization, data order, augmentation and dropout
    config.batch_size = 12  # images per optimizer step, over all devices and processes
    config.num_epochs = 484  # length of the run, unless num_steps is given
    config.num_steps = 0  # length of the run in optimizer steps; 0: num_epochs decides
    # The weights to start from: a run's folder, a weights file, a PyTorch file, an address on the
    # hub, or the name of weights in the package ("camvid_w18_small_v1"); "": random ones.
    config.init_from = ""
    # True: continues the run in the workdir with another length, batch size or learning rate; see
    # docs/finetune.md.
    config.extend = False
    config.log_every_steps = 50  # also logged: the first step and every saved one
    config.checkpoint_every_steps = 1000  # also saved: every evaluated step and the last one
    config.compilation_cache = ""  # folder; "": JAX_COMPILATION_CACHE_DIR or the user's cache

    config.data = data = Config()
    data.name = "cityscapes"  # see docs/data.md and docs/datasets.md
    data.root = ""  # the dataset's folder
    data.class_file = ""  # "": the dataset's own classes; for "folder" ROOT/classes.json
    # "train+val": several at once; "train[-aachen]": without the samples whose names begin so;
    # "train[aachen]": these alone.
    data.train_split = "train"
    data.eval_split = "val"  # "": no evaluation
    # More datasets to train on, each a dict with name, root, split, weight (its fraction of the
    # samples) and class_map ({its class: class here, or "" to ignore it}; not needed where a
    # ready-made one exists): see docs/data.md.
    data.mix = ()
    # Fraction of the samples, 0..1, for which a class is drawn first, then an image that has it: it
    # makes rare classes more frequent.
    data.class_uniform = 0.0
    # Labels of each split whose ids are counted before the first step, evenly spread; 0: all. Of
    # classification: images that are decoded; 0: 500.
    data.audit_images = 0
    # True: trains also on labels that seem to mean something else than the class list says.
    data.allow_odd_labels = False
    data.threads = 0  # threads that make samples; 0: one per core
    data.prefetch = 2  # batches prepared in advance
    data.service = ()  # ("HOST:PORT", ...) of machines that make the samples (tools.serve_data)

    # Augmentation on the host. Segmentation: one resampling for scale, crop, rotation, shear and
    # perspective; pixels from outside of the image are ignored.

    data.crop_size = (512, 1024)  # height, width
    data.allow_any_crop = False  # True: also sizes that are not multiples of 32
    data.scale_min = 0.5  # smallest factor by which an image is scaled before it is cropped
    data.scale_max = 2.1  # largest factor
    data.scale_step = 0.1  # distance of the factors; 0: any factor between min and max
    data.flip = True  # horizontally, half of the images
    data.rotation = 0.0  # largest angle in degrees to either side, 0..180
    data.shear = 0.0  # largest angle in degrees by which vertical lines lean, 0..60
    data.perspective = 0.0  # largest move of each corner, as a fraction of the crop, 0..0.2
    data.brightness = 0  # largest shift of the pixel values, 0..255

    # Classification, in place of scale_min, scale_max, scale_step and brightness: a random part of
    # each image is resized to crop_size.

    data.area_min = 0.08  # classification: smallest fraction of the image in a crop
    data.aspect_max = 4 / 3  # classification: largest width / height of a crop, and height / width
    # Classification: images to evaluate are resized to this shorter side, then cropped.
    data.eval_short_side = 256

    # Augmentation on the device, see train/augment.py. The official recipes have 0.

    # Brightness, contrast and saturation are multiplied by random factors in 1 +- this, 0..1.
    data.color_jitter = 0.0
    # mmsegmentation's photometric distortion: brightness, contrast, saturation and hue, each for
    # half of the images. 1: its ranges, 0.5: half of them.
    data.photometric = 0.0
    data.blur = 0.0  # largest standard deviation in pixels, for half of the images, 0..10
    data.erasing = 0.0  # fraction of the images with a random rectangle erased and ignored, 0..1
    # Fraction of the samples, 0..1, that get some classes of the next sample of the batch pasted.
    data.class_mix = 0.0

    config.model = model = Config()
    model.dtype = "float32"  # of arithmetic; parameters are float32 (float64 with "float64")
    # "kaiming", or "normal" of the official segmentation code, which starts from trained weights.
    model.init = "kaiming"
    model.align_corners = config_dict.placeholder(bool)  # None: as in the head's official code
    # BatchNorm in training: "statistics" uses the running statistics and keeps them, for small
    # batches; "all" keeps its scale and bias, too.
    model.frozen_norm = "none"
    # BatchNorm in evaluation and prediction: fraction of each image's own statistics, 0..1.
    model.image_statistics = 0.0
    # What the backward pass recomputes to save memory: "none", "norm" (normalization and
    # activation), "block" (residual blocks), "module" (branches and their exchange).
    model.remat = "none"
    # What is compiled once and run in a loop, to compile faster: "none", the "modules" of a stage,
    # or also the residual "blocks" of each branch. "auto": "blocks" on TPU, "none" on CPU and GPU,
    # where loops cost time or memory traffic.
    model.scan = "auto"

    config.optimizer = optimizer = Config()
    optimizer.name = "sgd"  # as in the official code, or "adamw"
    # "module:function" of your own in place of name, momentum, beta2, weight_decay and nesterov:
    # docs/finetune.md.
    optimizer.function = ""
    optimizer.learning_rate = 0.01  # the highest one of the schedule
    optimizer.momentum = 0.9  # beta1 of AdamW
    optimizer.nesterov = False  # Nesterov momentum of SGD
    optimizer.beta2 = 0.999  # of AdamW
    optimizer.weight_decay = 5e-4  # on all parameters, biases and BatchNorm included
    optimizer.decay_norm_and_bias = True  # False: no decay on biases and BatchNorm's parameters
    # Factors of the learning rate for parts of the network, such as {"backbone": 0.1,
    # "backbone/stem": 0}; the longest name that fits counts. 0 freezes: no gradient, no state of
    # the optimizer, and BatchNorm as in evaluation.
    optimizer.multipliers = Config({})
    optimizer.decay_multipliers = Config({})  # factors of the weight decay, in the same way
    optimizer.schedule = "poly"  # or "multistep", "cosine", "one_cycle"
    optimizer.schedule_function = ""  # "module:function" in place of the schedule
    optimizer.warmup_steps = 0  # linear warm-up; shortened, with a warning, if the run is shorter
    optimizer.poly_power = 0.9  # of "poly"
    optimizer.hold_fraction = 0.0  # of "poly": fraction of the steps before the rate falls
    optimizer.milestones = (30, 60, 90)  # of "multistep": epochs after which the rate falls
    optimizer.gamma = 0.1  # of "multistep": factor at each of them
    optimizer.rise_fraction = 0.3  # of "one_cycle": fraction of the steps with a rising rate
    # The batch is computed in this many parts, one after the other; their gradients are averaged.
    optimizer.gradient_accumulation = 1
    optimizer.clip_norm = 0.0  # gradients with a larger norm are scaled to this one; 0: never
    optimizer.ema_decay = 0.0  # of a moving average of the weights; 0: none is kept
    # Steps with an infinite or NaN loss or gradient that are skipped; one more ends the run.
    optimizer.skip_nonfinite = 0

    config.loss = loss = Config()
    # "cross_entropy", "ohem", "focal", "boundary", "dice" or "lovasz".
    loss.name = "cross_entropy"
    # "module:function" of your own for the main output, in place of name and terms:
    # docs/finetune.md.
    loss.function = ""
    # A weighted sum in place of loss.name; None: not in it.
    loss.terms = terms = Config()
    terms.cross_entropy = config_dict.placeholder(float)  # weight of this loss in the sum
    terms.ohem = config_dict.placeholder(float)  # likewise
    terms.focal = config_dict.placeholder(float)  # likewise
    terms.boundary = config_dict.placeholder(float)  # likewise
    terms.dice = config_dict.placeholder(float)  # likewise
    terms.lovasz = config_dict.placeholder(float)  # likewise
    # One weight per class; None: all are 1. Or computed from the labels: "inverse_frequency",
    # "median_frequency", "effective_number", or "auto", which is the last one.
    loss.class_weights = config_dict.placeholder(tuple)
    loss.class_weights_beta = 0.999  # of "effective_number", 0..1; 0 gives equal weights
    # Of cross_entropy and ohem: fraction of each label that is spread over all classes, 0..1.
    loss.label_smoothing = 0.0
    loss.ohem_threshold = 0.9  # pixels whose class has a lower probability are kept
    loss.ohem_min_kept = 131072  # pixels of a batch, or of its part with gradient accumulation
    loss.focal_gamma = 2.0  # 0 or more; the larger, the less do easy pixels count
    loss.boundary_radius = 3  # pixels at most this far from another class count more
    loss.boundary_extra_weight = 4.0  # such pixels count 1 + this times as much
    loss.lovasz_per_image = False  # True: sorts within images, which needs no gathering
    # Heads with an auxiliary output (ocr): weight of the loss of the main output.
    loss.main_weight = 1.0
    # Weight of the auxiliary output's loss: cross-entropy, as in the official code.
    loss.aux_weight = 0.4

    # Knowledge distillation: also learns from the class probabilities of a trained network.
    config.distill = distill = Config()
    # A run's folder, a weights file, a PyTorch file, an address on the hub or the name of shipped
    # weights; "": none.
    distill.teacher = ""
    distill.temperature = 1.0  # of both networks' softmax; higher: improbable classes weigh more
    distill.weight = 1.0  # of the divergence from the teacher; the loss on labels has weight 1
    # Pixels where the teacher's largest probability is lower do not count, 0..1.
    distill.min_confidence = 0.0

    # Devices that divide the batch (data) and the height of each image (space); data=-1: all
    # devices that space leaves.
    config.mesh = Config({"data": -1, "space": 1})

    config.eval = evaluation = Config()
    evaluation.every_steps = 0  # steps from one evaluation to the next; 0: every_epochs decides
    evaluation.every_epochs = 10.0  # 0: only after the last step
    evaluation.batch_size = 4  # images per step, over all devices and processes
    evaluation.num_images = 0  # evenly spread over the split; 0: all
    # Pad images to multiples of this: for data of many sizes, each of which is compiled otherwise.
    evaluation.size_step = 1
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
