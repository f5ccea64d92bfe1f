"""Runs vLLM's worker inside the engine-core process. Imported there by vLLM, by class.

On CPU vLLM overrules the executor named "uni" and starts a second process for its one worker; the
two then poll each other over shared memory and the worker gets one core less. An executor *class*
is not overruled, and one process with every core is all that a single CPU worker needs.
"""

from vllm.v1.executor.uniproc_executor import UniProcExecutor

from loragate.server.logs import configure_logs


class InCoreExecutor(UniProcExecutor):
    """vLLM's single-process executor under a name that the CPU platform leaves alone."""

    def _init_executor(self) -> None:
        configure_logs("warning")  # this process has no handlers yet
        super()._init_executor()
