"""``python -m nz_onnx`` is the command ``nz-onnx``."""

import sys

from .command import main

sys.exit(main())
