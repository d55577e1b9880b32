"""What datasets may be called."""

from __future__ import annotations

import re

LOCAL_NAMESPACE = "dsf"
"""Minari namespace of the datasets that ``dsf-data collect`` makes."""
DATASET_ID = re.compile(r"([\w-]+/)*[\w-]+-v\d+")
"""Minari's ids: namespaces, a name, and a version."""
