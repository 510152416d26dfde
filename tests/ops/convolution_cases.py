"""How conv_norm and separable_conv are asked, in the tests of either and of both."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from tests.ops.compare import assert_as_accurate

LAYOUTS = [torch.contiguous_format, torch.channels_last]
Own = TypeVar("Own", bound="ConvolutionCase")


class ConvolutionCase:
    """What named tuples can do that hold the tensors, some of them None, and options of a call."""

    def tensors(self) -> dict[str, Tensor | None]:
        """What can be differentiated, in the operation's order."""
        fields = self._asdict().items()
        return {name: field for name, field in fields if field is None or isinstance(field, Tensor)}

    def options(self) -> dict[str, Any]:
        """All the rest, by name."""
        tensors = self.tensors()
        return {name: field for name, field in self._asdict().items() if name not in tensors}

    def to(self: Own, dtype: torch.dtype) -> Own:
        """The same numbers of another type."""
        given = {name: tensor for name, tensor in self.tensors().items() if tensor is not None}
        return self._replace(**{name: tensor.to(dtype) for name, tensor in given.items()})

    def laid_out(self: Own, layout: torch.memory_format) -> Own:
        """The same numbers with x in another layout."""
        return self._replace(x=self.x.contiguous(memory_format=layout))


def output_of(result: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """The output of a convolution, without the statistics that some return beside it."""
    return result[0] if isinstance(result, tuple) else result


def evaluate(
    function: Callable[..., Any], case: ConvolutionCase, incoming: Tensor | None = None
) -> dict[str, Tensor]:
    """Output, statistics where there are some, and all gradients, by name.

    The gradient that comes in, if none is given, is the same for every function.
    """
    given = {
        name: None if tensor is None else tensor.detach().requires_grad_()
        for name, tensor in case.tensors().items()
    }
    result = function(*given.values(), **case.options())
    found = {"output": output_of(result)}
    if isinstance(result, tuple):
        found["statistics"] = result[1]
        assert not result[1].requires_grad
    if incoming is None:
        torch.manual_seed(1)
        incoming = torch.randn(found["output"].shape)
    leaves = {name: leaf for name, leaf in given.items() if leaf is not None}
    gradients = torch.autograd.grad(
        found["output"], list(leaves.values()), incoming.to(found["output"])
    )
    found["output"] = found["output"].detach()
    return found | dict(zip(leaves, gradients, strict=True))


def check(
    function: Callable[..., Any],
    reference: Callable[..., Any],
    case: ConvolutionCase,
    incoming: Tensor | None = None,
) -> None:
    """Demand the accuracy of eager PyTorch, in the case's precision and in float64."""
    double = case.to(torch.float64)
    exact = evaluate(reference, double, incoming)
    assert_as_accurate(
        evaluate(function, case, incoming), evaluate(reference, case, incoming), exact
    )
    assert_as_accurate(evaluate(function, double, incoming), exact, exact)
