"""Published chips, and a network's populations on their cores."""
