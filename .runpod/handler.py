"""The worker's entry for RunPod's Hub and for `runpodctl project`; the image starts the module itself."""  # noqa: INP001 - a file of RunPod's, in no package of ours

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from inference.runpod_worker import main

if __name__ == "__main__":
    sys.exit(main())
