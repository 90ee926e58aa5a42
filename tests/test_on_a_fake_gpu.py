"""What a GPU would be asked to do, watched without one: nothing is read back, and nothing lies on the wrong device.

PyTorch's FakeTensorMode gives tensors a device and a shape but no numbers. On top of it ``Watched`` sees every
operation: a read of a CUDA tensor by the host would break a CUDA graph, and an operation on tensors of two devices is
either an error on a real GPU or a hidden transfer. (CUDA's generators, autocast, GradScaler and the streams of a
backward pass cannot be faked: they ask for a driver.)
"""

import ctypes
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torchnotes.data import InputNormalizer, augment, minibatches, train_dev_test_split
from torchnotes.optim import Adam, ExponentialAverage, GradientDescent, Momentum, RMSprop, l2_groups, lr_scheduler
from torchnotes.regularization import Penalty
from torchnotes.training import evaluate, fit, predict

COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


READS = {torch.Tensor.item, torch.Tensor.__float__, torch.Tensor.__int__, torch.Tensor.__bool__}


class Reads(TorchFunctionMode):
    """Counts reads of CUDA tensors by the host, and answers each read, for a fake tensor has no numbers, with 1."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func not in READS or not isinstance(args[0], FakeTensor):
            return func(*args, **(kwargs or {}))
        self.count += args[0].is_cuda
        one = 1.0 if args[0].is_floating_point() else 1
        return {torch.Tensor.__float__: float, torch.Tensor.__int__: int, torch.Tensor.__bool__: bool}.get(
            func, lambda value: value
        )(one)


@contextmanager
def _device_guard():
    """A guard that does nothing, where PyTorch has none for CUDA.

    FakeTensorMode sees to that itself in a CUDA build without a driver; a CPU build has no guard at all, and indexing
    or moving a fake CUDA tensor asks for one. The meta device's guard does nothing either.
    """
    if torch.version.cuda or torch.version.hip:
        yield
        return
    cuda, meta = 1, 14  # c10::DeviceType
    (library,) = Path(torch.__file__).parent.glob("lib/libc10.*")
    guards = (ctypes.c_void_p * 20).in_dll(ctypes.CDLL(str(library)), "_ZN3c104impl26device_guard_impl_registryE")
    guards[cuda] = guards[meta]
    yield
    guards[cuda] = None


class Watched(TorchDispatchMode):
    """A fake GPU, on which operations on tensors of two devices are refused."""

    def __init__(self):
        super().__init__()
        self._reads, self._within = Reads(), ExitStack()

    @property
    def reads(self):
        return self._reads.count

    def __enter__(self):
        for context in (_device_guard(), FakeTensorMode(), self._reads):
            self._within.enter_context(context)
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._within.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        assert len(devices) < 2 or func in COPIES, f"{func} takes tensors on {' and '.join(sorted(devices))}"
        return func(*args, **kwargs)


def _rand(*shape, device="cuda", **kwargs):
    return torch.zeros(shape, device=device, **kwargs)


def _parameters():
    return [nn.Parameter(_rand(4, 3)), nn.Parameter(_rand(0)), nn.Parameter(_rand(5)), nn.Parameter(_rand(2).half())]


def _step(optimizer, times=2):
    for _ in range(times):
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.zeros_like(param)
        optimizer.step()


RULES = [
    (GradientDescent, {}),
    (Momentum, {}),
    (Momentum, {"nesterov": True}),
    (Momentum, {"form": "sum", "dampening": 0.5}),
    (Momentum, {"form": "sum", "nesterov": True}),
    (RMSprop, {}),
    (RMSprop, {"centered": True}),
    (RMSprop, {"momentum": 0.9, "centered": True, "eps_form": "inside"}),
    (Adam, {}),
    (Adam, {"amsgrad": True}),
    (Adam, {"betas": (0.0, 0.5), "eps_form": "inside"}),
]
rules = pytest.mark.parametrize(
    ("rule", "options"), RULES, ids=[f"{rule.__name__}-{'-'.join(options)}" for rule, options in RULES]
)


@rules
@pytest.mark.parametrize("foreach", [None, False])
@pytest.mark.parametrize("lr_on", ["number", "cpu", "cuda"])
@pytest.mark.parametrize("shared", [{}, {"weight_decay": 0.1, "maximize": True}], ids=["plain", "decay-maximize"])
def test_a_capturable_step_reads_nothing_and_stays_on_the_device(rule, options, foreach, lr_on, shared):
    with Watched() as watched:
        lr = 0.1 if lr_on == "number" else torch.tensor(0.1, device=lr_on)
        optimizer = rule(_parameters(), lr=lr, foreach=foreach, capturable=True, **options, **shared)
        _step(optimizer)
        assert watched.reads == 0
        for param, state in optimizer.state.items():
            assert {value.device for value in state.values()} <= {param.device}


@rules
def test_a_saved_capturable_state_goes_on_on_the_device(rule, options):
    with Watched() as watched:
        first, second = (rule(_parameters(), lr=0.1, capturable=True, **options) for _ in range(2))
        _step(first)
        second.load_state_dict(first.state_dict())
        _step(second)
        assert watched.reads == 0
        for param, state in second.state.items():
            assert {value.device for value in state.values()} <= {param.device}


@rules
@pytest.mark.parametrize("foreach", [None, False])
def test_otherwise_only_a_rate_on_the_device_is_read_once_a_step(rule, options, foreach):
    with Watched() as watched:
        _step(rule(_parameters()[:3], lr=0.1, foreach=foreach, **options))
        assert watched.reads == 0
        optimizer = rule(_parameters()[:1], lr=torch.tensor(0.1, device="cuda"), foreach=foreach, **options)
        before = watched.reads
        _step(optimizer, times=3)
        assert watched.reads - before == 3


@pytest.mark.parametrize(
    ("make", "reads"),
    [
        (lambda o: lr_scheduler.InverseTimeDecay(o, 1.0), 0),
        (lr_scheduler.InverseSqrtDecay, 0),
        (lr_scheduler.ExponentialDecay, 0),
        (lambda o: lr_scheduler.StaircaseDecay(o, 2), 0),
        (lambda o: lr_scheduler.ManualDecay(o, {1: 0.5}), 1),
    ],
)
def test_decays_change_a_rate_on_the_device_there(make, reads):
    with Watched() as watched:
        optimizer = Adam(_parameters(), lr=torch.tensor(0.1, device="cuda"), capturable=True)
        rate = optimizer.param_groups[0]["lr"]
        scheduler = make(optimizer)
        for _ in range(4):
            _step(optimizer, times=1)
            scheduler.step()
        assert optimizer.param_groups[0]["lr"] is rate
        assert rate.device.type == "cuda"
        assert watched.reads == reads


def test_the_average_and_the_groups_stay_on_the_device():
    with Watched() as watched:
        average = ExponentialAverage(0.9)
        assert average.smooth([_rand(3), _rand(3)])[-1].device.type == "cuda"
        model = nn.Linear(3, 2, device="cuda")
        _step(Adam(l2_groups(model, 0.1), lr=0.1))
        assert watched.reads == 0


def test_normalising_takes_place_where_the_input_is():
    with Watched() as watched:
        normalizer = InputNormalizer(nonfinite_values="ignore").fit(_rand(6, 3))
        normalizer.partial_fit(_rand(6, 3))
        assert {buffer.device.type for buffer in normalizer.buffers()} == {"cuda"}
        before = watched.reads
        x = _rand(5, 3)
        assert normalizer(x).device == normalizer.inverse(x).device == x.device
        assert watched.reads == before  # a forward pass waits for nothing
        normalizer.fold_into_(nn.Linear(3, 2, bias=False, device="cuda"))
        normalizer.merge(InputNormalizer(nonfinite_values="ignore").fit(torch.zeros(4, 3)))
        assert {buffer.device.type for buffer in normalizer.buffers()} == {"cuda"}


def test_batches_splits_and_augmented_images_stay_where_the_data_is():
    with Watched():
        x, y = _rand(10, 1, 8, 8), _rand(10, dtype=torch.int64)
        assert {part.device.type for batch in minibatches(x, y, batch_size=4) for part in batch} == {"cuda"}
        cpu = torch.zeros(10, 2)
        assert [part.device.type for part in next(iter(minibatches(x, cpu, batch_size=4)))] == ["cuda", "cpu"]
        split = train_dev_test_split(x, y)
        assert {part.device.type for parts in split for part in parts} == {"cuda"}
        assert augment(x).device == x.device


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_penalties_are_on_the_models_device(kind):
    with Watched() as watched:
        for model in (nn.Linear(3, 2, device="cuda"), nn.BatchNorm1d(3, device="cuda")):  # the second has no weight
            assert Penalty(kind, lambd=0.1)(model, m=4).device.type == "cuda"
        assert watched.reads == 0


@pytest.mark.parametrize("data_on", ["cpu", "cuda"])
def test_fit_trains_and_evaluates_on_the_models_device(monkeypatch, data_on):
    monkeypatch.setattr("torchnotes.training._random.restore", lambda state: None)  # the CPU's generator is not faked
    with Watched() as watched:
        x, y = _rand(12, 4, device=data_on), torch.zeros(12, dtype=torch.int64, device=data_on)
        on = {"device": "cuda"}
        model = nn.Sequential(nn.Linear(4, 8, **on), nn.BatchNorm1d(8, **on), nn.Dropout(0.5), nn.Linear(8, 3, **on))
        options = {"loss": F.cross_entropy, "batch_size": 4, "accumulate": 2, "clip_norm": 1.0, "epochs": 1}

        def backward(loss):
            for param in model.parameters():
                param.grad = torch.zeros_like(param)

        monkeypatch.setattr(torch.Tensor, "backward", backward)
        steps = []
        for epochs in (1, 3):
            optimizer = Adam(model.parameters(), lr=0.1)
            before = watched.reads
            fit(model, (x, y), optimizer=optimizer, progress=False, **{**options, "epochs": epochs})
            steps.append(watched.reads - before)
        first, three = steps
        assert three - first == 2 * 2  # per further epoch: the sum of the losses and its number of samples
        metrics = {"error": lambda output, target: (output.argmax(1) != target).double().mean()}
        fit(model, (x, y), dev=(x, y), metrics=metrics, optimizer=optimizer, progress=False, **options)
        evaluate(model, x, y, loss=F.cross_entropy, metrics=metrics)
        assert predict(model, x, dropout_passes=2).device.type == "cuda"
