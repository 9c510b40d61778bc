"""Learning: supervised fine-tuning on quadruple thinking with the decision loss, and the one loop
under every trainer."""
