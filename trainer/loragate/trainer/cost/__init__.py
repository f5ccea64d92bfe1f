"""What training, serving and prompting cost."""
