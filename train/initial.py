"""The model that a run starts from: random weights, or for fine-tuning, also through integers, a trained model's."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from dsf.shell.arrays import FloatArray
from dsf.shell.errors import UserError
from dsf.tasks.registry import ENVIRONMENT_FACT, TASK_FACT, same_interface
from dsf.tasks.task import DELAYED
from dsf.train.checkpoint import Checkpoint, load_checkpoint
from dsf.train.config.levers import option
from dsf.train.config.rivals import RivalConfig
from dsf.train.config.training import ModelConfig, TrainConfig, quantization_obstacles, to_json
from dsf.train.data.dataset import OfflineDataset
from dsf.train.models.decision_model import DecisionModel
from dsf.train.models.dsformer import DSFormer
from dsf.train.models.qat import quantization_aware
from dsf.train.models.rivals.build import make_rival
from dsf.train.models.rivals.qat import quantization_aware_rival
from dsf.train.quantization.codec import InputCodec

MAY_DIFFER = {"ticks", "learn_thresholds", "learn_decays"}
"""Fields of a model that fine-tuning in floats may change."""


def fit_codec(data: OfflineDataset, bits: int) -> InputCodec:
    """Fit the input codec so that no target return of the task is clipped."""
    targets: FloatArray = np.full((len(data.task.target_returns), data.tokens.shape[1]), np.nan)
    targets[:, -1] = np.array(data.task.target_returns) / data.task.return_scale
    return InputCodec.fit(data.statistics, targets, bits)


def with_model_of_checkpoint(config: TrainConfig) -> TrainConfig:
    """Fine-tuning and quantization-aware training keep the architecture of the checkpoint they go on from, unless told
    another; those that fine-tuning may change leave the rest as it is. A resumed run that fine-tunes goes on doing so.
    """
    if config.resume and config.init is None and not config.qat_steps:
        config = dataclasses.replace(config, init=fine_tuned_from(load_checkpoint(config.out)))
    told = {name: value for name, value in vars(config.model).items() if value != getattr(ModelConfig(), name)}
    moves = config.fine_tunes and told.keys() <= MAY_DIFFER
    untold, untold_rival = moves or not told, config.rival == RivalConfig()
    if not (config.qat_steps or config.fine_tunes) or not (untold or untold_rival):
        return config
    checkpoint = load_checkpoint(config.out if config.resume else config.init or Path())
    if untold:
        if told.get("ticks") == 1:  # no membrane outlives the only tick, so decays say nothing
            told["learn_decays"] = False
        config = dataclasses.replace(config, model=dataclasses.replace(checkpoint.model_config(), **told))
    if untold_rival and config.policy == checkpoint.policy() != "dsformer":
        config = dataclasses.replace(config, rival=checkpoint.rival_config())
    return config


def fine_tuned_from(checkpoint: Checkpoint) -> Path | None:
    """What a run that was fine-tuned in floats started from; None of every other run."""
    trained = checkpoint.header["train"]
    start = None if trained.get("qat_steps") else trained.get("init")
    return None if start is None else Path(str(start))


def initial_model(config: TrainConfig, data: OfflineDataset) -> DecisionModel:
    """The model of a run's step 0; where a run from --init resumes, the model to load its state into.

    Raises:
        UserError: it cannot start from --init, or continue --out.
    """
    task = data.task
    if not (config.qat_steps or config.fine_tunes):
        codec = fit_codec(data, config.model.input_bits)
        if config.policy != "dsformer":
            return make_rival(config.policy, config.rival, config.model, codec, task)
        return DSFormer(config.model, codec, task.action_size, task.discrete)
    if config.qat_steps and config.policy == "dsformer" and (obstacles := quantization_obstacles(config.model)):
        raise UserError(f"--qat-steps: {'; '.join(obstacles)}")
    if config.resume:
        checkpoint = load_checkpoint(config.out)
        if (checkpoint.header.get("quantization") is None) == bool(config.qat_steps):
            what = "an ordinary run" if config.qat_steps else "a run of quantization-aware training"
            raise UserError(f"--resume: {checkpoint.path} is {what}: pass it as --init, with another --out")
        return checkpoint.build_trained() if checkpoint.policy() == "dsformer" else checkpoint.build_model()
    checkpoint = load_checkpoint(config.init or Path())
    require_fitting(checkpoint, config, data)
    if config.fine_tunes:
        if config.policy != "dsformer":
            return checkpoint.build_model()
        return with_model(checkpoint, config.model).build_trained()
    if config.policy != "dsformer":
        return quantization_aware_rival(checkpoint.build_model(), config.bits)
    return quantization_aware(checkpoint.build_trained(), config.bits, config.threshold_units, config.per_channel)


def with_model(checkpoint: Checkpoint, model: ModelConfig) -> Checkpoint:
    """The same weights under another model, as far as :data:`MAY_DIFFER`: all of them fit any number of ticks, and
    thresholds and decays that are to be learned start where the neurons stand. At one tick there are no decays.
    """
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if model.learn_decays or not _decays(name)}
    if model.learn_thresholds:
        for branch in ("mlp", *(() if model.attention == "none" else ("attention",))):
            for block in range(model.blocks):
                name = f"model.blocks.{block}.{branch}.input_lif.log_threshold"
                tensors.setdefault(name, torch.zeros(model.width))
    if model.learn_decays:
        sizes = {"mlp.input_lif": model.width, "mlp.hidden_lif": model.mlp_ratio * model.width}
        if model.attention != "none":
            sizes |= {f"attention.{name}": model.width for name in ("input_lif", "attention_lif")}
            sizes["attention.qkv_lif"] = 3 * model.width
        for block in range(model.blocks):
            for population, size in sizes.items():
                tensors.setdefault(f"model.blocks.{block}.{population}.logit_decay", torch.zeros(size))
    return dataclasses.replace(checkpoint, tensors=tensors, header={**checkpoint.header, "model": to_json(model)})


def _decays(name: str) -> bool:
    """Whether a tensor of a checkpoint holds a population's learned decays."""
    return name.endswith(".logit_decay")


def _may_change(name: str, config: TrainConfig) -> bool:
    """Whether fine-tuning may change a field of a model: what is to be learned now, and decays where nothing decays."""
    if not config.fine_tunes or name not in ("learn_thresholds", "learn_decays"):
        return False
    return bool(getattr(config.model, name)) or (name == "learn_decays" and config.model.ticks == 1)


def require_fitting(checkpoint: Checkpoint, config: TrainConfig, data: OfflineDataset) -> None:
    """Refuse a checkpoint that fine-tuning or quantization-aware training with these settings cannot start from.

    Raises:
        UserError: it is quantized already, or has another policy, task or model, or zeros that would be filled again.
    """
    header = checkpoint.header
    if (policy := checkpoint.policy()) != config.policy:
        raise UserError(f"--init: {checkpoint.path} has --policy {policy}, not {config.policy}: repeat its policy")
    if header.get("quantization") is not None:
        raise UserError(f"--init: {checkpoint.path} is quantized already: name the float run that it started from")
    if (
        header["task"].removesuffix(DELAYED) == data.task.name.removesuffix(DELAYED)
        and header["task"] != data.task.name
    ):
        which = "with" if header["task"].endswith(DELAYED) else "without"
        raise UserError(f"--init: {checkpoint.path} was trained {which} --data.delayed-reward: repeat that")
    if header["task"] != data.task.name:
        raise UserError(
            f"--init: {checkpoint.path} was trained for {header['task']}, {data.dataset_id} is for {data.task.name}: "
            "name a dataset of that task"
        )
    if header.get(ENVIRONMENT_FACT) != data.facts.get(ENVIRONMENT_FACT):
        worlds = f"{checkpoint.task().world}, {data.dataset_id} is from {data.task.world}"
        raise UserError(f"--init: {checkpoint.path} was trained on data from {worlds}: name a dataset of that")
    own = header.get(TASK_FACT) is not None
    if own != (data.task.definition is not None) or (own and not same_interface(checkpoint.task(), data.task)):
        raise UserError(
            f"--init: {checkpoint.path} reads or answers otherwise than {data.dataset_id} needs (sizes, bounds, return "
            "scale): give both the same --task FILE"
        )
    theirs = checkpoint.model_config()
    asked = [("model", name, mine, getattr(theirs, name)) for name, mine in vars(config.model).items()]
    if config.policy != "dsformer":
        rival = checkpoint.rival_config()
        sizes = {name: mine for name, mine in vars(config.rival).items() if mine is not None}  # None: as they are
        asked += [("rival", name, mine, getattr(rival, name)) for name, mine in sizes.items()]
    for group, name, mine, found in asked:
        if name == "ticks" and found != mine and config.policy == "dsformer":
            require_fewer_ticks(checkpoint, config, mine, found)
        elif found != mine and not (group == "model" and _may_change(name, config)):
            flag = f"--{group}.{name.replace('_', '-')}"
            raise UserError(f"--init: {checkpoint.path} has another {flag} than {mine}: use {found}")
    for name in ("prune_weights", "prune_channels"):
        before, now = checkpoint.header["train"].get(name), getattr(config, name)
        if before is not None and (now is None or now < before):
            raise UserError(
                f"--init: {checkpoint.path} was pruned with {option(name)} {before:g}, and this run would fill its "
                f"zeros again: give {option(name)} {before:g} or more"
            )


def require_fewer_ticks(checkpoint: Checkpoint, config: TrainConfig, mine: int, found: int) -> None:
    """Refuse other ticks than a checkpoint's where its norms cannot learn them, or more of them.

    Raises:
        UserError: either.
    """
    what = f"--init: {checkpoint.path} has another --model.ticks than {mine}: use {found}"
    if not config.fine_tunes:
        raise UserError(
            f"{what}, because --qat-steps folds norms whose statistics are of {found} ticks; or fine-tune it in floats "
            f"with --model.ticks {mine} first, without --qat-steps"
        )
    if mine > found:
        raise UserError(f"{what} or fewer, because fine-tuning only goes down")
