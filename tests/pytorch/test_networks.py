"""Networks in checkpoints of other people's trainings: where they are, and which one is meant.

The structures are those that timm 1.0, Lightning 2.6, mmengine 0.10, mmcv 1 and PyTorch write.
"""

import numpy as np
import official
import pytest

from hrnet_jax import from_torch, to_torch
from hrnet_jax.models import VARIANTS
from hrnet_jax.pytorch.convert import convert
from hrnet_jax.pytorch.layouts import LAYOUTS, leaves

SMALL = VARIANTS["w18_small_v1"]
ABOUT = {"epoch": 3, "optimizer": {"state": {0: {"momentum_buffer": np.ones(3)}}}, "lr": [0.1]}


def _network(name="official", head="segmentation", factor=1.0):
    """A state dictionary whose floating-point arrays are multiplied by `factor`."""
    (layout,) = (x for x in LAYOUTS if (x.name, x.head) == (name, head))
    result = {}
    for unit in layout.units(SMALL, 5):
        for leaf in leaves([unit]):
            result[leaf.key] = official.weight(leaf.key, leaf.shape) * np.float32(factor)
        if unit.bn and name != "paddleseg":
            result[f"{unit.bn}.num_batches_tracked"] = np.zeros((), np.int64)
    return result


RAW, AVERAGED = _network(), _network(factor=2)


def _under(prefix, state_dict):
    return {prefix + k: v for k, v in state_dict.items()}


def _is(contents, expected, **options):
    converted = convert(contents, **options)
    found = to_torch(converted.model, converted.variables)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)
    return converted.report


@pytest.mark.parametrize(
    "path", ["model_state_dict", "net", "network", "module", "weights", "a.b.c", "state.0"]
)
def test_containers_of_any_name_and_depth(path):
    contents = RAW
    for name in reversed(path.split(".")):
        contents = [contents] if name == "0" else {name: contents, **ABOUT}
    report = _is(contents, RAW)
    assert report.container == path
    assert f"found under '{path}'" in report.summary()
    outer = path.split(".")[0] if path.count(".") < 2 else "a.b"
    assert {*ABOUT} <= set(report.left_out) or f"{outer}.epoch" in report.left_out


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "net.", "model.net.", "encoder.", "some.other.thing."]
)
def test_prefixes_of_any_name(prefix):
    beside = {"criterion.weight": np.ones(5), "val.iou.confusion": np.zeros((5, 5))}
    report = _is({"state_dict": _under(prefix, RAW) | beside}, RAW)
    assert report.prefix == prefix
    assert report.left_out == dict.fromkeys(beside, "beside the network")
    incomplete = _under(prefix, {k: v for k, v in RAW.items() if k != "last_layer.3.bias"})
    with pytest.raises(ValueError, match=r"missing: last_layer\.3\.bias$"):
        from_torch({"state_dict": incomplete | beside})
    strange = _under(prefix, RAW | {"stage4.0.branches.9.0.conv1.weight": np.ones((2, 2))})
    with pytest.raises(ValueError, match=r"unexpected: stage4\.0\.branches\.9"):
        from_torch(strange)


def test_two_networks_are_an_error_that_lists_them():
    contents = {"student": RAW, "teacher": _under("net.", AVERAGED)}
    with pytest.raises(ValueError, match=r"'student' .*'teacher\.net' .*key='\.\.\.'.*--key"):
        from_torch(contents)
    report = _is(contents, RAW, key="student")
    assert report.left_out == {"teacher": "another set of weights"}
    assert report.others == ("'teacher.net' (raw weights)",)
    for key in ("teacher", "teacher.net"):
        _is(contents, AVERAGED, key=key)
    with pytest.raises(ValueError, match=r"no network under key='x'; found: 'student'"):
        from_torch(contents, key="x")
    together = _under("student.", RAW) | _under("teacher.", AVERAGED)
    with pytest.raises(ValueError, match="holds several networks"):
        from_torch(together)
    _is(together, AVERAGED, key="teacher")


TWO_SETS = {
    "timm": {"state_dict": RAW, "state_dict_ema": AVERAGED, "arch": "hrnet_w18_small"},
    "model_ema": {"model": RAW, "model_ema": _under("module.", AVERAGED)},
    "nested": {"model": RAW, "ema": {"decay": 0.999, "params": AVERAGED}},
    "prefixes": _under("model.", RAW) | _under("ema_model.module.", AVERAGED),
    "AveragedModel": {
        "net": RAW,
        "swa": {"n_averaged": np.array(4), **_under("module.", AVERAGED)},
    },
    "Lightning's StochasticWeightAveraging": {
        "state_dict": _under("model.", RAW),
        "callbacks": {
            "StochasticWeightAveraging": {
                "n_averaged": 2,
                "average_model_state": _under("model.", AVERAGED),
            }
        },
    },
    # These two keep the average where the weights are looked for.
    "Lightning's WeightAveraging": {
        "state_dict": _under("model.", AVERAGED),
        "current_model_state": _under("model.", RAW),
        "averaging_state": {"n_averaged": np.array(2)},
    },
    "mmengine's EMAHook": {
        "meta": {"mmengine_version": "0.10.7"},
        "state_dict": AVERAGED,
        "ema_state_dict": {"steps": np.array(3), **_under("module.", RAW)},
        "message_hub": {},
    },
}


@pytest.mark.parametrize("kind", TWO_SETS)
def test_averages_are_found_said_and_chosen(kind):
    contents = TWO_SETS[kind]
    report = _is(contents, AVERAGED)
    assert report.weights == "ema"
    assert len(report.others) == 1
    assert "(raw weights)" in report.others[0]
    summary = report.summary()
    assert "took the averaged weights" in summary
    assert f"also in the file: {report.others[0]}" in summary
    assert _is(contents, AVERAGED, weights="ema").weights == "ema"
    assert _is(contents, RAW, weights="raw").weights == "raw"


def test_only_averages():
    contents = {"n_averaged": np.array(1), **_under("module.", AVERAGED)}
    assert _is(contents, AVERAGED).weights == "ema"
    with pytest.raises(ValueError, match=r"holds no raw weights.*averaged weights"):
        from_torch(contents, weights="raw")
    with pytest.raises(ValueError, match="holds no ema weights"):
        from_torch(RAW, weights="ema")
    with pytest.raises(ValueError, match=r"unknown weights='best'; known: .*auto"):
        from_torch(RAW, weights="best")


def test_averages_that_have_not_begun_are_not_taken():
    """Lightning keeps a copy of the first weights until the averaging starts."""
    state = {"n_averaged": 0, "average_model_state": AVERAGED}
    contents = {"state_dict": RAW, "callbacks": {"StochasticWeightAveraging": state}}
    report = _is(contents, RAW)
    assert "still the first weights of the training" in report.others[0]
    _is(contents, AVERAGED, key="average_model_state")


def test_averages_of_parameters_get_the_raw_statistics():
    """Many trainers average `named_parameters()`, which has no running statistics."""
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    shadow = {k: v for k, v in AVERAGED.items() if not k.endswith(buffers)}
    expected = {k: RAW[k] if k.endswith(buffers) else v for k, v in AVERAGED.items()}
    report = _is({"model": RAW, "ema": {"shadow": shadow}}, expected)
    assert "running statistics; those of 'model' are taken" in report.summary()
    with pytest.raises(ValueError, match="missing: "):
        from_torch({"ema": {"shadow": shadow}})


def test_buffers_of_mmcv():
    """Which set is the averaged one depends on the run; the one that mmcv loads is taken."""
    parameters = {k: v for k, v in AVERAGED.items() if not k.endswith(("_mean", "_var", "tracked"))}
    buffers = {f"ema_{k.replace('.', '_')}": v for k, v in parameters.items()}
    contents = {"meta": {}, "state_dict": RAW | buffers}
    report = _is(contents, RAW)
    assert f"{len(buffers)} buffers named 'ema_...'" in report.others[0]
    assert "exchanges the two sets" in report.summary()
    _is(contents, RAW | parameters, weights="ema")


def test_too_many_networks_are_refused():
    """Instead of looking at each of them for hours."""
    anchor, value = "layer1.0.conv1.weight", np.ones((1, 1), np.float32)
    with pytest.raises(ValueError, match="more than 50 networks"):
        from_torch({f"n{k}.{anchor}": value for k in range(100_000)})
    nested = {}
    for _ in range(100_000):
        nested = {"a": nested, "b": [{}]}
    with pytest.raises(ValueError, match="holds a dict instead of a state dictionary"):
        from_torch(nested)


def test_networks_with_equal_keys_are_told_apart():
    contents = {"a.b": RAW, "a": {"b": AVERAGED}}
    with pytest.raises(ValueError, match="holds several networks"):
        from_torch(contents)


def test_the_same_object_twice_is_one_network():
    _is({"model": RAW, "state_dict": RAW}, RAW)


def test_containers_within_themselves():
    contents = {"state_dict": RAW}
    contents["itself"] = contents
    contents["list"] = [contents]
    _is(contents, RAW)


@pytest.mark.parametrize(
    ("contents", "head"),
    [
        (_network("official", "classification"), "classification"),
        (_network("timm_pooled", "features"), "features"),
        (_network("timm_features", "features"), "features"),
        (_under("backbone.", _network("official", "features")), "features"),
        (_under("encoder.model.", _network("timm_features", "features")), "features"),
        (_network("mmsegmentation", "ocr"), "ocr"),
        (_network("paddleseg", "segmentation"), "segmentation"),
    ],
    ids=["ImageNet", "no classes", "features_only", "mmdet", "smp", "mmsegmentation", "PaddleSeg"],
)
def test_a_backbone_under_any_head(contents, head):
    unknown = {"neck.fpn.0.conv.weight": np.ones((3, 3)), "decoder.0.bias": np.ones(3)}
    converted = convert({"state_dict": contents | unknown}, backbone_only=True)
    assert converted.report.head == head
    assert set(unknown) <= set(converted.report.left_out)
    # Another head in the place of the known one.
    first = next(iter(contents))
    prefix = first.removesuffix("conv1.weight") if "backbone" not in first else ""
    strange = {f"{prefix}decode_head.x": np.ones(3), f"{prefix}last_layer.9.weight": np.ones(3)}
    converted = convert(contents | strange, backbone_only=True)
    assert converted.report.head == "features"
    gone = next(k for k in contents if "layer1.0.conv1" in k or "la1.bb_layer2_1.conv1" in k)
    incomplete = {k: v for k, v in contents.items() if k != gone}
    with pytest.raises(ValueError, match=r"missing: .*layer1|missing: .*la1"):
        convert(incomplete, backbone_only=True)


def test_paddleseg_says_that_it_pads_otherwise():
    report = convert(_network("paddleseg", "segmentation")).report
    assert report.num_batches_tracked is None
    assert "PaddleSeg pads its stride-2 convolutions" in report.summary()


def test_to_torch_for_timm_and_smp():
    classifier = from_torch(_network("official", "classification"))
    timm = to_torch(*classifier, layout="timm")
    assert list(timm) == list(to_torch(*classifier))
    encoder = to_torch(*classifier, layout="smp")
    assert list(encoder) == [f"model.{k}" for k in _network("timm_features", "features")]
    segmenter = from_torch(RAW)
    for layout, prefix in (("timm", ""), ("smp", "model.")):
        with pytest.warns(UserWarning, match="backbone without the head"):
            backbone = to_torch(*segmenter, layout=layout)
        assert list(backbone) == [prefix + k for k in _network("official", "features")]
        np.testing.assert_array_equal(backbone[f"{prefix}conv1.weight"], RAW["conv1.weight"])
    with pytest.raises(ValueError, match=r"no layout 'paddleseg'.*official.*timm"):
        to_torch(*segmenter, layout="paddleseg")
