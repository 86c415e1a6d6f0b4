"""Neither service's main process loads the training stack."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "transformers", "peft", "gguf", "pyarrow")


def test_the_training_stack_is_not_loaded():
    modules = "coordinator.app, coordinator.__main__, participant.app, participant.__main__, participant.daemon"
    code = f"import sys, {modules}; print(sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
