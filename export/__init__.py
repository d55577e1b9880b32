"""Export: folding, integer networks, the network file and its proof.

``network``, ``reference``, ``bounds`` and ``file`` need numpy and h5py only; ``fold``, ``verify`` and ``cli`` need
torch.
"""
