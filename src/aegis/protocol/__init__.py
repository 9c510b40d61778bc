"""What AEGIS means, without a model."""
