"""The formats a network is written in: ONNX, NIR, torch, netx."""
