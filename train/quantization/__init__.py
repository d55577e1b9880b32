"""From real values to integers: what quantization-aware training and export share; numpy only."""
