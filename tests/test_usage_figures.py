"""The tokens that providers report, in the shapes that they use."""

import pytest

from drafting.provider.usage import added, figures

SHAPES = {
    "OpenAI": (
        {
            "prompt_tokens": 2006,
            "completion_tokens": 300,
            "total_tokens": 2306,
            "prompt_tokens_details": {"cached_tokens": 1920, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 64, "accepted_prediction_tokens": 0},
        },
        (2006, 300, 1920, 64),
    ),
    "DeepSeek": (
        {
            "prompt_tokens": 100,
            "completion_tokens": 20,
            "prompt_cache_hit_tokens": 64,
            "prompt_cache_miss_tokens": 36,
            "completion_tokens_details": {"reasoning_tokens": 7},
        },
        (100, 20, 64, 7),
    ),
    "LiteLLM for Claude": (
        {
            "prompt_tokens": 100,
            "completion_tokens": 20,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 90,
            "prompt_tokens_details": None,
        },
        (100, 20, 90, None),
    ),
    "a server that counts no details": ({"prompt_tokens": 5, "completion_tokens": 3}, (5, 3, None, None)),
    "numbers as floats": ({"prompt_tokens": 5.0, "completion_tokens": 3.0}, (5, 3, None, None)),
    "more cached than read": (
        {"prompt_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 9}},
        (5, 3, 5, None),
    ),
    "details that are none": (
        {"prompt_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": [], "completion_tokens_details": "x"},
        (5, 3, None, None),
    ),
    "figures of details that are none": (
        {
            "prompt_tokens": 5,
            "completion_tokens": 3,
            "prompt_tokens_details": {"cached_tokens": -1},
            "completion_tokens_details": {"reasoning_tokens": True},
        },
        (5, 3, None, None),
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_is_read(shape: str) -> None:
    reported, expected = SHAPES[shape]
    usage = figures(reported)
    assert usage is not None
    names = ("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens")
    assert tuple(usage.get(name) for name in names) == expected


@pytest.mark.parametrize(
    "reported",
    [
        None,
        "5",
        5,
        [],
        {"prompt_tokens": -1},
        {"prompt_tokens": "5"},
        {"completion_tokens": 0.5},
        {"prompt_tokens": 1e300},
    ],
)
def test_figures_that_no_reply_can_have_used_are_none(reported: object) -> None:
    assert figures(reported) is None


def test_a_sum_has_each_figure_that_one_of_the_calls_has() -> None:
    first = added(None, {"input_tokens": 5, "output_tokens": 2, "cached_input_tokens": 4})
    both = added(first, {"input_tokens": 7, "output_tokens": 1, "reasoning_tokens": 1})
    assert both == {"input_tokens": 12, "output_tokens": 3, "cached_input_tokens": 4, "reasoning_tokens": 1}
    assert first == {"input_tokens": 5, "output_tokens": 2, "cached_input_tokens": 4}
