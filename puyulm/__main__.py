import sys

from puyulm.cli import main

sys.exit(main())
