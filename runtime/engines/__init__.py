"""What every engine is to the closed loop, the engines that need no Lava, and the comparison with the reference."""
