"""Takes the adapters of any trainer: finds the files, repairs what can be repaired exactly."""
