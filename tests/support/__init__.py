"""What tests of several files stand on; fixtures are in the `conftest.py` files."""
