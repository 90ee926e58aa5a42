"""Every rule against its torch.optim twin: paths, states, groups, closures, errors."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from tests.optim._helpers import assert_same, run, set_gradients, small_parameters
from torchnotes.optim import Adam, GradientDescent, Momentum, RMSprop, _rule

# Each of ours beside the formula of torch.optim it coincides with.
TWINS = {
    "GradientDescent": (GradientDescent, torch.optim.SGD, {}),
    "Momentum": (lambda p, **k: Momentum(p, form="sum", **k), torch.optim.SGD, {"momentum": 0.9}),
    "RMSprop": (RMSprop, torch.optim.RMSprop, {}),
    "Adam": (Adam, torch.optim.Adam, {}),
}
twins = pytest.mark.parametrize("name", TWINS)


def _make(name, **kwargs):
    ours, theirs, fixed = TWINS[name]
    kwargs = {"lr": 0.01, **kwargs}
    return (lambda p: ours(p, **kwargs)), (lambda p: theirs(p, **fixed, **kwargs))


def _optim_db_cases():
    from torch.testing._internal.common_optimizers import optim_db

    infos = {info.optim_cls: info for info in optim_db}
    for twin in (torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adam):
        for entry in infos[twin].optim_inputs_func(device="cpu"):
            yield pytest.param(twin, entry.kwargs, id=f"{twin.__name__}-{entry.desc}")
    # The inputs that PyTorch lists only for accelerators; capturable is exact on a CPU here as well.
    for twin in (torch.optim.RMSprop, torch.optim.Adam):
        for entry in infos[twin].optim_inputs_func(device="cuda"):
            if entry.kwargs.get("capturable"):
                yield pytest.param(twin, entry.kwargs, id=f"{twin.__name__}-{entry.desc}")


def _ours_for(twin, kwargs):
    if twin is not torch.optim.SGD:
        return {torch.optim.RMSprop: RMSprop, torch.optim.Adam: Adam}[twin]
    if kwargs.get("momentum"):
        return lambda p, **k: Momentum(p, form="sum", **k)
    return GradientDescent


@pytest.mark.parametrize("foreach", [None, True, False])
@pytest.mark.parametrize(("twin", "kwargs"), list(_optim_db_cases()))
def test_inputs_of_pytorchs_own_database(twin, kwargs, foreach):
    params, others = small_parameters(), small_parameters()
    reference = {**kwargs, "capturable": False} if "capturable" in kwargs else dict(kwargs)
    if isinstance(reference.get("lr"), torch.Tensor):  # torch reads a tensor rate only where it is capturable
        reference["lr"] = float(reference["lr"])
    if "betas" in reference:
        reference["betas"] = tuple(float(beta) for beta in reference["betas"])
    run(lambda p: _ours_for(twin, kwargs)(p, foreach=foreach, **copy.deepcopy(kwargs)), params)
    run(lambda p: twin(p, **reference), others)
    # float64 sums in another order: a few ulp a step; a float32 count of steps and rate cost 1e-7 of each step
    rtol = 1e-6 if kwargs.get("capturable") or isinstance(kwargs.get("lr"), torch.Tensor) else 1e-12
    assert_same(params, others, rtol=rtol, atol=rtol)


def test_errors_of_pytorchs_own_database():
    from torch.testing._internal.common_optimizers import optim_db

    tried = 0
    for info in optim_db:
        if info.optim_cls not in (torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adam):
            continue
        for entry in info.optim_error_inputs_func(device="cpu", dtype=torch.float32):
            kwargs = entry.optimizer_error_input.kwargs
            ours = _ours_for(info.optim_cls, kwargs)
            if entry.error_type is UserWarning:
                with pytest.warns(UserWarning, match=entry.error_regex):
                    ours(entry.optimizer_error_input.params, **kwargs)
            elif "as a Tensor is not supported" in entry.error_regex or "either both floats" in entry.error_regex:
                continue  # limits of torch's own kernels; a tensor is as good as a number here
            else:
                with pytest.raises((entry.error_type, TypeError)):
                    ours(entry.optimizer_error_input.params or [torch.zeros(1)], **kwargs)
            tried += 1
    assert tried >= 15


@twins
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions_follow_torch(name, dtype):
    ours, theirs = _make(name)
    params, others = small_parameters(dtype), small_parameters(dtype)
    run(ours, params, steps=5)
    run(theirs, others, steps=5)
    # five steps, each rounded once or twice otherwise than torch's: some ulp of a value of about 3
    tol = 20 * torch.finfo(dtype).eps
    assert_same(params, others, rtol=tol, atol=tol)


@twins
def test_mixed_precisions_in_one_group(name):
    ours, theirs = _make(name)
    params, others = ([*small_parameters(torch.float64), *small_parameters(torch.float32)] for _ in range(2))
    run(ours, params, steps=4)
    run(theirs, others, steps=4)
    assert_same(params, others, rtol=1e-6, atol=1e-6)


@twins
def test_gradient_descent_of_a_network_is_torchs(name):
    ours, theirs = _make(name, weight_decay=0.01)
    paths = []
    for make in (ours, theirs):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        x = torch.randn(32, 5, dtype=torch.float64)
        y = x.sum(1, keepdim=True).sin()
        optimizer, losses = make(model.parameters()), []
        for _ in range(30):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        paths.append(losses)
    assert paths[0] == pytest.approx(paths[1], rel=1e-10)
    assert paths[0][-1] < paths[0][0]


@twins
def test_blocks_do_not_change_the_result(name, monkeypatch):
    ours, _ = _make(name)
    results = []
    for elements in (1, 10, 1 << 18):
        monkeypatch.setattr(_rule, "_BLOCK_ELEMENTS", elements)
        monkeypatch.setattr(_rule, "_ELEMENTS_PER_THREAD", elements)
        params = small_parameters()
        run(ours, params)
        results.append(params)
    assert_same(results[0], results[1], rtol=0, atol=0)
    assert_same(results[0], results[2], rtol=0, atol=0)


@twins
def test_groups_have_their_own_rates(name):
    ours, theirs = _make(name)
    params, others = small_parameters(), small_parameters()

    def grouped(make):
        return lambda p: make([{"params": p[:2], "lr": 0.1, "weight_decay": 0.2}, {"params": p[2:]}])

    run(grouped(ours), params)
    run(grouped(theirs), others)
    assert_same(params, others, rtol=1e-12, atol=1e-12)


@twins
def test_a_group_added_later(name):
    ours, theirs = _make(name)
    params, others = small_parameters(), small_parameters()
    for make, tensors in ((ours, params), (theirs, others)):
        optimizer = make(tensors[:3])
        for step in range(6):
            if step == 3:
                optimizer.add_param_group({"params": tensors[3:], "lr": 0.5})
            set_gradients(tensors, step)
            optimizer.step()
    assert_same(params, others, rtol=1e-12, atol=1e-12)


@twins
def test_closure_runs_with_gradients_and_its_loss_is_returned(name):
    ours, _ = _make(name)
    w = nn.Parameter(torch.tensor([2.0]))
    optimizer = ours([w])

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = (w**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.0
    assert w.item() < 2.0
    assert optimizer.step() is None


@twins
@pytest.mark.parametrize("through", ["state_dict", "file", "deepcopy", "pickle"])
def test_resumed_run_is_bit_identical(name, through):
    ours, _ = _make(name, weight_decay=0.1)
    whole, parts = small_parameters(), small_parameters()
    run(ours, whole, steps=10)
    first = ours(parts)
    for step in range(5):
        set_gradients(parts, step)
        first.step()
    if through in ("state_dict", "file"):
        state = copy.deepcopy(first.state_dict())
        if through == "file":
            buffer = io.BytesIO()
            torch.save(state, buffer)
            buffer.seek(0)
            state = torch.load(buffer, weights_only=True)
        second = ours(parts)
        second.load_state_dict(state)
    elif through == "deepcopy":
        second = copy.deepcopy(first)
        parts = [param for group in second.param_groups for param in group["params"]]
    else:
        second = pickle.loads(pickle.dumps(first))
        parts = [param for group in second.param_groups for param in group["params"]]
    for step in range(5, 10):
        set_gradients(parts, step)
        second.step()
    assert_same(whole, parts, rtol=0, atol=0)


@twins
@pytest.mark.parametrize("start", ["ours", "theirs"])
def test_state_moves_both_ways_between_the_twins(name, start):
    ours, theirs = _make(name, weight_decay=0.1)
    params, others = small_parameters(), small_parameters()
    run(theirs, others, steps=8)
    before, after = (ours, theirs) if start == "ours" else (theirs, ours)
    first = before(params)
    for step in range(4):
        set_gradients(params, step)
        first.step()
    second = after(params)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for step in range(4, 8):
        set_gradients(params, step)
        second.step()
    assert_same(params, others, rtol=1e-12, atol=1e-12)


OTHERS = [
    torch.optim.SGD,
    torch.optim.RMSprop,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.LBFGS,
]


@pytest.mark.parametrize(
    ("name", "saved_by"), [(name, other) for name in TWINS for other in OTHERS if other is not TWINS[name][1]]
)
def test_the_state_of_another_rule_is_refused_and_nothing_changes(name, saved_by):
    ours, _ = _make(name)
    whole, params, others = (small_parameters() for _ in range(3))
    run(ours, whole, steps=4)
    optimizer, other = run(ours, params, steps=3), saved_by(others, lr=0.5)
    if saved_by is not torch.optim.LBFGS:
        set_gradients(others, 0)
        other.step()
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"load (it|the state) into (the rule that saved it|AdamW)"):
        optimizer.load_state_dict(other.state_dict())
    assert repr(optimizer.state_dict()) == repr(before)
    set_gradients(params, 3)
    optimizer.step()
    assert_same(params, whole, rtol=0, atol=0)


@twins
def test_capturable_counts_on_the_device_with_the_same_path(name):
    ours, theirs = _make(name)
    capturable, _ = _make(name, capturable=True, lr=torch.tensor(0.01, dtype=torch.float64))
    params, others = small_parameters(), small_parameters()
    optimizer = run(capturable, params)
    run(theirs, others)
    # t and β^t in float32: 1e-7 of every step
    assert_same(params, others, rtol=1e-6, atol=1e-7)
    if name in ("Adam", "RMSprop"):
        assert all(isinstance(state["step"], torch.Tensor) for state in optimizer.state.values())
    # and a run goes on without it
    plain = ours(params)
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        group["capturable"] = False
    plain.load_state_dict(state)
    set_gradients(params, 0)
    plain.step()


@twins
def test_memory_formats_and_gradients_are_left_as_found(name):
    ours, _ = _make(name, weight_decay=0.1, maximize=True)
    w = nn.Parameter(torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)))
    w.data = w.data.to(memory_format=torch.channels_last)
    strides = w.stride()
    grad = torch.randn(w.shape, generator=torch.Generator().manual_seed(1))
    w.grad = grad.clone()
    optimizer = ours([w])
    optimizer.step()
    assert w.stride() == strides
    assert torch.equal(w.grad, grad)
    for value in optimizer.state[w].values():
        assert not isinstance(value, torch.Tensor) or value.stride() == strides


@twins
def test_random_state_is_left_as_found(name):
    ours, _ = _make(name)
    before = torch.get_rng_state()
    run(ours, small_parameters(), steps=2)
    assert torch.equal(torch.get_rng_state(), before)


@twins
def test_sparse_gradients_are_refused_before_anything_moves(name):
    ours, _ = _make(name)
    dense, sparse = nn.Parameter(torch.ones(2)), nn.Embedding(4, 3, sparse=True)
    optimizer = ours([{"params": [dense]}, {"params": sparse.parameters()}])
    dense.grad = torch.ones(2)
    sparse(torch.tensor([1])).sum().backward()
    with pytest.raises(
        TypeError, match=r"takes dense gradients, got a gradient of layout sparse_coo .* \(4, 3\); pass"
    ):
        optimizer.step()
    assert torch.equal(dense.data, torch.ones(2))


@twins
def test_complex_parameters_are_refused(name):
    ours, _ = _make(name)
    with pytest.raises(TypeError, match=r"takes real parameters, got .*complex64; optimise torch\.view_as_real"):
        ours([nn.Parameter(torch.zeros(2, dtype=torch.cfloat))])
    optimizer = ours([nn.Parameter(torch.zeros(2))])
    with pytest.raises(TypeError, match="takes real parameters"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2, dtype=torch.cfloat))]})
    assert len(optimizer.param_groups) == 1


@twins
@pytest.mark.parametrize(
    ("kwargs", "error", "wording"),
    [
        ({"lr": -0.1}, ValueError, r"lr must lie in \[0, inf\), got -0\.1; a negative rate would climb"),
        ({"lr": float("nan")}, ValueError, r"lr must lie in \[0, inf\), got nan"),
        ({"lr": "0.1"}, TypeError, r"lr must be a number"),
        ({"lr": torch.ones(2)}, ValueError, "lr must be a number or a tensor of one element"),
        ({"lr": torch.tensor(-1.0)}, ValueError, "lr must lie in"),
        ({"weight_decay": -1}, ValueError, r"weight_decay must lie in .*; it is λ/m of the penalty"),
        ({"maximize": 1}, TypeError, "maximize must be True or False, got int 1"),
        ({"foreach": "yes"}, TypeError, "foreach must be True or False"),
        ({"capturable": None}, TypeError, "capturable must be True or False"),
    ],
)
def test_hyperparameters_are_checked_by_group_too(name, kwargs, error, wording):
    ours, _, _ = TWINS[name]
    with pytest.raises(error, match=wording):
        ours([nn.Parameter(torch.zeros(1))], **kwargs)
    with pytest.raises(error, match=wording):
        ours([{"params": [nn.Parameter(torch.zeros(1))], **kwargs}])


@twins
def test_works_with_torchs_schedulers_and_grad_scaler(name):
    ours, theirs = _make(name, lr=0.1)
    results = []
    for make in (ours, theirs):
        params = small_parameters(torch.float32)
        optimizer = make(params)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
        for step in range(6):
            scaler.scale(torch.ones(()))  # as of the loss
            set_gradients(params, step, scale=float(scaler.get_scale()))
            if step == 3:
                params[0].grad[0, 0] = float("inf")  # the scaler skips this step
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
        results.append(params)
    assert_same(*results, rtol=1e-5, atol=1e-5)
    assert results[0][0].isfinite().all()
