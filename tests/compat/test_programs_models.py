"""The programs of the page on whole models, with other imports; batches are 1 of 8 and 1 of 16 there."""

from typing import Any

import pytest
import torch

from tests.cases import agree
from xfn.compat.factory import (
    BasicLayerConfig,
    get_hierarchical_configuration,
    xFormerEncoderBlock,
    xFormerEncoderConfig,
    xFormerStackConfig,
)
from xfn.compat.factory.model_factory import xFormer, xFormerConfig

EMB = 384
SEQ = 1024
BATCH = 1
VOCAB = 64


@torch.no_grad()
def test_an_encoder_block(capsys: pytest.CaptureFixture[str]) -> None:
    encoder_config: dict[str, Any] = {
        "dim_model": EMB,
        "residual_norm_style": "pre",
        "position_encoding_config": {"name": "vocab", "seq_len": SEQ, "vocab_size": VOCAB},
        "multi_head_config": {
            "num_heads": 4,
            "residual_dropout": 0,
            "attention": {"name": "linformer", "dropout": 0, "seq_len": SEQ},
        },
        "feedforward_config": {"name": "MLP", "dropout": 0, "activation": "relu", "hidden_layer_multiplier": 4},
    }

    config = xFormerEncoderConfig(**encoder_config)

    encoder = xFormerEncoderBlock(config)

    x = (torch.rand((BATCH, SEQ)) * VOCAB).abs().to(torch.int)
    y = encoder(x, x, x)
    print(y)

    assert y.shape == (BATCH, SEQ, EMB)
    assert capsys.readouterr().out == f"{y}\n"
    stack = xFormerStackConfig(block_config=config, num_layers=2, reversible=True)
    assert xFormer.from_config(xFormerConfig([stack]))(x).shape == (BATCH, SEQ, EMB)


@torch.no_grad()
def test_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    my_config = [
        {
            "reversible": False,
            "block_type": "encoder",
            "num_layers": 3,
            "dim_model": EMB,
            "residual_norm_style": "pre",
            "position_encoding_config": {"name": "vocab", "seq_len": 1024, "vocab_size": VOCAB},
            "multi_head_config": {
                "num_heads": 4,
                "residual_dropout": 0,
                "attention": {"name": "linformer", "dropout": 0, "causal": False, "seq_len": SEQ},
            },
            "feedforward_config": {"name": "MLP", "dropout": 0, "activation": "relu", "hidden_layer_multiplier": 4},
            "simplicial_embeddings": {"L": 4, "temperature": 0.5},
        },
        {
            "reversible": False,
            "block_type": "decoder",
            "num_layers": 3,
            "dim_model": EMB,
            "residual_norm_style": "pre",
            "position_encoding_config": {"name": "vocab", "seq_len": SEQ, "vocab_size": VOCAB},
            "multi_head_config_masked": {
                "num_heads": 4,
                "residual_dropout": 0,
                "attention": {"name": "nystrom", "dropout": 0, "causal": True, "seq_len": SEQ},
            },
            "multi_head_config_cross": {
                "num_heads": 4,
                "residual_dropout": 0,
                "attention": {"name": "favor", "dropout": 0, "causal": True, "seq_len": SEQ},
            },
            "feedforward_config": {"name": "MLP", "dropout": 0, "activation": "relu", "hidden_layer_multiplier": 4},
        },
    ]

    with pytest.warns(UserWarning, match="exact attention stands in") as said:
        config = xFormerConfig(my_config)
    model = xFormer.from_config(config)

    x = (torch.rand((BATCH, SEQ)) * VOCAB).abs().to(torch.int)
    y = model(src=x, tgt=x)
    print(y)

    assert len(said) == 1
    assert y.shape == (BATCH, SEQ, EMB)
    assert capsys.readouterr().out == f"{y}\n"
    other = torch.cat([x[:, :9], (x[:, 9:] + 1) % VOCAB], 1)
    agree(model(src=x, tgt=other)[:, :9], y[:, :9].double(), 1e-4)


@torch.no_grad()
def test_a_pyramid() -> None:
    image_size = 32

    base_hierarchical_configs = [
        BasicLayerConfig(
            embedding=64,
            attention_mechanism="scaled_dot_product",
            patch_size=7,
            stride=4,
            padding=2,
            seq_len=image_size * image_size // 16,
            feedforward="MLP",
        ),
        BasicLayerConfig(
            embedding=128,
            attention_mechanism="scaled_dot_product",
            patch_size=3,
            stride=2,
            padding=1,
            seq_len=image_size * image_size // 64,
            feedforward="MLP",
        ),
        BasicLayerConfig(
            embedding=320,
            attention_mechanism="scaled_dot_product",
            patch_size=3,
            stride=2,
            padding=1,
            seq_len=image_size * image_size // 256,
            feedforward="MLP",
        ),
    ]

    xformer_config = get_hierarchical_configuration(
        base_hierarchical_configs, residual_norm_style="pre", use_rotary_embeddings=False, mlp_multiplier=4, dim_head=32
    )
    config = xFormerConfig(xformer_config)

    assert xFormer.from_config(config)(torch.randn(2, 3, image_size, image_size)).shape == (2, 4, 320)
