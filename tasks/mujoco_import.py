"""MuJoCo's import, which environments need, whatever graphics a machine has."""

from __future__ import annotations

import multiprocessing
import os
import sys

from dsf.shell.interrupts import interrupts_deferred, terminal_signals_held

GRAPHICS_VARIABLE, NO_GRAPHICS = "MUJOCO_GL", "disabled"
"""What MuJoCo draws with; it reads that when it is imported."""


def import_mujoco() -> None:
    """Import MuJoCo, also where the graphics that :data:`GRAPHICS_VARIABLE` asks for are not there, or are nonsense.

    Nothing here needs them, so they are switched off then, with a line that says so. Signals wait for the end: one of
    its libraries asks a Python process of its own for a version, which would print a traceback where it is interrupted,
    or where nobody is left to hear it.
    """
    if "mujoco" in sys.modules:
        return
    with interrupts_deferred(), terminal_signals_held():
        try:
            import mujoco
        except Exception as error:  # whatever the library behind it raises
            asked = os.environ.get(GRAPHICS_VARIABLE)
            if not asked or asked == NO_GRAPHICS:
                raise
            os.environ[GRAPHICS_VARIABLE] = NO_GRAPHICS
            import mujoco  # noqa: F401

            if multiprocessing.parent_process() is None:
                reason = " ".join(str(error).split())
                note = f"note: {GRAPHICS_VARIABLE}={asked} is left aside ({reason}): nothing here needs it"
                print(note, file=sys.stderr)
