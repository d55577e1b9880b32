"""Runtime: engines, Lava backend, closed loop, report. Imports torch only to list the float policy beside a run."""
