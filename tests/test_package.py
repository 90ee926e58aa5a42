"""What importing torchnotes brings in, and what it promises by name."""

import subprocess
import sys

import pytest

import torchnotes

HEAVY = [
    "tensorboard",
    "rich",
    "tyro",
    "matplotlib",
    "sklearn",
    "optuna",
    "scipy",
    "pandas",
    "IPython",
    "pkg_resources",
]


def test_importing_every_part_imports_nothing_heavy():
    # Compared with torch alone: what torch itself brings in is not ours to answer for.
    script = (
        "import sys, torch; before = set(sys.modules); import torchnotes; "
        "_ = [getattr(torchnotes, name) for name in dir(torchnotes)]; "
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & set(HEAVY)
    assert "torchnotes" in done.stdout.split()


# The names other people's code calls: additions are fine, a removal breaks them.
PUBLIC = {
    "ops": """linear sigmoid tanh relu leaky_relu softmax log_softmax binary_cross_entropy
        binary_cross_entropy_with_logits cross_entropy dropout batch_norm dense l1_penalty l2_penalty""",
    "nn": """Linear Sigmoid Tanh ReLU LeakyReLU Softmax LogSoftmax BCELoss BCEWithLogitsLoss CrossEntropyLoss
        Dropout BatchNorm1d BatchNorm2d Dense MLP""",
    "init": "zeros_ small_normal_ lecun_normal_ he_normal_ xavier_normal_ initialize_ calibrate_",
    "gradcheck": """check_gradients check_function assert_gradients GradientMismatch GradientReport
        numerical_gradient gradient_ratio""",
    "diagnostics": "probe SignalMonitor SignalReport",
    "optim": "GradientDescent Momentum RMSprop Adam ExponentialAverage",
    "optim.lr_scheduler": "InverseTimeDecay InverseSqrtDecay ExponentialDecay StaircaseDecay ManualDecay",
    "data": "InputNormalizer train_dev_test_split minibatches augment",
    "training": "fit EarlyStopping check_monotonic diagnose_fit search",
    "regularization": "Penalty",
    "shapes": "expect",
}


@pytest.mark.parametrize("package", PUBLIC)
def test_public_names(package):
    module = torchnotes
    for part in package.split("."):
        module = getattr(module, part)
    missing = [name for name in PUBLIC[package].split() if not hasattr(module, name)]
    assert not missing


def test_top_level_names():
    from torchnotes.diagnostics import SignalMonitor, probe
    from torchnotes.gradcheck import check_gradients

    assert torchnotes.check_gradients is check_gradients
    assert torchnotes.probe is probe
    assert torchnotes.SignalMonitor is SignalMonitor


def test_an_unknown_name_is_refused_like_any_other():
    assert not hasattr(torchnotes, "no_such_name")
    assert {"ops", "check_gradients", "__version__"} <= set(dir(torchnotes))
