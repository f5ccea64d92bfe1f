"""The trainer's commands, a file each; `loragate` finds them as entry points."""
