"""A tiny host for tests: a gRPC server that echoes bytes and knows how often it was asked."""

import os
import signal
import time
from pathlib import Path

import grpc

from pimserve.cluster.base.rpc.channels import make_server
from pimserve.errors import InputError


class EchoHost:
    """`misbehave`: refuse (an error for the user), bug, die (at the start, always), die_once (a file says so),
    stop_once, hang."""

    def __init__(self, greeting="", misbehave="", marker=""):
        if misbehave == "refuse":
            raise InputError("greeting", "is rude")
        if misbehave == "bug":
            raise ZeroDivisionError("a bug of the host")
        if misbehave == "die" or (misbehave == "die_once" and not Path(marker).exists()):
            if marker:
                Path(marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if misbehave == "stop_once" and not Path(marker).exists():
            Path(marker).touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        if misbehave == "hang":
            time.sleep(1000)
        print("hosts may print", flush=True)
        self.greeting = greeting.encode()
        self.marker = marker

    def start(self, listen):
        self.server = make_server(4, None)
        handler = grpc.unary_unary_rpc_method_handler(self.say)
        self.server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("echo.Echo", {"Say": handler})])
        port = self.server.add_insecure_port(listen)
        self.server.start()
        return port

    def say(self, request, context):
        if request == b"busy":
            while True:  # as a shard in a long window
                pass
        if request == b"keeps the interpreter":
            began = time.monotonic()
            while time.monotonic() - began < 3.0:
                pow(7, 1_500_000)  # a second and more in which no other thread of Python runs
        if request == b"slow":
            time.sleep(0.5)
        return self.greeting + request

    def stop(self, grace_s):
        self.server.stop(grace_s).wait()
        if self.marker:
            Path(self.marker).write_text(f"stopped with {grace_s}")
