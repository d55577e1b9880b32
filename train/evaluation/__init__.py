"""What a trained model is worth: closed-loop scores, token accuracy, look-up tables."""
