"""Processes that compile Triton kernels, one for each thread that asks; a process that dies costs its job alone."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from blast_compile.aot.jobs import Job
from blast_compile.base.errors import BuildError


class GpuPool:
    """Workers that live from the first job of their thread until `close`."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._workers: list[subprocess.Popen[str]] = []
        self._lock = threading.Lock()

    def compile(self, job: Job) -> dict[str, Any]:
        """The fields of a `triton_cross.CompiledKernel`, and its occupancy; a `BuildError` where there is none."""
        request = {
            "spec": asdict(job.spec),
            "config": asdict(job.config),
            "sizes": job.sizes,
            "helper": job.helper,
        }
        answer = self._ask(json.dumps(request))
        if "error" in answer:
            raise BuildError(answer["error"])
        return {**answer, "binary": base64.b64decode(answer["binary"])}

    def close(self) -> None:
        """Ends the workers, in the middle of a job too."""
        with self._lock:
            for worker in self._workers:
                worker.kill()
                worker.communicate()
            self._workers.clear()

    def _ask(self, line: str) -> Mapping[str, Any]:
        worker = self._worker()
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            worker.stdin.write(line + "\n")
            worker.stdin.flush()
            answer = worker.stdout.readline()
        except OSError:
            answer = ""
        if answer:
            parsed: dict[str, Any] = json.loads(answer)
            return parsed
        self._local.worker = None
        return {"error": f"expected Triton to compile, got a compiler process that ended with status {worker.wait()}"}

    def _worker(self) -> subprocess.Popen[str]:
        worker: subprocess.Popen[str] | None = getattr(self._local, "worker", None)
        if worker is None:
            environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
            command = [sys.executable, "-m", "blast_compile.aot.gpu_worker"]
            worker = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                env=environment,
            )  # fmt: skip
            self._local.worker = worker
            with self._lock:
                self._workers.append(worker)
        return worker
