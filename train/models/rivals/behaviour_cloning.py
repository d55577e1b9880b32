"""Behaviour cloning: an MLP from the observation alone to the action, with no return, history or previous action.

What D4RL (Fu et al. 2020, arXiv 2004.07219) and CORL (Tarasov et al. 2022, arXiv 2210.07105) call BC: two hidden layers
of 256 and tanh; trained on the best 10 % of the episodes (``--data.top-percent 10``) it is 10%-BC. Its parameters are
not matched to DSFormer's, as nobody's are: it is the baseline that asks whether a sequence model is needed at all.
"""

from __future__ import annotations

from torch import Tensor, nn

from dsf.train.config.rivals import RivalConfig
from dsf.train.config.training import ModelConfig
from dsf.train.models.attention import PackedTokens
from dsf.train.models.decision_model import DecisionModel
from dsf.train.quantization.codec import InputCodec

CLONING_WIDTH = 256
"""Channels of a hidden layer, where --rival.width says nothing."""
HIDDEN_LAYERS = 2


class BehaviourCloning(DecisionModel):
    """The policy.

    Args:
        rival: with ``width`` set.
        config, codec, action_size, discrete: see :class:`~dsf.train.models.decision_model.DecisionModel`.
    """

    kind = "bc"

    def __init__(
        self, rival: RivalConfig, config: ModelConfig, codec: InputCodec, action_size: int, discrete: bool = False
    ) -> None:
        super().__init__(config, codec, action_size, discrete)
        width, _ = rival.sizes
        self.rival = rival
        self.observation_size = len(codec.unit) - action_size - 1
        layers: list[nn.Module] = []
        for inputs in (self.observation_size, *[width] * (HIDDEN_LAYERS - 1)):
            layers += [nn.Linear(inputs, width), nn.ReLU() if rival.activation == "relu" else nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, action_size))

    def is_prunable(self, linear: str) -> bool:
        """What lies between the first layer and the last one."""
        return linear in [name for name, module in self.named_modules() if isinstance(module, nn.Linear)][1:-1]

    def decide(self, integers: Tensor, tokens: PackedTokens) -> Tensor:
        """See the base class; every token for itself."""
        observation = (integers * self.input_unit)[:, : self.observation_size]
        return self.squash(self.layers(observation))
