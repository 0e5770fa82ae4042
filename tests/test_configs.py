"""What the configuration classes refuse, and what they say then."""

import pytest
from groundup.configs import DataArguments, RewardArguments, RunArguments
from groundup.errors import InputError


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({}, "a run needs `dataset` or `datasets`, found neither"),
        ({"dataset": "a", "datasets": []}, "a run needs `dataset` or `datasets`, found both"),
        ({"dataset": ""}, "`dataset` is empty"),
        ({"dataset": " "}, "`dataset` is empty"),
        ({"dataset": "a", "max_rows": 0}, "`max_rows: 0` is not a positive whole number"),
        ({"dataset": "a", "max_eval_rows": -1}, "`max_eval_rows: -1` is not a positive whole number"),
    ],
)
def test_data_arguments_that_cannot_be(settings, what):
    with pytest.raises(InputError) as caught:
        DataArguments(**settings)
    assert caught.value.what == what


def test_reward_arguments_reward_something():
    with pytest.raises(InputError, match="nothing is rewarded"):
        RewardArguments()


@pytest.mark.parametrize("settings", [{"max_skipped_steps": -1}, {"silence_timeout": -0.5}])
def test_limits_of_a_run_are_not_negative(settings):
    with pytest.raises(InputError, match=f"`{next(iter(settings))}: -"):
        RunArguments(**settings)
