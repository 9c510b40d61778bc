"""Tuning: Optuna owns the study, a trial is a run of our own steps in a process of its own."""
