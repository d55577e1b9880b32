"""What every rival must have: causality, indifference to padding, DSFormer's number of parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dsf.shell.errors import UserError
from dsf.tasks import Token, get_task
from dsf.tasks.registry import TASKS
from dsf.testing.random_networks import ACTIONS, random_codec
from dsf.testing.rival_models import CONTEXT, FEATURES, OBSERVATIONS, SMALL, small_model, windows
from dsf.train.config.rivals import RIVAL_NAMES, PolicyKind, RivalConfig
from dsf.train.config.training import AttentionKind, ModelConfig
from dsf.train.evaluation.torch_policy import TorchPolicy
from dsf.train.models.activity import record_activity
from dsf.train.models.attention import PackedTokens
from dsf.train.models.dsformer import DSFormer
from dsf.train.models.neurons import LIF
from dsf.train.models.rivals.build import describe_model, dsformer_parameters, make_rival
from dsf.train.models.rivals.fourier_controller import SlidingSpectrum, SpectralConvolution
from dsf.train.models.rivals.spikegpt import TimeMix, along_tokens
from dsf.train.models.rivals.twin import TwinAttention

KINDS: tuple[PolicyKind, ...] = ("dt", "bc", "fcnet", "spikegpt", "spikebert", "strl", "twin")


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_future_changes_no_present_action(kind: PolicyKind) -> None:
    model, mask = small_model(kind), torch.ones(3, CONTEXT, dtype=torch.bool)
    integers, other = windows(3), windows(3, seed=2)
    whole = model(integers, mask)
    for now in range(CONTEXT - 1):
        changed = integers.clone()
        changed[:, now + 1 :] = other[:, now + 1 :]
        assert torch.allclose(model(changed, mask)[:, : now + 1], whole[:, : now + 1], atol=1e-6)
        assert not torch.allclose(model(changed, mask)[:, now + 1], whole[:, now + 1], atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_padding_in_front_changes_nothing_whatever_it_holds(kind: PolicyKind) -> None:
    model, integers = small_model(kind), windows(2)
    ends = torch.tensor([30, 7])
    for length in range(1, CONTEXT):
        alone = model(integers[:, -length:], torch.ones(2, length, dtype=torch.bool), ends)
        mask = (torch.arange(CONTEXT) >= CONTEXT - length).expand(2, -1)
        padded = model(integers, mask, ends)
        assert torch.allclose(padded[:, -length:], alone, atol=1e-6)
        assert not padded[:, :-length].any()


@pytest.mark.parametrize("kind", KINDS)
def test_padding_reaches_no_action_and_no_gradient(kind: PolicyKind) -> None:
    model, integers, ends = small_model(kind), windows(2), torch.tensor([2, 40])
    mask = torch.arange(CONTEXT) >= torch.tensor([[CONTEXT - 3], [CONTEXT - 5]])
    found = []
    for filling in (0.0, float("nan")):
        model.zero_grad()
        actions = model(torch.where(mask[..., None], integers, filling), mask, ends)
        actions[mask].square().sum().backward()
        found.append([actions[mask].detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) > 1 and all(torch.equal(*pair) for pair in zip(*found))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_closed_loop_answers_as_training_windows_do(kind: PolicyKind) -> None:
    model, generator = small_model(kind), np.random.default_rng(3)
    policy, history = TorchPolicy(model, lanes=1), []
    policy.reset(0)
    for step in range(2 * CONTEXT + 3):
        parts = [generator.normal(size=(1, size)) for size in (OBSERVATIONS, ACTIONS)]
        token = Token(parts[0], parts[1], generator.normal(size=1))
        history.append(torch.from_numpy(model.codec.encode(token.vector())[0]))
        window = torch.stack(history[-CONTEXT:])[None].float()
        there = torch.ones(1, window.shape[1], dtype=torch.bool)
        wanted = model(window, there, torch.tensor([step]))[0, -1]
        assert np.allclose(policy.act(token)[0], wanted.numpy(), atol=1e-6)


@torch.no_grad()
def test_decision_transformer_knows_the_step_and_cloning_only_the_observation() -> None:
    integers, mask = windows(2), torch.ones(2, CONTEXT, dtype=torch.bool)
    early, late = torch.tensor([9, 9]), torch.tensor([400, 400])
    transformer, cloning = small_model("dt"), small_model("bc")
    assert not torch.allclose(transformer(integers, mask, early), transformer(integers, mask, late), atol=1e-4)
    first = transformer(integers, mask)  # without ends, windows begin with their episodes
    assert torch.equal(first, transformer(integers, mask, torch.full((2,), CONTEXT - 1)))
    beyond = [transformer(integers, mask, torch.full((2,), 1000 + CONTEXT + more)) for more in (0, 5000)]
    assert torch.equal(*beyond)  # steps behind the last embedding share it
    changed = integers.clone()
    changed[:, :, OBSERVATIONS:] = 5.0
    changed[:, :-1] = 3.0
    assert torch.equal(cloning(changed, mask)[:, -1], cloning(integers, mask)[:, -1])


@torch.no_grad()
def test_decision_transformer_sees_what_the_sources_sequence_holds() -> None:
    """R_1 s_1 a_1 ... R_t s_t: the window's first action belongs to a step before it, a return comes before a state."""
    model, integers, mask = small_model("dt"), windows(2), torch.ones(2, CONTEXT, dtype=torch.bool)
    action, to_go = slice(OBSERVATIONS, OBSERVATIONS + ACTIONS), slice(FEATURES - 1, FEATURES)
    whole = model(integers, mask)
    for place, part, matters in ((0, action, False), (0, to_go, True), (1, action, True), (7, to_go, True)):
        changed = integers.clone()
        changed[:, place, part] = -changed[:, place, part] - 1
        assert torch.equal(model(changed, mask), whole) != matters


@pytest.mark.slow
@pytest.mark.parametrize("task", ["hopper", "halfcheetah", "pen", "pointmaze-umaze", "antmaze-umaze", "cartpole"])
@pytest.mark.parametrize("config", [ModelConfig(), ModelConfig(width=64, blocks=2), ModelConfig(attention="tssa")])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("bc", "twin")])
def test_matched_rivals_have_dsformers_parameters(kind: PolicyKind, config: ModelConfig, task: str) -> None:
    found = TASKS[task]
    codec = random_codec(found.observation_size + found.action_size + 1, 8, np.random.default_rng(0))
    generator = torch.get_rng_state()
    wanted = dsformer_parameters(config, codec, found)
    assert torch.equal(torch.get_rng_state(), generator)
    model = make_rival(kind, RivalConfig(), config, codec, found)
    assert abs(model.parameter_count() / wanted - 1) < 0.005
    assert model.rival is not None
    width, hidden = model.rival.sizes
    assert hidden >= width


@pytest.mark.parametrize("attention", ["pssa", "tssa"])
def test_the_twin_has_dsformers_width_blocks_and_mlp(attention: AttentionKind) -> None:
    """One Linear for one Linear; norms and biases are what differs, at the default size by less than 2 %."""
    config, task = ModelConfig(attention=attention), get_task("hopper")
    codec = random_codec(FEATURES, 8, np.random.default_rng(0))
    twin, original = make_rival("twin", RivalConfig(), config, codec, task), DSFormer(config, codec, ACTIONS)
    matrices = [
        sorted(tuple(module.weight.shape) for module in model.modules() if isinstance(module, nn.Linear))
        for model in (twin, original)
    ]
    assert matrices[0] == matrices[1]
    assert abs(twin.parameter_count() / original.parameter_count() - 1) < 0.02


@pytest.mark.parametrize(
    ("attention", "hidden", "words"),
    [
        ("pssa", 512, "597,823 parameters (DSFormer-PSSA of this --model: 607,000, 1.54 % more)"),
        ("tssa", 512, "597,823 parameters (DSFormer-TSSA of this --model: 606,979, 1.53 % more)"),
        ("tssa", 532, "613,243 parameters (DSFormer-TSSA of this --model: 606,979, 1.02 % fewer)"),
    ],
)
def test_parameters_are_printed_as_the_paper_does(attention: AttentionKind, hidden: int, words: str) -> None:
    """DSFormer's own count, and by how much of the dense model's it is fewer or more."""
    config, task = ModelConfig(attention=attention), get_task("hopper")
    codec = random_codec(FEATURES, 8, np.random.default_rng(0))
    twin = make_rival("twin", RivalConfig(mlp_hidden=hidden), config, codec, task)
    assert describe_model(twin, task) == f"dense twin (width 128, MLP {hidden}), {words}"


@torch.no_grad()
def test_the_twins_attention_is_its_equation() -> None:
    torch.manual_seed(0)
    attention, mask = TwinAttention(8, 2, CONTEXT), torch.ones(1, CONTEXT, dtype=torch.bool)
    attention.lag_bias.weight.normal_()
    rows = torch.randn(CONTEXT, 8)
    query, key, value = attention.qkv(rows).chunk(3, dim=-1)
    expected = torch.zeros(CONTEXT, 8)
    for head, channels in enumerate((slice(0, 4), slice(4, 8))):
        for i in range(CONTEXT):
            scores = [
                query[i, channels] @ key[j, channels] / 2 + attention.lag_bias.weight[i - j, head] for j in range(i + 1)
            ]
            shares = torch.stack(scores).softmax(dim=0)
            expected[i, channels] = shares @ value[: i + 1, channels]
    assert torch.allclose(attention(rows, PackedTokens(mask)), attention.project(expected), atol=1e-5)


def test_matching_draws_nothing_from_the_runs_random_numbers() -> None:
    codec, task = random_codec(FEATURES, 8, np.random.default_rng(0)), get_task("hopper")
    matched = make_rival("dt", RivalConfig(), SMALL, codec, task).rival
    assert matched is not None
    states = []
    for rival in (RivalConfig(), matched):
        torch.manual_seed(0)
        states.append(make_rival("dt", rival, SMALL, codec, task).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def test_every_kind_is_tested() -> None:
    assert set(KINDS) == set(RIVAL_NAMES)


def slow_spectral_convolution(convolution: SpectralConvolution, tokens: np.ndarray) -> np.ndarray:
    """The three equations of the module, loop by loop, for (context, width) in complex128."""
    window, modes = convolution.window, convolution.modes
    mixing = convolution.mixing.detach().double().numpy()
    weights = mixing[..., 0] + 1j * mixing[..., 1]
    history = np.concatenate([np.zeros((window - 1, tokens.shape[1])), tokens])
    answers = np.zeros_like(tokens)
    for now in range(len(tokens)):
        spectrum = np.fft.fft(history[now : now + window], axis=0)[:modes]
        for channel in range(tokens.shape[1]):
            mixed = spectrum[:, channel] @ weights[:, :, channel]
            for mode in range(modes):
                turned = mixed[mode] * np.exp(2j * np.pi * mode * (window - 1) / window)
                answers[now, channel] += (1 if mode == 0 else 2) * turned.real / window
    return answers


@torch.no_grad()
def test_fourier_filter_is_the_papers_transform_and_its_recurrent_form() -> None:
    torch.manual_seed(0)
    convolution = SpectralConvolution(width=5, window=6, modes=3)
    tokens = torch.randn(2, 17, 5)
    parallel = convolution(tokens)
    for lane in range(2):
        expected = slow_spectral_convolution(convolution, tokens[lane].double().numpy())
        assert np.allclose(parallel[lane].numpy(), expected, atol=1e-5)
    sliding = SlidingSpectrum(convolution, lanes=2)
    recurrent = torch.stack([sliding.step(token) for token in tokens.unbind(1)], dim=1)
    assert torch.allclose(recurrent, parallel, atol=1e-5)


def test_identity_weights_keep_a_slow_signal_and_drop_a_fast_one() -> None:
    convolution = SpectralConvolution(width=1, window=16, modes=3)
    with torch.no_grad():
        convolution.mixing.zero_()
        convolution.mixing[range(3), range(3), :, 0] = 1.0
        time = torch.arange(64) * (2 * np.pi / 16)
        for mode, kept in ((0, 1.0), (2, 1.0), (5, 0.0)):
            signal = torch.cos(mode * time)[None, :, None]
            assert torch.allclose(convolution(signal)[:, 16:], kept * signal[:, 16:], atol=1e-4)


@torch.no_grad()
def test_time_mix_is_its_recurrence() -> None:
    """N and D of the module, token by token."""
    torch.manual_seed(0)
    mix, tokens = TimeMix(6), torch.randn(1, 9, 6)
    mix.bonus.copy_(torch.randn(6))
    gate = torch.sigmoid(mix.receptance(mix.shift_r(tokens)))[0]
    key, value = mix.key(mix.shift_k(tokens))[0], mix.value(mix.shift_v(tokens))[0]
    fading, mixed = torch.exp(-torch.exp(mix.decay)), []
    above, below = torch.zeros(6), torch.zeros(6)
    for k, v in zip(key, value):
        now = torch.exp(k + mix.bonus)
        mixed.append((above + now * v) / (below + now))
        above, below = fading * above + torch.exp(k) * v, fading * below + torch.exp(k)
    expected = mix.output(gate * torch.stack(mixed))
    assert torch.allclose(mix(tokens, torch.ones(1, 9, dtype=torch.bool))[0], expected, atol=1e-5)


@torch.no_grad()
def test_spikegpts_membrane_runs_along_the_tokens_that_exist() -> None:
    drive = torch.full((2, 5, 1), 0.3)
    mask = torch.tensor([[True] * 5, [False, False, True, True, True]])
    drive[1, :2] = 100.0  # absent tokens drive nothing, whatever they hold
    spikes = along_tokens(LIF(decay=0.9, threshold=0.5), drive, PackedTokens(mask))[:, 0]
    assert spikes.tolist() == [0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("kind", ["spikegpt", "spikebert"])
@torch.no_grad()
def test_spiking_rivals_spike(kind: PolicyKind) -> None:
    model, mask = small_model(kind), torch.ones(8, CONTEXT, dtype=torch.bool)
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, LIF):
            module.register_forward_hook(lambda _m, _i, spikes, name=name: found.update({name: spikes}))
    model(windows(8), mask)
    assert len(found) == {"spikegpt": 2, "spikebert": 7}[kind] * SMALL.blocks + (kind == "spikebert")
    assert all(set(spikes.unique().tolist()) <= {0.0, 1.0} for spikes in found.values())
    with record_activity(model) as activity:
        model(windows(8), mask)
    assert activity.rates.keys() == found.keys() and bool(activity.events) == (kind == "spikebert")
    assert sum(bool(spikes.any()) for spikes in found.values()) > len(found) // 2


def test_a_window_too_short_for_its_modes_is_refused() -> None:
    codec = random_codec(FEATURES, 8, np.random.default_rng(0))
    with pytest.raises(UserError, match=r"rival\.fourier_modes is 4: a window of 5 has at most 3"):
        make_rival("fcnet", RivalConfig(fourier_window=5, fourier_modes=4), SMALL, codec, get_task("hopper"))
