"""When a run ends early."""

import pytest

from hrnet_jax.configs import common
from hrnet_jax.train.config import check_config
from hrnet_jax.train.early_stopping import reason_to_stop


@pytest.mark.parametrize(
    ("metrics", "patience", "reason"),
    [
        ([], 1, ""),
        ([0.5], 1, ""),
        ([0.5, 0.5], 1, "1 evaluations in a row are not above 0.5000 of step 10"),
        ([0.5, 0.4, 0.6], 2, ""),
        ([0.5, 0.6, 0.4, 0.6], 2, "2 evaluations in a row are not above 0.6000 of step 20"),
        ([0.5, 0.6, 0.4, None], 2, "2 evaluations in a row are not above 0.6000 of step 20"),
        ([0.5, 0.4, 0.3], 0, ""),
        ([None, 0.1], 1, ""),
        ([None, None], 2, "none of 2 evaluations has a finite metric"),
    ],
)
def test_reason_to_stop(metrics, patience, reason):
    evaluations = [(10 * (k + 1), metric) for k, metric in enumerate(metrics)]
    assert reason_to_stop(evaluations, patience) == reason


@pytest.mark.parametrize("change", [{"data.eval_split": ""}, {"eval.every_epochs": 0.0}])
def test_patience_without_evaluations_is_refused(change):
    config = common.get_config()
    config.update_from_flattened_dict({"eval.patience": 3, **change})
    with pytest.raises(ValueError, match=r"eval\.patience=3 needs evaluations during the run"):
        check_config(config)
