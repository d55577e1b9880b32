"""Runtime: engines, the Lava backend, the closed loop and its report. Imports no torch unless --compare asks for it."""
