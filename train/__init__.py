"""Training: models, normalisation, datasets, trainer. The one room that needs torch.

What a program needs of it is here; importing it loads neither torch nor anything else before a name is used::

    from dsf.train import TrainConfig, train

    run = train(TrainConfig("dsf/hopper/medium-expert-v1", out=Path("runs/hopper")))
    print(run.checkpoint, [score.score_mean for score in run.scores])

- :class:`TrainConfig`: what ``dsf-train`` can be told.
- :func:`train`: a whole training, without a print; returns a :class:`TrainedRun`.
- :func:`load_dataset`: a dataset of the Minari store, with its statistics and content hash.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsf.shell.public_names import public_names

if TYPE_CHECKING:
    from dsf.train.config.training import TrainConfig
    from dsf.train.data.dataset import load_dataset
    from dsf.train.trained_run import TrainedRun
    from dsf.train.training import train
else:
    __getattr__ = public_names(
        __name__,
        {
            "TrainConfig": "dsf.train.config.training",
            "TrainedRun": "dsf.train.trained_run",
            "load_dataset": "dsf.train.data.dataset",
            "train": "dsf.train.training",
        },
    )

__all__ = ["TrainConfig", "TrainedRun", "load_dataset", "train"]
