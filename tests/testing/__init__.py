"""What tests, experiments and endurance runs share: random networks, small trainings, faults, odd environments."""
