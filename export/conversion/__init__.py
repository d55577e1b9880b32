"""From a trained model to integers: folding, calibration, quantization, a report on every layer."""
