"""The DSFormer family: layers, norms, fused neurons, folding, quantization-aware form, and the interface of every model."""
