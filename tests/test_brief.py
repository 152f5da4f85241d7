"""The choice that ``--brief`` makes leaves no kernel, case or dtype out."""

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from .laws.test_kernels import DTYPES, KERNELS

ROOT = Path(__file__).parent.parent
LAW = "test_equals_the_reference_or_refuses"


def test_every_kernel_meets_every_case_and_every_dtype() -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "--brief", "tests/laws/test_kernels.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    found = [line.partition("[")[2].removesuffix("]") for line in done.stdout.splitlines() if f"::{LAW}[" in line]
    asked = [name.rpartition("-")[::2] for name in found]
    assert sorted(name for name, _ in asked) == sorted(str(param.id) for param in KERNELS)
    dtypes: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, dtype in asked:
        case, member, backend = name.rsplit("-", 2)
        dtypes[case.partition("-")[0], member, backend].append(dtype)
    assert all(len(set(met)) == len(DTYPES) for met in dtypes.values() if len(met) >= len(DTYPES))
