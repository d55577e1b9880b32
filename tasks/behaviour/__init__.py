"""Behaviour policies: the shipped soft actor-critic snapshots that ``dsf-data collect`` rolls out."""

from dsf.tasks.behaviour.actor import Actor, load_actor

__all__ = ["Actor", "load_actor"]
