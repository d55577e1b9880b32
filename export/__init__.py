"""Export: folding, integer networks, the network file and its proof.

What a program needs of it is here; importing it loads nothing before a name is used, and reading a network never needs
torch::

    from dsf.export import ExportConfig, export, read_network

    exported = export(ExportConfig(Path("runs/hopper"), out=Path("hopper.dsf.h5")))
    network = read_network(exported.written.path)

- :class:`ExportConfig`: what ``dsf-export RUN`` can be told.
- :func:`export`: a whole export, without a print; writes the file, and returns an :class:`ExportedNetwork`.
- :class:`Network`: an integer network; :func:`read_network` and :func:`write_network` are for its file.

Only ``conversion.fold``, ``proof.levels``, ``proof.verify`` and ``targets.torch_module`` need torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsf.shell.public_names import public_names

if TYPE_CHECKING:
    from dsf.export.exported import ExportedNetwork
    from dsf.export.exporting import export
    from dsf.export.network.file import read_network, write_network
    from dsf.export.network.network import Network
    from dsf.export.options import ExportConfig
else:
    __getattr__ = public_names(
        __name__,
        {
            "ExportConfig": "dsf.export.options",
            "ExportedNetwork": "dsf.export.exported",
            "Network": "dsf.export.network.network",
            "export": "dsf.export.exporting",
            "read_network": "dsf.export.network.file",
            "write_network": "dsf.export.network.file",
        },
    )

__all__ = ["ExportConfig", "ExportedNetwork", "Network", "export", "read_network", "write_network"]
