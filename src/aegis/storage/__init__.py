"""Files, artifact folders, snapshots and journals that survive a power cut."""
