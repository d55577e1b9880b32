"""Copy a run's checkpoint without the optimizer's state: a third of the size, and all that inference needs."""

from __future__ import annotations

import sys
from pathlib import Path

from dsf.train.checkpoint import load_checkpoint, save_checkpoint


def main() -> None:
    """Usage: strip_checkpoint.py RUN OUT."""
    checkpoint = load_checkpoint(Path(sys.argv[1]))
    header = {key: value for key, value in checkpoint.header.items() if key not in ("format", "sampler")}
    save_checkpoint(Path(sys.argv[2]), {f"model.{n}": t for n, t in checkpoint.group("model").items()}, header)


if __name__ == "__main__":
    main()
