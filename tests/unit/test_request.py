"""SamplingParams: every wrong value is refused in words, and the error names the field."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from kvtrove.request import MAX_LOGPROBS, MAX_STOPS, CompletionOutput, RequestError, SamplingParams

WRONG = [
    ({"n": 1.5}, "n: 1.5 must be a whole number"),
    ({"max_tokens": "8"}, "max_tokens: '8' must be a number"),
    ({"temperature": "hot"}, "temperature: 'hot' must be a number"),
    ({"n": 0}, "n: 0 must lie between 1 and 2147483647"),
    ({"temperature": -0.1}, "temperature: -0.1 must lie between 0 and 100"),
    ({"temperature": 1e39}, "temperature: 1e+39 must lie between 0 and 100"),
    ({"temperature": float("inf")}, "temperature: inf must lie between 0 and 100"),
    ({"temperature": float("nan")}, "temperature: nan must lie between 0 and 100"),
    ({"top_p": 0.0}, "top_p: 0.0 must be above 0 and at most 1"),
    ({"top_p": 1.01}, "top_p: 1.01 must be above 0 and at most 1"),
    ({"top_k": -2}, "top_k: -2 must lie between -1 and 2147483647"),
    ({"min_p": -0.1}, "min_p: -0.1 must lie between 0 and 1"),
    ({"min_p": 1.5}, "min_p: 1.5 must lie between 0 and 1"),
    ({"repetition_penalty": 0.0}, "repetition_penalty: 0.0 must lie between 0.01 and 100"),
    ({"repetition_penalty": 1e-39}, "repetition_penalty: 1e-39 must lie between 0.01 and 100"),
    ({"repetition_penalty": None}, "repetition_penalty: None must be a number"),
    ({"length_penalty": 400}, "length_penalty: 400 must lie between -10 and 10"),
    ({"length_penalty": -1e308}, "length_penalty: -1e+308 must lie between -10 and 10"),
    ({"seed": 1.0}, "seed: 1.0 must be a whole number"),
    ({"seed": 2**64}, f"seed: {2**64} must lie between {-(2**63)} and {2**64 - 1}"),
    (
        {"seed": 10**5000},
        f"seed: a number of 16610 bits must lie between {-(2**63)} and {2**64 - 1}",
    ),
    ({"logit_bias": {5: 1e39}}, "logit_bias: of token 5, 1e+39 must lie between -100 and 100"),
    ({"logit_bias": {5: 10**400}}, "logit_bias: of token 5, a number of 1329 bits must lie between -100 and 100"),
    ({"logit_bias": {5: float("nan")}}, "logit_bias: of token 5, nan must lie between -100 and 100"),
    ({"logit_bias": {"5": 1.0}}, "logit_bias: '5' is not a token id, which is a whole number"),
    ({"allowed_token_ids": [1] * 300_001}, "allowed_token_ids: 300001 token ids are more than the 300000 allowed"),
    ({"stop_token_ids": [2.5]}, "stop_token_ids: 2.5 is not a token id, which is a whole number"),
    ({"stop": [1]}, "stop: every stop must be a string"),
    ({"stop": "x" * 4097}, "stop: a string has more than 4096 characters"),
    ({"presence_penalty": 2.1}, "presence_penalty: 2.1 must lie between -2 and 2"),
    ({"frequency_penalty": -3.0}, "frequency_penalty: -3.0 must lie between -2 and 2"),
    ({"max_tokens": 0}, "max_tokens: 0 must lie between 1 and 2147483647"),
    ({"min_tokens": -1}, "min_tokens: -1 must lie between 0 and 2147483647"),
    ({"min_tokens": 20, "max_tokens": 10}, "min_tokens: 20 is more than max_tokens (10)"),
    ({"logprobs": -1}, f"logprobs: -1 must lie between 0 and {MAX_LOGPROBS}"),
    ({"logprobs": 101}, f"logprobs: 101 must lie between 0 and {MAX_LOGPROBS}"),
    ({"prompt_logprobs": 101}, f"prompt_logprobs: 101 must lie between 0 and {MAX_LOGPROBS}"),
    ({"stop": ""}, "stop: an empty string would stop at once; leave it out"),
    ({"stop": ["a", ""]}, "stop: an empty string would stop at once; leave it out"),
    ({"stop": ["x"] * 65}, f"stop: 65 strings are more than the {MAX_STOPS} allowed"),
    ({"stop": "x", "detokenize": False}, "stop: stop strings need detokenize=True"),
    ({"beam_width": -1}, "beam_width: -1 must lie between 0 and 2147483647"),
    ({"beam_width": 2, "n": 3}, "beam_width: 2 beams cannot return n=3 sequences; raise it to 3"),
    ({"beam_width": 2, "stop": "x"}, "stop: beam search ends at stop tokens; leave stop strings out"),
    ({"allowed_token_ids": []}, "allowed_token_ids: an empty list allows no token"),
    ({"exact_prefix": "no"}, "exact_prefix: 'no' is not one of true, false"),
    ({"output_kind": "stream"}, "output_kind: 'stream' is not one of cumulative, delta, final_only"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_value_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**fields)
    assert str(caught.value) == message
    assert caught.value.param == message.split(":")[0]


LIMITS = [
    {"temperature": 0.0},
    {"temperature": 100.0},
    {"top_p": 1.0},
    {"top_p": 1e-6},
    {"top_k": -1},
    {"min_p": 1.0},
    {"presence_penalty": -2.0, "frequency_penalty": 2.0},
    {"max_tokens": None, "min_tokens": 1000},
    {"max_tokens": 10, "min_tokens": 10},
    {"logprobs": 0, "prompt_logprobs": MAX_LOGPROBS},
    {"stop": ["x"] * MAX_STOPS},
    {"beam_width": 3, "n": 3},
    {"allowed_token_ids": None},
]


@pytest.mark.parametrize("fields", LIMITS, ids=str)
def test_the_last_value_that_works_is_accepted(fields: dict[str, Any]) -> None:
    params = SamplingParams(**fields)
    assert {name: getattr(params, name) for name in fields if name != "stop"} == {
        name: value for name, value in fields.items() if name != "stop"
    }


def test_token_ids_are_kept_once_and_in_their_order() -> None:
    params = SamplingParams(stop_token_ids=[9, 3, 9], allowed_token_ids=[4, 4, 2] * 1000)
    assert (params.stop_token_ids, params.allowed_token_ids) == ((9, 3), (4, 2))


def test_defaults_are_valid_and_sample_one_sequence_of_16_tokens() -> None:
    params = SamplingParams()
    assert (params.n, params.max_tokens, params.temperature, params.beam_width) == (1, 16, 1.0, 0)


@pytest.mark.parametrize(("given", "kept"), [(None, ()), ("a", ("a",)), (["a", "b"], ("a", "b")), (("a",), ("a",))])
def test_stop_strings_become_a_tuple(given: Any, kept: tuple[str, ...]) -> None:
    assert SamplingParams(stop=given).stop == kept


def test_a_value_cannot_change_after_it_was_checked() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingParams().n = 0  # type: ignore[misc]
    assert SamplingParams(stop_token_ids=[1, 2]).stop_token_ids == (1, 2)


@pytest.mark.parametrize(("temperature", "greedy"), [(0.0, True), (1e-6, True), (0.01, False), (1.0, False)])
def test_temperatures_that_round_to_zero_are_greedy(temperature: float, greedy: bool) -> None:
    assert SamplingParams(temperature=temperature).greedy is greedy


@pytest.mark.parametrize(
    ("fields", "penalised"),
    [
        ({}, False),
        ({"repetition_penalty": 1.1}, True),
        ({"presence_penalty": 0.1}, True),
        ({"frequency_penalty": -0.1}, True),
    ],
)
def test_penalised_says_whether_earlier_tokens_matter(fields: dict[str, float], penalised: bool) -> None:
    assert SamplingParams(**fields).penalised is penalised  # type: ignore[arg-type]


def test_a_request_error_is_a_value_error_that_knows_its_field() -> None:
    assert isinstance(RequestError("no", "prompt"), ValueError)
    assert RequestError("no").param is None


def test_a_completion_is_finished_once_it_has_a_reason() -> None:
    completion = CompletionOutput(index=0, text="", token_ids=[])
    assert not completion.finished
    completion.finish_reason = "stop"
    assert completion.finished
