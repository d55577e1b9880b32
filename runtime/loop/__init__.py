"""The closed loop: episodes, real time, recordings, workers."""
