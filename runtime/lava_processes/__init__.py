"""Lava processes of an integer DSFormer.

Only side-effect-free modules with absolute imports may live in this folder: Lava's compiler executes every file
beside a process class, several times (dataclasses fail under that, so they live one level up).

A token occupies one *period* of P ticks. In the fused network P = T and every process works on the same tick. In the
expanded network each stock Dense costs one tick, so a population at pipeline depth d is valid in the ticks
[d, d + T) of the period and P = T + depth of the pipeline; what fires outside is wiped by the next reset.
"""
