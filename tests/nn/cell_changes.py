"""What can happen to the modules of a cell, as functions of the cell by name."""

import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from da2s_fast.nn import MixedOp
from da2s_fast.nn.operations import Identity, ReLUConvBN, SepConv
from tests.nn.cell_modules import cell


def norms(module):
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


def every_norm(name, value):
    def change(module):
        for norm in norms(module):
            setattr(norm, name, value)

    return change


def one_norm(name, value):
    return lambda module: setattr(norms(module)[3], name, value)


def layer(path, name, value):
    return lambda module: setattr(module.get_submodule(path), name, value)


def replaced(path, make):
    def change(module):
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, make())

    return change


def hook(path, kind):
    def change(module):
        register = getattr(module.get_submodule(path), f"register_{kind}")
        if kind == "forward_hook":
            register(lambda module, args, output: output * 1.5)
        elif kind == "forward_pre_hook":
            register(lambda module, args: (args[0] * 1.5,))
        elif kind == "full_backward_hook":
            register(lambda module, grad_input, grad_output: (grad_input[0] * 1.5,))
        else:
            register(lambda module, grad_output: (grad_output[0] * 1.5,))

    return change


def own_forward(module):
    relu = module.get_submodule("_ops.1._ops.3.op.0")
    relu.forward = lambda x: x.abs()


class Doubled(SepConv):
    def forward(self, x):
        return 2 * super().forward(x)


def other_class(module):
    module._ops[1]._ops[3].__class__ = Doubled


class Quiet(MixedOp):
    def candidates(self, x, active=None):
        outputs, found = super().candidates(x, active)
        return [0.5 * y for y in outputs], found


def other_edge(module):
    module._ops[1].__class__ = Quiet


def shared_module(module):
    module._ops[1]._ops[3] = module._ops[0]._ops[3]


def weight_of(module, path):
    return module.get_submodule(path).weight


CONV, NORM = "_ops.1._ops.3.op.1", "_ops.1._ops.3.op.3"
POOL = "_ops.0._ops.1.0"
# What happens to a cell -> why the operator cannot stand in for it any more.
STOPS = {
    **{
        f"{kind} on {path}": (hook(path, kind), "hooks")
        for path in ("preprocess0", "preprocess1.op.1", "_ops.1._ops.3.op", CONV, NORM, POOL)
        for kind in ("forward_hook", "forward_pre_hook")
    },
    **{
        f"{kind} on {CONV}": (hook(CONV, kind), "hooks")
        for kind in ("full_backward_hook", "full_backward_pre_hook")
    },
    "a forward of one's own": (own_forward, "unknown or has hooks"),
    "another class": (other_class, "Doubled"),
    "another kind of edge": (other_edge, "edge 1"),
    "a shared module": (shared_module, "several places"),
    "another operation": (replaced("_ops.1._ops.3", nn.Tanh), "Tanh"),
    "an operation more": (
        lambda module: [edge._ops.append(Identity()) for edge in module._ops],
        "one of them twice",
    ),
    "different operations": (replaced("_ops.1._ops.3", Identity), "different operations"),
    "another preprocessing": (replaced("preprocess0", lambda: nn.Conv2d(6, 4, 1)), "preprocess0"),
    "affine preprocessing": (
        replaced("preprocess1", lambda: ReLUConvBN(5, 4, 1, 1, 0)),
        "preprocess1",
    ),
    "a layer more": (
        lambda module: module._ops[1]._ops[3].op.insert(1, nn.ReLU6()),
        "unknown or has hooks",
    ),
    "some cumulative averages": (one_norm("momentum", None), "momentum"),
    "one momentum": (one_norm("momentum", 0.3), "momentum"),
    "one eps": (one_norm("eps", 0.3), "eps"),
    "no running statistics": (every_norm("track_running_stats", False), "hooks"),
    "lost buffers": (lambda module: setattr(norms(module)[3], "running_var", None), "buffers"),
    "a norm with a weight": (
        lambda module: setattr(norms(module)[3], "weight", nn.Parameter(torch.full((4,), 2.0))),
        "weights of shapes",
    ),
    "padding of another kind": (layer(CONV, "padding_mode", "circular"), "unknown"),
    "another dilation": (
        lambda module: [layer(CONV, name, (2, 2))(module) for name in ("dilation", "padding")],
        "unknown",
    ),
    "a bias": (layer(CONV, "bias", nn.Parameter(torch.ones(4))), "weights of shapes"),
    "a larger kernel": (
        lambda module: setattr(
            module.get_submodule(CONV), "weight", nn.Parameter(torch.ones(4, 1, 3, 1))
        ),
        "weights of shapes",
    ),
    "another pool": (layer(POOL, "dilation", 2), "unknown"),
    "ReLU in place": (layer("_ops.1._ops.3.op.4", "inplace", True), "unknown"),
    "weight norm": (
        lambda module: parametrizations.weight_norm(module.get_submodule(CONV)),
        "unknown",
    ),
    "pruning": (
        lambda module: prune.random_unstructured(module.get_submodule(CONV), "weight", 0.5),
        "unknown",
    ),
    "fewer outputs than none": (lambda module: setattr(module, "_multiplier", 3), "3 outputs"),
}


# With these nothing can be computed, or copied for a comparison.
INCOMPARABLE = ("another pool", "a larger kernel", "an operation more", "lost buffers", "pruning")


def load(module):
    other = cell(False, False, 1).ours.double()
    with torch.no_grad():
        for value in other.state_dict().values():
            value += 1
    module.load_state_dict(other.state_dict())


# What happens to a cell that the operator goes on to stand in for.
GOES_ON = {
    "nothing": lambda module: None,
    "evaluation": lambda module: module.eval(),
    "some norms frozen": lambda module: [norm.eval() for norm in norms(module)[::2]],
    "frozen weights": lambda module: module.requires_grad_(False),
    "one frozen weight": lambda module: weight_of(module, CONV).requires_grad_(False),
    "another momentum": every_norm("momentum", 0.9),
    "cumulative averages": every_norm("momentum", None),
    "another eps": every_norm("eps", 0.1),
    "another weight": lambda module: setattr(
        module.get_submodule(CONV), "weight", nn.Parameter(torch.randn(4, 1, 3, 3).double())
    ),
    "other buffers": lambda module: setattr(
        norms(module)[3], "running_mean", torch.randn(4).double()
    ),
    "another state dict": load,
    "the same operation anew": replaced(
        "_ops.1._ops.3", lambda: SepConv(4, 4, 3, 1, 1, False).double()
    ),
    "the same preprocessing anew": replaced(
        "preprocess1", lambda: ReLUConvBN(5, 4, 1, 1, 0, False).double()
    ),
    "the same norm anew": replaced(NORM, lambda: nn.BatchNorm2d(4, affine=False).double()),
    "fewer outputs": lambda module: setattr(module, "_multiplier", 1),
    "channels last": lambda module: module.to(memory_format=torch.channels_last),
    "single and double precision": lambda module: module.float().double(),
    "a hook on the cell": lambda module: module.register_forward_hook(lambda *_: None),
}
