"""The trainer's commands, one file a noun; `loragate` finds them by entry point."""
