"""llama.cpp's own server in a process of its own, without labkit, PyTorch or ONNX Runtime.

    python llama.py MODEL ADAPTER PORT THREADS CLIENTS

Prints what it was built for and its address, and ends when its input does.
"""

import sys

import xllamacpp


def main():
    model, adapter, *numbers = sys.argv[1:]
    port, threads, clients = map(int, numbers)
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0)]
    params.hostnames, params.port = ["127.0.0.1"], port
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_parallel = clients  # answers that are written at the same time
    params.n_ctx = 512 * clients  # tokens of all of them together
    params.cache_ram_mib = 0  # no prompt is kept from one question to another one
    params.offline = True
    server = xllamacpp.Server(params)
    print(xllamacpp.get_system_info(), flush=True)
    print("listening on", server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
