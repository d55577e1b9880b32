"""Training: models, normalisation, datasets, trainer. The one room that needs torch."""
