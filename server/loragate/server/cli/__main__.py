"""`python -m loragate.server.cli` is `loragate`."""

from loragate.server.cli.main import main

main()
