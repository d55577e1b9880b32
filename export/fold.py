"""Level L1 from a trained model: :mod:`dsf.train.folding` rids it of its norms, this reads off what is left."""

from __future__ import annotations

from typing import cast

from dsf.export.folded import FoldedBlock, FoldedModel
from dsf.tasks import UserError
from dsf.train.attention import PSSA
from dsf.train.config import export_obstacles
from dsf.train.folding import float64, fold_head, fold_norm
from dsf.train.integers import Affine
from dsf.train.model import Block, DSFormer


def fold_block(block: Block, where: str) -> FoldedBlock:
    """Fold one transformer block.

    Raises:
        UserError: a norm cannot be folded.
    """
    attention, mlp = cast(PSSA, block.attention), block.mlp
    return FoldedBlock(
        qkv=fold_norm(attention.qkv, attention.qkv_norm, f"{where}.attention.qkv_norm"),
        positional_bias=float64(attention.positional_bias),
        project=fold_norm(attention.project, attention.project_norm, f"{where}.attention.project_norm"),
        expand=fold_norm(mlp.expand, mlp.expand_norm, f"{where}.mlp.expand_norm"),
        contract=fold_norm(mlp.contract, mlp.contract_norm, f"{where}.mlp.contract_norm"),
    )


def fold(model: DSFormer) -> FoldedModel:
    """Fold a trained model.

    Raises:
        UserError: something in it cannot become spikes, or this version cannot export it; the message names all of it.
    """
    config = model.config
    if obstacles := export_obstacles(config, model.discrete):
        raise UserError(f"cannot export: {'; '.join(obstacles)}")
    embed = fold_norm(model.embed, model.embed_norm, "embed_norm")
    return FoldedModel(
        codec=model.codec,
        embed=Affine(embed.weight * float64(model.input_unit), embed.bias),
        blocks=tuple(fold_block(cast(Block, block), f"blocks.{i}") for i, block in enumerate(model.blocks)),
        head=fold_head(model),
        threshold=config.threshold,
        decay=config.decay,
        ticks=config.ticks,
        context=config.context,
    )
