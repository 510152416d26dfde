"""Cells by one operator under compilers, in threads, in worker processes, through files."""

import concurrent.futures
import copy
import os
import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from da2s_fast.nn import use_backend
from tests.conditions import compiled_whole, printed_last, threads
from tests.nn.cell_modules import build, call, compiled
from tests.nn.evaluate import evaluate
from tests.nn.test_super_network import build as build_network
from tests.nn.test_super_network import images

pytestmark = compiled


def step(network, x):
    """Scores, all gradients, all buffers of one training step."""
    arch = network.arch_parameters()
    scores = network(x)
    found = torch.autograd.grad(scores.square().sum(), [*arch, *network.weights()])
    return [scores.detach(), *found, *(buffer.clone() for buffer in network.buffers())]


def assert_same_bits(found, expected):
    assert len(found) == len(expected)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("name", ["mixed op, stride 2, K=2", "dense cell"])
def test_compiled_modules_are_the_same(name):
    example = build(name)
    module, tensors = example.ours, example.tensors()
    twin = copy.deepcopy(module)
    compiled_twin = compiled_whole(twin)

    def by_compiler(_, *tensors):
        with use_backend("cpu"):
            return call(compiled_twin, *tensors)

    modes = [
        lambda module: module.train(),
        lambda module: module.eval(),
        lambda module: list(module.modules())[-1].train(),
    ]
    for change in modes:
        change(module)
        change(twin)
        found = evaluate(twin, by_compiler, tensors)
        expected = evaluate(module, call, tensors)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_compiled_super_network_is_the_same():
    network, _ = build_network("pc-darts")
    twin = copy.deepcopy(network)
    by_compiler = compiled_whole(twin)
    arch = twin.arch_parameters()
    for x in (images(8), images(8, count=5)):
        with use_backend("cpu"):
            scores = by_compiler(x)
        found = torch.autograd.grad(scores.square().sum(), [*arch, *twin.weights()])
        expected = step(network, x)
        assert_same_bits([scores, *found, *twin.buffers()], expected)


def test_two_searches_in_two_threads():
    inputs = [images(16, count=4 + index) for index in range(2)]
    networks = [build_network(method, nodes=2)[0] for method in ("da2s", "pc-darts")]
    twins = copy.deepcopy(networks)
    expected = [
        [step(network, x) for _ in range(4)] for network, x in zip(networks, inputs, strict=True)
    ]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(lambda network, x: [step(network, x) for _ in range(4)], *pair)
            for pair in zip(twins, inputs, strict=True)
        ]
        found = [job.result(timeout=120) for job in jobs]
    for mine, theirs in zip(found, expected, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert_same_bits(one, other)


def test_a_backend_is_chosen_for_one_thread():
    with use_backend("gpu"), concurrent.futures.ThreadPoolExecutor(1) as pool:
        network, _ = build_network()
        pool.submit(network, images(8)).result(timeout=60)


class Scores(Dataset):
    """Images as a network that the parent has already used sees them."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval()
        with torch.no_grad():
            self.network(images(8))

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int):
        with torch.no_grad():
            return self.network(images(8) + index)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_data_loader_workers(context):
    scores = Scores(build_network()[0])
    expected = [scores[index] for index in range(4)]
    loader = DataLoader(
        scores, batch_size=None, num_workers=2, timeout=120, multiprocessing_context=context
    )
    assert_same_bits(list(loader), expected)


def test_in_a_forked_process():
    """The threads of the parent's pool are left behind; autograd itself refuses to follow."""
    network, _ = build_network()
    twin = copy.deepcopy(network)
    step(copy.deepcopy(network), images(8))
    # PyTorch's own stem and classifier may round differently on other numbers of threads.
    with threads(1), torch.no_grad():
        expected = [network(images(8)), *network.buffers()]
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            with torch.no_grad():
                same = all(map(torch.equal, [twin(images(8)), *twin.buffers()], expected))
            os.write(writer, b"1" if same else b"0")
        finally:
            os._exit(0)
    os.close(writer)
    assert os.read(reader, 1) == b"1"
    os.waitpid(child, 0)


@pytest.mark.parametrize("name", ["cell", "mixed op", "dense cell"])
def test_through_files(name, tmp_path):
    example = build(name)
    module, tensors = example.ours.eval(), example.tensors()
    expected = call(module, *tensors)
    assert torch.equal(call(pickle.loads(pickle.dumps(module)), *tensors), expected)
    torch.save(module, tmp_path / "module.pt")
    torch.save(module.state_dict(), tmp_path / "state.pt")
    whole = torch.load(tmp_path / "module.pt", weights_only=False)
    assert torch.equal(call(whole, *tensors), expected)
    other = build(name).ours.eval()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(call(other, *tensors), expected)


def test_numbers_of_threads_and_kinds_of_memory():
    network, _ = build_network(size=16)
    x = images(16, count=21)
    results = []
    for number, memory in ((1, "save"), (2, "save"), (8, "save"), (2, "recompute")):
        network.memory = memory
        with threads(number):
            results.append(step(copy.deepcopy(network), x))
    for result in results[1:]:
        # The stem, pooling and classifier are torch's, whose sums depend on the threads.
        for found, expected in zip(result, results[0], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert_same_bits(results[3], results[1])


def test_other_processes_compute_the_same_bits():
    code = (
        "import hashlib, torch\n"
        "from tests.nn.cell_modules import build, call\n"
        "example = build('cell of DARTS')\n"
        "x = [t.requires_grad_() for t in example.tensors(images=19)]\n"
        "y = call(example.ours, *x)\n"
        "y.square().sum().backward()\n"
        "found = [y, *(t.grad for t in x), *(p.grad for p in example.ours.parameters())]\n"
        "found += list(example.ours.buffers())\n"
        "digest = hashlib.sha256()\n"
        "for t in found: digest.update(t.detach().contiguous().numpy().tobytes())\n"
        "print(digest.hexdigest())\n"
    )
    digests = {printed_last(code, OMP_NUM_THREADS=number) for number in ("1", "2", "8")}
    assert len(digests) == 1
