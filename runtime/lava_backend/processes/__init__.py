"""Lava processes of an integer DSFormer.

Only side-effect-free modules with absolute imports may live in this folder: Lava's compiler executes every file
beside a process class, several times. Dataclasses fail under that, so they live in
:mod:`dsf.runtime.lava_backend.stages`.

A token occupies one *period* of P ticks. A population at pipeline depth d is valid in the ticks [d, d + T) of the
period, and P = T + depth of the pipeline; what fires outside is wiped by the next reset. In the fused network every
process works on the same tick (P = T), but a block whose scores need all ticks of a token (TSSA) answers T ticks later.
In the expanded network each stock Dense costs one tick more. One token is in flight at a time.
"""
