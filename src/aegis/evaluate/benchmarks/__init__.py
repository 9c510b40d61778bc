"""lm-evaluation-harness's tasks and prompts, scored by our engines, every item kept."""
