"""SI units: a figure in joules or seconds, divided by one of these, is a figure in that unit."""

from __future__ import annotations

PICOJOULE = 1e-12
MICROJOULE = 1e-6
NANOSECOND = 1e-9
MICROSECOND = 1e-6
MILLISECOND = 1e-3
