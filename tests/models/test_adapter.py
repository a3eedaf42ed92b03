"""Outputs of other people's models."""

from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch

from udas_fast.errors import InputError
from udas_fast.models import heads

P, A = torch.zeros(2, 5, 4, 6), torch.ones(2, 5, 3, 3)


@pytest.mark.parametrize(
    ("output", "auxiliary"),
    [
        (P, None),
        ((P,), None),
        ((P, A), A),
        ([P, A], A),
        ((P, None), None),
        ({"out": P}, None),
        (OrderedDict(out=P, aux=A), A),
        (SimpleNamespace(logits=P), None),
    ],
)
def test_every_form_gives_its_heads(output, auxiliary):
    primary, second = heads(output)
    assert primary is P
    assert second is auxiliary


def test_a_mapping_that_also_has_logits_as_in_transformers():
    class Output(OrderedDict):
        logits = P

    assert heads(Output(loss=torch.tensor(1.0), logits=P)) == (P, None)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"logit": P}, "dict with keys logit, expected a tensor"),
        ({}, "dict with keys none"),
        ((P, A, A), "tuple of length 3"),
        (None, "NoneType"),
        ("logits", "found str"),
        ((P, "x"), "auxiliary model output: found str"),
        (P[0], r"torch.float32 \[5, 4, 6\], expected floating-point logits \[N, C, h, w\]"),
        (P.long(), r"torch.int64"),
        ((P, A[:, :4]), r"auxiliary model output: found \[2, 4, 3, 3\]"),
    ],
)
def test_anything_else_is_refused_in_words(output, message):
    with pytest.raises(InputError, match=message):
        heads(output)
