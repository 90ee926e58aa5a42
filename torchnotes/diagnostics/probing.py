"""``probe``: one forward and one backward pass, every layer measured, the model left as it was found."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy

from torchnotes._checks import check_same_shape, describe
from torchnotes.diagnostics.capture import Capture, role_of, tensors_in
from torchnotes.diagnostics.report import SignalReport, make_report
from torchnotes.diagnostics.theory import Theory, theory_of
from torchnotes.diagnostics.theory_graph import Recorder

Loss = Callable[..., Tensor]


def probe(
    model: nn.Module, inputs: Any, target: Any = None, *, loss: Loss | None = None, theory: bool = True
) -> SignalReport:
    """Run a batch through a model and back, and say how the signal fares in every layer.

    The model runs in the mode it is in, on the device it is on. Afterwards its gradients, buffers (the running
    statistics of batch normalisation, say), mode and hooks and the random state are what they were, also if it raised.

    What is sent back is ``loss(output, target)``. Without a loss, cross-entropy for integer targets and the mean
    squared error for others; without a target too, the loss that the model itself returns (a scalar, or an output
    with a ``loss``), and else a fixed random direction of unit scale: the growth of gradients is that of the network,
    not of a loss. Each gradient is that of the loss with respect to the layer's output.

    Args:
        model: any module; of one compiled by ``torch.compile`` the original is run.
        inputs: a tensor; a tuple or list of positional arguments; or a mapping of keyword arguments.
        target: what the loss compares with.
        loss: a function of output and target, or of the output alone where there is no target; returns a scalar.
        theory: whether to work out what each layer should do beside what it did; it takes as long again as the rest.
            A fully sharded model has none: its weights are not here as a whole. What the model calls as functions
            (``F.relu(...)``, ``F.linear(x, self.weight)``, ``x @ self.weight``, ``F.layer_norm(...)``) has rows only
            with it; such a layer is called by its parameter's name.

    Returns:
        The report: ``print`` it, or read ``.layers .forward_growth .backward_growth .verdict .first_bad_layer``.

    Raises:
        TypeError: ``model`` is not a module, ``inputs`` holds no tensor, or the loss is not a tensor.
        ValueError: nothing to measure, a parameter without values, inputs that are not finite, a loss that is no
            scalar, or a target that does not fit the output.

    Source: SPEC C1 to C6.

    >>> net = nn.Sequential(*[nn.Linear(2, 2, bias=False) for _ in range(150)])
    >>> for layer in net:
    ...     _ = layer.weight.data.copy_(0.9 * torch.eye(2))
    >>> report = probe(net, torch.tensor([[1.0, 1.0]]))
    >>> round(report.forward_growth, 6), round(report.backward_growth, 6)
    (0.9, 0.9)
    >>> print(report.verdict)
    activations vanishing, gradients vanishing
    """
    model = _check_model(model)
    args, kwargs = _arguments(inputs)
    for index, tensor in enumerate(tensors_in([args, kwargs])):
        if tensor.dtype.is_floating_point and not bool(tensor.isfinite().all()):
            bad = int((~tensor.isfinite()).sum())
            raise ValueError(
                f"inputs must be finite, got {bad} non-finite values of {tensor.numel()} in tensor {index}; "
                "clean the batch first: what comes in broken says nothing about the model."
            )
    backward = _needs_backward(model)
    try:
        return _run(model, args, kwargs, target, loss, backward=backward, theory=theory and not backward)
    except RuntimeError as error:
        # Re-entrant checkpointing refuses torch.autograd.grad and asks for backward().
        if backward or "use_reentrant" not in str(error):
            raise
        return _run(model, args, kwargs, target, loss, backward=True, theory=theory)


def expect(model: nn.Module, inputs: Any, target: Any = None, *, loss: Loss | None = None) -> Theory:
    """Run one pass and say what each layer should have done to the signal, beside what it did.

    The theory is that of wide random layers: second moments and the correlation of samples, activations by quadrature
    of the very function, dropout, batch and layer normalisation, skip connections, gates. It covers linear and
    convolutional layers and any elementwise function; for a softmax, a pooling or a recurrent cell it says "no
    expectation" and why, and goes on behind it.

    Args:
        model: any module; left as it was found.
        inputs: as for :func:`probe`.
        target: as for ``probe``.
        loss: as for ``probe``.

    Returns:
        The expectations; ``print`` them for a table.

    Raises:
        TypeError: as ``probe`` does.
        ValueError: as ``probe`` does.

    Source: Poole et al. 2016 and Schoenholz et al. 2017 (mean field), He et al. 2015, Yang et al. 2019 (batch norm),
    Yang and Schoenholz 2017 (skip connections).

    >>> net = nn.Sequential(nn.Linear(512, 512, bias=False), nn.ReLU(), nn.Linear(512, 512, bias=False))
    >>> for layer in (net[0], net[2]):
    ...     _ = nn.init.normal_(layer.weight, std=512**-0.5, generator=torch.Generator().manual_seed(0))
    >>> theory = expect(net, torch.randn(64, 512, generator=torch.Generator().manual_seed(1)))
    >>> round(theory.layers[0].forward, 1), round(theory.layers[0].backward, 1)  # ReLU at 1/n: √½ each way
    (0.7, 0.7)
    """
    found = probe(model, inputs, target, loss=loss).theory
    if found is None:
        raise ValueError("model must not be fully sharded: the theory needs whole weights; probe it before sharding.")
    return found


def _run(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    target: Any,
    loss: Loss | None,
    *,
    backward: bool,
    theory: bool,
) -> SignalReport:
    parameters = [p for p in model.parameters() if p.requires_grad]
    with _as_found(model), Capture(model) as capture, torch.enable_grad():
        capture.begin()
        with Recorder(model, capture) if theory else contextlib.nullcontext() as recorder:
            if recorder is not None:
                recorder.begin([args, kwargs])
            output = model(*args, **kwargs)
        value, direction = _objective(output, target, loss)
        gradients: dict[int, Tensor] | None = None
        if value is not None and value.requires_grad:
            if backward:
                torch.autograd.backward(value, direction)
            else:
                found = torch.autograd.grad(value, parameters, direction, allow_unused=True)
                gradients = {id(p): g for p, g in zip(parameters, found, strict=True) if g is not None}
        records = capture.collect(gradients).records()
    if not records:
        raise ValueError(
            f"model must run at least one module that returns a floating-point tensor, got {type(model).__name__} "
            "whose modules were never called; call them as modules (self.fc(x)), not by their forward method."
        )
    called = {record.name for record in records}
    unused = [name for name, m in model.named_modules() if name not in called and role_of(m) == "weight"]
    unused = [name for name in unused if not _inside_attention(model, name)]
    single = value is not None and direction is None
    return make_report(
        records,
        loss=float(value.detach()) if single and value is not None else None,
        unused=unused,
        theory=theory_of(recorder) if recorder is not None else None,
    )


def _objective(output: Any, target: Any, loss: Loss | None) -> tuple[Tensor | None, Tensor | None]:
    """What to send back: a scalar, or a tensor and the direction of unit scale to send back from it."""
    if loss is not None:
        value = loss(output) if target is None else loss(output, target)
        return _check_loss(value, f"loss {getattr(loss, '__name__', type(loss).__name__)}"), None
    if target is not None:
        return _usual_loss(output, target), None
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(own, Tensor):
        return _check_loss(own, "the model's own loss"), None
    outputs = [t for t in tensors_in(output) if t.dtype.is_floating_point and t.requires_grad]
    if not outputs:
        return None, None
    if len(outputs) == 1 and outputs[0].dim() == 0:
        return outputs[0], None
    flat = torch.cat([t.reshape(-1).to(outputs[0].dtype) for t in outputs])
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(flat.numel(), generator=generator).to(device=flat.device, dtype=flat.dtype)
    return flat, direction


def _usual_loss(output: Any, target: Any) -> Tensor:
    first = next((t for t in tensors_in(output) if t.dtype.is_floating_point), None)
    if first is None or not isinstance(target, Tensor):
        raise TypeError(
            "loss must be given where output or target is not a tensor, "
            f"got {describe(output)} and {describe(target)}; pass loss=lambda output, target: ..."
        )
    if target.dtype.is_floating_point:
        check_same_shape(first, target, output_name="the model's output")
        return F.mse_loss(first, target)
    if first.dim() < 2 or target.shape != (first.shape[0], *first.shape[2:]):
        raise ValueError(
            "integer targets must have shape (m, ...) against scores (m, classes, ...), "
            f"got target {tuple(target.shape)} against output {tuple(first.shape)}; "
            "pass loss= for anything but cross-entropy."
        )
    return F.cross_entropy(first, target.long())


def _check_loss(value: object, name: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must return a tensor with one element, got {describe(value)}; return it undetached.")
    if value.numel() != 1:
        raise ValueError(f"{name} must be a scalar, got shape {tuple(value.shape)}; reduce it with .mean() or .sum().")
    return value.reshape(())


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if next(tensors_in(inputs), None) is None:
        raise TypeError(
            f"inputs must hold a tensor, got {describe(inputs)}; "
            "pass the tensor, a tuple of positional arguments or a dict of keyword arguments."
        )
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, (tuple, list)) else ((inputs,), {})


def _check_model(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {describe(model)}; wrap a function in a module.")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module  # one pass on this process: nothing to reduce
    model = getattr(model, "_orig_mod", model)
    parameters = list(model.named_parameters())
    if not parameters:
        raise ValueError(
            f"model must have parameters, got {type(model).__name__} with none; "
            "there is no layer whose scale could be wrong."
        )
    for name, parameter in parameters:
        if is_lazy(parameter):
            raise ValueError(f"every parameter must have a shape, got {name} of a lazy module; run one batch first.")
        if parameter.is_meta:
            raise ValueError(
                f"every parameter must have values, got {name} on the meta device; "
                "give the model memory with model.to_empty(device='cpu') and initialise it."
            )
    return model


def _needs_backward(model: nn.Module) -> bool:
    """Fully sharded models reduce gradients in hooks that torch.autograd.grad does not run."""
    return any("FullyShardedDataParallel" in c.__name__ or c.__name__ == "FSDPModule" for c in type(model).__mro__)


def _inside_attention(model: nn.Module, name: str) -> bool:
    """nn.MultiheadAttention uses its output projection's weight without calling it."""
    parent = model.get_submodule(name.rpartition(".")[0])
    return isinstance(parent, nn.MultiheadAttention)


@contextlib.contextmanager
def _as_found(model: nn.Module) -> Iterator[None]:
    """Put gradients, buffers, modes and random state back, whatever happens in between; compiled parts run eagerly."""
    gradients = [(p, p.grad) for p in model.parameters()]
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    modes = [(m, m.training) for m in model.modules()]
    devices = sorted({t.device.index for t in model.parameters() if t.device.type == "cuda"})
    for parameter, _ in gradients:
        parameter.grad = None
    compiled = any(getattr(m, "_compiled_call_impl", None) or hasattr(m, "_orig_mod") for m in model.modules())
    try:
        with (
            torch.random.fork_rng(devices=devices),
            torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext(),
        ):
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for module, training in modes:
            module.training = training
