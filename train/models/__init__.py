"""The DSFormer family: layers, norms, fused neurons, folding, quantization-aware form, and every model's interface."""
