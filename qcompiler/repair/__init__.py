"""What to change when the gate found a floor missed: regions back to float, or layers to more bits."""
