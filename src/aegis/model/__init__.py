"""One frozen base, and what is attached to it: LoRA, SO(8) gates, a decision head."""
