"""The C kernels of the fused neuron and the code that builds them."""
