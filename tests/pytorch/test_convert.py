"""Conversion of PyTorch checkpoints: every layout, strict both ways."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import official
import pytest

from hrnet_jax import from_torch, to_torch
from hrnet_jax.models import HEADS, VARIANTS, create_model
from hrnet_jax.pytorch.convert import convert
from hrnet_jax.pytorch.files import write_tensors
from hrnet_jax.pytorch.layouts import LAYOUTS, leaves

SMALL = VARIANTS["w18_small_v1"]
CASES = {f"{layout.name}-{layout.head}": layout for layout in LAYOUTS}
# Nothing public names a pyramid's parameters.
assert {layout.head for layout in LAYOUTS} == set(HEADS) - {"pyramid"}


def _state_dict(layout, variant=SMALL, num_classes=5):
    """Numbers that belong to the keys, as a file of this layout would hold them."""
    result = {}
    for unit in layout.units(variant, num_classes):
        for leaf in leaves([unit]):
            result[leaf.key] = official.weight(leaf.key, leaf.shape)
        if unit.bn and layout.name != "paddleseg":
            result[f"{unit.bn}.num_batches_tracked"] = np.zeros((), np.int64)
    return result


def _flat(variables):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(value)
        for path, value in jax.tree_util.tree_leaves_with_path(variables)
    }


def _equal(a, b):
    assert list(a) == list(b)
    for key in a:
        assert a[key].dtype == b[key].dtype, key
        assert a[key].tobytes() == b[key].tobytes(), key


@pytest.mark.parametrize("case", CASES)
def test_every_layout_is_recognised_and_complete(case):
    layout = CASES[case]
    state_dict = _state_dict(layout)
    converted = convert(state_dict)
    model, report = converted.model, converted.report
    assert (report.layout, report.head, report.variant) == (layout.name, layout.head, SMALL.name)
    assert (model.variant, model.head) == (SMALL, layout.head)
    assert model.num_classes == (5 if HEADS[layout.head].has_classes else 0)
    wanted = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert {k: (v.shape, v.dtype) for k, v in _flat(converted.variables).items()} == {
        jax.tree_util.keystr(k, simple=True, separator="/"): (v.shape, v.dtype)
        for k, v in jax.tree_util.tree_leaves_with_path(wanted)
    }
    counters = [k for k in state_dict if k.endswith("num_batches_tracked")]
    assert len(report.loaded) + len(report.left_out) + len(counters) == len(state_dict)


@pytest.mark.parametrize("case", [c for c in CASES if CASES[c].writable])
def test_there_and_back_is_the_identity(case):
    layout = CASES[case]
    state_dict = _state_dict(layout)
    _equal(to_torch(*from_torch(state_dict), layout=layout.name), state_dict)


@pytest.mark.parametrize("name", ["ocr_w18_align", "cls_w18_small_v1", "pose_w32"])
def test_official_state_dicts_come_back_in_their_order(name):
    state_dict = official.load(name).state_dict()
    _equal(to_torch(*from_torch(state_dict)), state_dict)


def test_values_land_where_they_belong():
    state_dict = _state_dict(CASES["official-segmentation"])
    variables = _flat(from_torch(state_dict)[1])
    for key, path, order in [
        ("conv1.weight", "params/backbone/stem/conv1/conv/kernel", (2, 3, 1, 0)),
        ("bn2.running_var", "batch_stats/backbone/stem/conv2/bn/var", (0,)),
        (
            "layer1.0.downsample.0.weight",
            "params/backbone/layer1/block0/downsample/conv/kernel",
            (2, 3, 1, 0),
        ),
        (
            "transition2.2.0.1.weight",
            "params/backbone/transition2/branch2/bn/scale",
            (0,),
        ),
        (
            "stage4.0.fuse_layers.3.0.1.0.weight",
            "params/backbone/stage4/module0/fuse/to3_from0_conv1/conv/kernel",
            (2, 3, 1, 0),
        ),
        (
            "stage3.0.branches.2.1.bn2.running_mean",
            "batch_stats/backbone/stage3/module0/branch2/block1/conv2/bn/mean",
            (0,),
        ),
        ("last_layer.0.bias", "params/head/hidden/conv/bias", (0,)),
        ("last_layer.3.weight", "params/head/classifier/kernel", (2, 3, 1, 0)),
    ]:
        np.testing.assert_array_equal(variables[path], state_dict[key].transpose(order))


# ---- strictness


@pytest.mark.parametrize("case", CASES)
def test_one_wrong_key_is_refused_by_name(case):
    layout = CASES[case]
    state_dict = _state_dict(layout)
    keys = list(state_dict)
    head = keys[-1] if keys[-1] != "classifier.bias" else "final_layer.0.weight"
    # One from the head, and one each from stem, branch and fusion.
    ends = ("conv1.weight", "conv1._conv.weight", "branches.0.0.bn1.running_mean")
    chosen = [k for k in keys if k.endswith(ends)]
    counters = [] if layout.name == "paddleseg" else ["num_batches_tracked"]
    for key in (chosen[0], chosen[-1], *counters, head):
        key = next(k for k in keys if k.endswith(key))
        missing = {k: v for k, v in state_dict.items() if k != key}
        with pytest.raises(ValueError, match=f"missing: {key}$"):
            from_torch(missing)
        if state_dict[key].shape:
            misshaped = state_dict | {key: np.zeros((3, *state_dict[key].shape[1:]), np.float32)}
            with pytest.raises(ValueError, match=rf"misshaped: {key}: \(3,.* instead of \("):
                from_torch(misshaped)
    for extra in ("stage4.0.branches.9.conv1.weight", "head.weight", "bn9.num_batches_tracked"):
        with pytest.raises(ValueError, match=f"unexpected: {extra}$"):
            from_torch(state_dict | {extra: np.zeros((2, 2), np.float32)})


@pytest.mark.parametrize("layout", LAYOUTS, ids=CASES)
def test_any_single_missing_key_is_refused(layout):
    """Every key of the head, whatever it does to recognition."""
    state_dict = _state_dict(layout)
    units = [u for u in layout.units(SMALL, 5) if u.path and u.path[0] == "head"]
    for leaf in leaves(units):
        missing = {k: v for k, v in state_dict.items() if k != leaf.key}
        with pytest.raises(ValueError, match=leaf.key):
            from_torch(missing)


def test_wrong_width_is_named():
    state_dict = _state_dict(CASES["official-segmentation"], VARIANTS["w30"])
    assert from_torch(state_dict)[0].variant.name == "w30"
    with pytest.raises(
        ValueError, match=r"does not fit HRNet w48.*misshaped: transition1\.0\.0\.w"
    ):
        from_torch(state_dict, variant="w48")


def test_own_variant(tiny):
    state_dict = _state_dict(CASES["official-segmentation"], tiny)
    with pytest.raises(ValueError, match="does not fit HRNet"):
        from_torch(state_dict)
    model, variables = from_torch(state_dict, variant=tiny)
    _equal(to_torch(model, variables), state_dict)


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match=r"not an HRNet.*layer4\.0\.conv1\.weight.*mmsegmentation"):
        from_torch({"layer4.0.conv1.weight": np.zeros((3, 3)), "fc.weight": np.zeros((3, 3))})
    with pytest.raises(ValueError, match="holds a dict instead of a state dictionary"):
        from_torch({"state_dict": {}, "epoch": 3})


def test_values_that_are_no_weights():
    state_dict = _state_dict(CASES["official-pose"])
    with pytest.raises(ValueError, match=r"'bn1\.bias' holds int32 numbers"):
        from_torch(state_dict | {"bn1.bias": np.zeros(64, np.int32)})
    with pytest.raises(ValueError, match=r"'bn1\.bias' holds numbers that are not finite"):
        from_torch(state_dict | {"bn1.bias": np.full(64, np.nan, np.float32)})
    with pytest.raises(ValueError, match=r"'bn1\.bias' holds numbers that are not finite"):
        from_torch(state_dict | {"bn1.bias": np.full(64, 1e300)})
    with pytest.raises(ValueError, match=r"'bn1\.bias' is a dict, not a tensor"):
        from_torch(state_dict | {"bn1.bias": {}})
    report = convert(state_dict | {"epoch": {}, "criterion.weight": np.ones(3)}).report
    assert report.left_out == {
        "epoch": "training state, not weights",
        "criterion.weight": "beside the network",
    }


# ---- what files look like


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model."])
def test_containers_and_prefixes(prefix):
    bare = _state_dict(CASES["official-segmentation"])
    state_dict = {prefix + k: v for k, v in bare.items()}
    state_dict[prefix.removesuffix("model.") + "loss.criterion.weight"] = np.ones(19, np.float32)
    file = {"epoch": 484, "best_mIoU": 0.8, "state_dict": state_dict, "optimizer": {"state": {}}}
    converted = convert(file)
    _equal(to_torch(converted.model, converted.variables), bare)
    left_out = converted.report.left_out
    assert set(left_out) == {
        "epoch",
        "best_mIoU",
        "optimizer",
        prefix.removesuffix("model.") + "loss.criterion.weight",
    }
    summary = converted.report.summary()
    assert "official layout, HRNet w18_small_v1, segmentation head, 5 classes" in summary
    assert "left out 3 (training state, not weights): epoch, best_mIoU, optimizer" in summary
    assert f"loaded {len(converted.report.loaded)} arrays, missing 0" in summary


def test_the_same_key_twice_is_refused():
    state_dict = _state_dict(CASES["official-segmentation"])
    with pytest.raises(ValueError, match=r"'conv1.weight' and 'module.conv1.weight'"):
        from_torch(state_dict | {"module.conv1.weight": state_dict["conv1.weight"]})


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files(tmp_path, suffix):
    state_dict = _state_dict(CASES["official-pose"])
    path = tmp_path / f"pose.{suffix}"
    write_tensors(path, state_dict)
    _equal(to_torch(*from_torch(path)), state_dict)
    del state_dict["final_layer.bias"]
    write_tensors(path, state_dict)
    with pytest.raises(ValueError, match=rf"pose\.{suffix}: .*missing: final_layer\.bias"):
        from_torch(str(path))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_dtypes_are_converted_and_reported(dtype):
    state_dict = _state_dict(CASES["official-pose"])
    floats = [k for k, v in state_dict.items() if v.dtype == np.float32]
    stored = state_dict | {k: state_dict[k].astype(dtype) for k in floats}
    converted = convert(stored)
    name = np.dtype(dtype).name
    assert converted.report.converted == {f"{name} -> float32": len(floats)}
    assert f"converted {len(floats)} arrays {name} -> float32" in converted.report.summary()
    found = _flat(converted.variables)["params/backbone/stem/conv1/bn/bias"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, stored["bn1.bias"].astype(np.float32))


def test_float64_variables():
    state_dict = {
        k: v.astype(np.float64) if v.ndim else v
        for k, v in _state_dict(CASES["official-pose"]).items()
    }
    with pytest.raises(ValueError, match="jax_enable_x64"):
        from_torch(state_dict, param_dtype=jnp.float64)
    with jax.enable_x64(True):
        model, variables = from_torch(state_dict, dtype=jnp.float64, param_dtype=jnp.float64)
        _equal(to_torch(model, variables), state_dict)


def test_variables_are_copies():
    state_dict = _state_dict(CASES["official-pose"])
    _, variables = from_torch(state_dict)
    state_dict["bn1.bias"][:] = 9
    assert not np.any(_flat(variables)["params/backbone/stem/conv1/bn/bias"] == 9)


def test_pytorch_0_4_files():
    """No counters; and scales whose meaning depends on the normalisation they were trained with."""
    full = _state_dict(CASES["official-segmentation"])
    old = {k: v for k, v in full.items() if not k.endswith("num_batches_tracked")}
    converted = convert(old)
    assert converted.report.num_batches_tracked is None
    _equal(to_torch(converted.model, converted.variables), full)

    old["bn1.weight"] = -old["bn1.weight"]
    with pytest.raises(ValueError, match=r"bn1\.weight and others: say inplace_abn=True"):
        from_torch(old)
    path = "params/backbone/stem/conv1/bn/scale"
    plain = _flat(from_torch(old, inplace_abn=False)[1])[path]
    np.testing.assert_array_equal(plain, old["bn1.weight"])
    inplace = _flat(from_torch(old, inplace_abn=True)[1])
    np.testing.assert_allclose(inplace[path], full["bn1.weight"] + 1e-5, rtol=1e-7)
    np.testing.assert_allclose(
        inplace["params/head/hidden/bn/scale"], full["last_layer.1.weight"] + 1e-5, rtol=1e-7
    )
    # Newer files mean what they say, negative scales included.
    from_torch(full | {"bn1.weight": old["bn1.weight"]})


def test_counters_are_reported_and_written():
    state_dict = _state_dict(CASES["official-segmentation"])
    trained = state_dict | {
        k: np.array(120_000) for k in state_dict if k.endswith("num_batches_tracked")
    }
    converted = convert(trained)
    assert converted.report.num_batches_tracked == 120_000
    back = to_torch(converted.model, converted.variables, num_batches_tracked=120_000)
    _equal(back, trained)


# ---- resize mode


@pytest.mark.parametrize(
    ("case", "expected"),
    [("official-segmentation", False), ("official-ocr", True), ("mmsegmentation-ocr", False)],
)
def test_align_corners_default(case, expected):
    converted = convert(_state_dict(CASES[case]))
    assert converted.model.align_corners is expected
    assert converted.report.align_corners == (expected, "the layout's default")
    asked = convert(_state_dict(CASES[case]), align_corners=not expected)
    assert asked.model.align_corners is not expected
    assert asked.report.align_corners == (not expected, "asked for")


@pytest.mark.parametrize("value", [True, False])
def test_align_corners_of_an_mmsegmentation_config(value):
    config = (
        f"decode_head=dict(channels=512, align_corners={value}),\nx=dict(align_corners={value})"
    )
    file = {"meta": {"config": config}, "state_dict": _state_dict(CASES["mmsegmentation-ocr"])}
    assert convert(file).report.align_corners == (value, "the file")
    file["meta"]["config"] += f"y=dict(align_corners={not value})"
    assert convert(file).report.align_corners == (False, "the layout's default")


# ---- other layouts


@pytest.mark.parametrize("head", ["segmentation", "ocr"])
def test_mmsegmentation_holds_the_same_network(head):
    """Without biases in front of a normalisation: they move into its running mean."""
    model, variables = from_torch(_state_dict(CASES[f"official-{head}"]))
    written = to_torch(model, variables, layout="mmsegmentation")
    assert set(written) == set(_state_dict(CASES[f"mmsegmentation-{head}"]))
    again, folded = from_torch(written)
    before, after = _flat(variables), _flat(folded)
    units = {"segmentation": ["hidden"], "ocr": ["aux_hidden", "pixels"]}[head]
    for unit in units:
        bias, mean = f"params/head/{unit}/conv/bias", f"batch_stats/head/{unit}/bn/mean"
        assert not np.any(after[bias])
        np.testing.assert_array_equal(after[mean], before[mean] - before[bias])
        del before[bias], after[bias], before[mean], after[mean]
    # The files do not say how to resize; mmsegmentation's configurations never align corners.
    assert again == model.clone(align_corners=False)
    _equal(before, after)


def test_absent_biases_are_reported():
    report = convert(_state_dict(CASES["timm_ssld-classification"])).report
    assert list(report.filled) == [
        f"params/head/{name}/conv/bias" for name in ("downsamp0", "downsamp1", "downsamp2", "final")
    ]
    assert "not in this layout, set to 0: params/head/downsamp0/conv/bias" in report.summary()


def test_timm_features_leave_the_wider_maps_out():
    converted = convert(_state_dict(CASES["timm_features-features"]))
    assert all(k.startswith("incre_modules.") for k in converted.report.left_out)
    assert "incre_modules.3.0.conv2.weight" in converted.report.left_out
    core = _state_dict(CASES["official-features"])
    _equal(to_torch(converted.model, converted.variables), core)


def test_to_torch_refuses():
    model, variables = from_torch(_state_dict(CASES["official-pose"]))
    with pytest.raises(ValueError, match=r"no layout 'mmsegmentation' for the pose head.*official"):
        to_torch(model, variables, layout="mmsegmentation")
    with pytest.raises(ValueError, match="no layout 'official' for the pyramid head"):
        to_torch(create_model(SMALL, head="pyramid"), variables)
    with pytest.raises(ValueError, match="misshaped: params/head/heatmaps/kernel"):
        to_torch(create_model(SMALL, 6, "pose"), variables)
    with pytest.raises(ValueError, match="missing: batch_stats/backbone/stem/conv1/bn/mean"):
        to_torch(model, {"params": variables["params"]})


def test_to_torch_says_that_images_statistics_stay_behind():
    model, variables = from_torch(_state_dict(CASES["official-segmentation"]))
    expected = to_torch(model, variables)
    model = create_model(SMALL, 5, image_statistics=0.25)
    with pytest.warns(UserWarning, match=r"a PyTorch file cannot store image_statistics=0\.25"):
        _equal(to_torch(model, variables), expected)


# ---- the tables


@pytest.mark.parametrize(
    ("head", "variant", "num_classes", "count"),
    [
        ("segmentation", "w18_small_v1", 19, 1_540_819),
        ("segmentation", "w18_small_v2", 19, 3_939_579),
        ("segmentation", "w18", 19, 9_641_119),
        ("segmentation", "w48", 19, 65_859_379),
        ("ocr", "w48", 19, 70_372_678),
        ("classification", "w18_small_v1", 1000, 13_187_464),
        ("classification", "w18", 1000, 21_299_004),
        ("classification", "w48", 1000, 77_469_864),
        ("pose", "w32", 17, 28_536_113),
    ],
)
def test_parameter_counts(head, variant, num_classes, count):
    units = CASES[f"official-{head}"].units(VARIANTS[variant], num_classes)
    trained = [leaf for leaf in leaves(units) if leaf.path[0] == "params"]
    assert sum(int(np.prod(leaf.shape)) for leaf in trained) == count


@pytest.mark.parametrize(("variant", "head"), [("w18_small_v2", "segmentation_v1"), ("w30", "ocr")])
def test_tables_list_the_networks_parameters(variant, head):
    """For other depths and widths than in the tests above."""
    model = create_model(variant, 5, head)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    ours = {
        tuple(str(p.key) for p in path): v.shape
        for path, v in jax.tree_util.tree_leaves_with_path(shapes)
    }
    table = leaves(CASES[f"official-{head}"].units(VARIANTS[variant], 5))
    assert {leaf.path: np.prod(leaf.shape) for leaf in table} == {
        path: np.prod(shape) for path, shape in ours.items()
    }
