"""The procedural world: scenes whose edits, masks and maps are known exactly."""
