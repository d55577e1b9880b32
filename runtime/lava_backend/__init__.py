"""The network in Lava's Loihi simulator. Process classes live in ``processes`` only."""
