"""Outputs of all models in one form, and that form in torch's compilers."""

from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch

from udas_fast.errors import InputError
from udas_fast.models import ModelConfig, SegmentationOutput, build_model, to_output

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
        (SegmentationOutput(P, A), A),
    ],
)
def test_every_form_gives_its_heads(output, auxiliary):
    primary, second = to_output(output)
    assert primary is P
    assert second is auxiliary


def test_a_mapping_that_also_has_logits_as_in_transformers():
    class Output(OrderedDict):
        logits = P

    assert tuple(to_output(Output(loss=torch.tensor(1.0), logits=P))) == (P, None)


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
        (SegmentationOutput(P, A[:, :4]), r"auxiliary model output: found \[2, 4, 3, 3\]"),
    ],
)
def test_anything_else_is_refused_in_words(output, message):
    with pytest.raises(InputError, match=message):
        to_output(output)


def test_an_output_is_returned_as_it_is() -> None:
    output = SegmentationOutput(P, A, align_corners=True)
    assert to_output(output) is output


def test_detached_heads_have_no_gradient_and_the_same_corners() -> None:
    p, a = P.clone().requires_grad_(), A.clone().requires_grad_()
    for auxiliary in (a, None):
        detached = SegmentationOutput(p, auxiliary, align_corners=True).detach()
        assert detached.align_corners
        assert not any(x.requires_grad for x in detached if x is not None)
        assert (detached.auxiliary is None) is (auxiliary is None)


def test_one_head_has_no_ensemble() -> None:
    with pytest.raises(InputError, match="needs a network with an auxiliary head"):
        SegmentationOutput(P).ensemble()


@pytest.fixture(params=[False, True])
def network(request) -> torch.nn.Module:
    torch.manual_seed(0)
    config = ModelConfig(backbone="resnet18", width=4, align_corners=request.param)
    return build_model(config, 5).eval()


def _same(found: object, expected: SegmentationOutput) -> None:
    assert isinstance(found, SegmentationOutput)
    assert found.align_corners is expected.align_corners
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_an_exported_network_returns_the_same_form(network, tmp_path) -> None:
    image = torch.randn(1, 3, 32, 48)
    program = torch.export.export(network, (image,))
    assert len(program.graph_signature.user_outputs) == 2  # the heads; align_corners is a constant
    torch.export.save(program, tmp_path / "network.pt2")
    _same(torch.export.load(tmp_path / "network.pt2").module()(image), network(image))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_network_and_its_output_compile_without_a_graph_break(network, backend) -> None:
    def step(image: torch.Tensor) -> tuple[SegmentationOutput, torch.Tensor]:
        output = to_output(network(image))
        return output.detach(), output.ensemble()

    image = torch.randn(1, 3, 32, 48)
    found, expected = torch.compile(step, backend=backend, fullgraph=True)(image), step(image)
    _same(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])
