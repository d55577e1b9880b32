"""Runs network descriptions in SANA-FE, on its own Loihi: ``sanafe_process.py TICKS FILE...``, JSON on standard output.

A program of its own: SANA-FE is under the GPL, so nothing of dsf imports it, and this imports nothing of dsf.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys

import sanafe


def run(path: str, ticks: int, architecture: sanafe.Architecture) -> dict[str, object]:
    """Load a description into a fresh chip and run it."""
    chip = sanafe.SpikingChip(architecture)
    chip.load(sanafe.load_net(path, architecture))
    result = chip.sim(ticks, spike_trace=True, message_trace=True)
    messages = [message for tick in result["message_trace"] for message in tick if not message["placeholder"]]
    return {
        "synaptic_operations": result["spikes"],
        "messages": result["packets_sent"],
        "hops_east_west": sum(abs(message["dest_x"] - message["src_x"]) for message in messages),
        "hops_north_south": sum(abs(message["dest_y"] - message["src_y"]) for message in messages),
        "joules": result["energy"]["total"],
        "seconds": result["sim_time"],
        "spikes": [[[address.group_name, address.neuron_offset] for address in tick] for tick in result["spike_trace"]],
    }


if __name__ == "__main__":
    loihi = sanafe.load_loihi()
    runs = [run(path, int(sys.argv[1]), loihi) for path in sys.argv[2:]]
    sys.stdout.write("\n" + json.dumps({"version": importlib.metadata.version("sanafe"), "runs": runs}))
