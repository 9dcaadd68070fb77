"""``python -m nz_onnx`` is the command ``nz-onnx``, and ``compare``, which needs ONNX Runtime's tools in Python."""

import sys

from .command import main
from .compare import main as compare

if sys.argv[1:2] == ["compare"]:
    sys.exit(compare(sys.argv[2:]))
sys.exit(main())
