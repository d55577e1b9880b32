"""What datasets may be called."""

from __future__ import annotations

import re

LOCAL_NAMESPACE = "dsf"
"""Minari namespace of the datasets that ``dsf-data collect`` makes."""
DATASET_ID = re.compile(r"([\w-]+/)*[\w-]+-v\d+")
"""Minari's ids: namespaces, a name, and a version."""
FILE_NAME = "main_data.hdf5"
"""Where Minari's hdf5 format keeps all episodes."""
