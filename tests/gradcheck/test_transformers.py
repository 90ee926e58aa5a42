"""PyTorch's transformer layers and stacks, as they are built and masked: right ones are correct, a fault is named."""

import pytest
import torch
from torch import nn

from tests.gradcheck._nets import seeded
from tests.gradcheck.test_shapes_of_models import every_second, percent, planted, randn, sign, weighted
from torchnotes.gradcheck import check_gradients

X, MEMORY = randn(2, 4, 6), randn(2, 3, 6, seed=2)
CAUSAL = torch.triu(torch.ones(4, 4, dtype=torch.bool), 1)
PADDED = torch.tensor([[False, False, False, False], [False, False, False, True]])
MEMORY_PADDED = torch.tensor([[False, False, True], [False, False, False]])
MASKED = {"tgt_mask": CAUSAL, "tgt_key_padding_mask": PADDED, "memory_key_padding_mask": MEMORY_PADDED}


def decoder_layer(**options):
    return nn.TransformerDecoderLayer(6, 2, 8, batch_first=True, **{"dropout": 0.0, **options})


def decoder(n, **options):
    return nn.TransformerDecoder(decoder_layer(**options), n)


def encoder(n, **options):
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, **{"dropout": 0.0, **options})
    return nn.TransformerEncoder(layer, n, norm=nn.LayerNorm(6), enable_nested_tensor=False)


DECODED = {"tgt": X, "memory": MEMORY}
EXACT = [
    pytest.param(decoder_layer, {**DECODED, **MASKED}, "multihead_attn.in_proj_weight", id="decoder layer, masks"),
    pytest.param(lambda: encoder(2), X, "layers.0.linear1.weight", id="2 encoders"),
]
PROJECTED = [
    *EXACT,
    pytest.param(
        lambda: decoder_layer(norm_first=True, dropout=0.2, activation="gelu"),
        (X, MEMORY),
        "linear2.weight",
        id="decoder layer, norm first, dropout",
    ),
    pytest.param(
        lambda: decoder(3, norm_first=True, dropout=0.1),
        {**DECODED, **MASKED},
        "layers.1.multihead_attn.out_proj.weight",
        id="3 decoders, norm first, dropout, masks",
    ),
    pytest.param(
        lambda: encoder(3, norm_first=True, dropout=0.2),
        {"src": X, "mask": CAUSAL, "src_key_padding_mask": PADDED},
        "layers.2.self_attn.in_proj_weight",
        id="3 encoders, norm first, dropout, masks",
    ),
]


@pytest.mark.parametrize("factor", [percent, sign, every_second])
@pytest.mark.parametrize(
    ("make", "inputs", "name", "method"),
    [
        pytest.param(*p.values, m, id=f"{p.id}, {m}")
        for m, ps in (("exact", EXACT), ("projected", PROJECTED))
        for p in ps
    ],
)
def test_right_is_correct_and_a_fault_is_named(make, inputs, name, method, factor):
    model = seeded(make())
    if factor is percent:
        report = check_gradients(model, inputs, loss=weighted, method=method)
        assert report.verdict == "correct", str(report)
    wrong, where = planted(model, name, factor)
    report = check_gradients(wrong, inputs, loss=weighted, method=method, modules=factor is sign)
    assert [n for n, p in report.by_parameter.items() if p.verdict == "wrong"] == [where], str(report)
    assert report.culprits == ((where.replace(".original", ".0"),) if factor is sign else ())
